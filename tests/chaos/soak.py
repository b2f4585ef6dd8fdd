"""The run: faults that the agent ends of, each on its own; then one agent's life under all others."""

from __future__ import annotations

import json
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.bench.page import machine
from tests.chaos.fault import Fault
from tests.chaos.run import FULL, SHORT, Figures, Round, Rounds, line, say
from tests.chaos.scene import RATE_PER_S, Scene, scene

SAMPLE_S = 5.0
#: What is compared with the end begins after so long: rings, windows and tables are full then.
WARM_S = 600.0
#: Of both ends that are compared: about as long as all faults take, since each leaves more or less behind.
ENDS_S = 300.0
#: In a shorter run, after this share of it.
WARM_SHARE = 1 / 3
#: Of each fault that the agent ends of, before the soak.
LETHAL_ROUNDS = 3

Floats = npt.NDArray[np.float64]


def run(faults: Sequence[Fault], seconds: float, seed: int, short: bool, file: Path | None) -> Figures:
    """``seconds``: of the soak alone; ``short``: each fault once instead. ``file``: written after each fault.

    Raises :class:`CannotError` where the host lacks something.
    """
    lethal = [fault for fault in faults if fault.lethal]
    lasting = [fault for fault in faults if not fault.lethal]
    found: Figures = {"machine": machine(), "seed": seed, "seconds": seconds, "short": short}
    found |= {"what": {fault.name: fault.what for fault in faults}, "rounds": []}
    # What died with an agent is known by what is not there: while agents end, every request is stored.
    keep = "all" if short or lethal else "slow"
    with tempfile.TemporaryDirectory(prefix="tailspan-chaos-") as folder, scene(Path(folder), keep) as at:
        found |= {"rate_per_s": RATE_PER_S, "user": at.user}
        if short:
            Run(at, Rounds(at, SHORT), found, file).each([*lasting, *lethal])
            return found
        if lethal:
            Run(at, Rounds(at, FULL), found, file).each(lethal * LETHAL_ROUNDS)
        if lasting:
            if lethal:
                at.replace_agent("slow")
            Run(at, Rounds(at, FULL), found, file).soak(lasting, seconds, seed)
    return found


class Run:
    """Faults one after the other, and what is known of them in a file all the time."""

    def __init__(self, at: Scene, rounds: Rounds, found: Figures, file: Path | None) -> None:
        self._at, self._rounds, self._found, self._file = at, rounds, found, file

    def each(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            done = self._rounds.run(fault)
            say(line(done))
            self._found["rounds"].append(asdict(done))
            self._write()

    def soak(self, faults: Sequence[Fault], seconds: float, seed: int) -> None:
        """All of them in turn, always in the same order: the same moments of two turns can be compared."""
        order = random.Random(seed).sample(faults, len(faults))
        sampling = Sampling(self._at)
        ends_s = time.monotonic() + seconds
        try:
            while time.monotonic() < ends_s:
                for fault in order:
                    self._found["soak"] = self._summary(sampling)
                    self.each([fault])
                    if time.monotonic() >= ends_s:
                        break
        finally:
            sampling.close()
            self._found["soak"] = self._summary(sampling)
            self._write()

    def _summary(self, sampling: Sampling) -> Figures:
        found = summary(sampling.samples)
        if "begin_s" in found:
            begin_s = sampling.began_s + found["begin_s"]
            found["turns"] = turns([one for one in self._rounds.rounds if one.start_mono_s >= begin_s])
        return found

    def _write(self) -> None:
        if self._file:
            self._file.write_text(json.dumps(self._found, indent=1) + "\n")


class Sampling:
    """What the agent's process holds, every few seconds, in a thread of its own."""

    def __init__(self, at: Scene) -> None:
        self.samples: list[tuple[float, ...]] = []  #: seconds, resident MiB, descriptors, threads
        self._at, self._ended = at, threading.Event()
        self.began_s = time.monotonic()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            try:
                now = self._at.agent.reading()
            except OSError:  # it ended just now
                continue
            self.samples.append((time.monotonic() - self.began_s, now.rss_mib, now.fds, now.threads))


def summary(samples: Sequence[Sequence[float]]) -> Figures:
    """Growth between the first :data:`ENDS_S` after warming up and the last, and its slope."""
    table = np.array(samples, float).reshape(-1, 4)
    found: Figures = {"samples": np.round(table, 2).tolist()}
    if len(table) < 3:
        return found
    warm = table[table[:, 0] >= min(WARM_S, table[-1, 0] * WARM_SHARE)]
    begin_s, end_s = float(warm[0, 0]), float(warm[-1, 0])
    span_s = min(ENDS_S, (end_s - begin_s) / 2)
    first, last = warm[warm[:, 0] <= begin_s + span_s], warm[warm[:, 0] >= end_s - span_s]
    for column, name in enumerate(("rss_mib", "fds", "threads"), 1):
        found[name] = {
            "first": float(np.median(first[:, column])),
            "last": float(np.median(last[:, column])),
            "least": float(warm[:, column].min()),
            "most": float(warm[:, column].max()),
        }
    found |= {"begin_s": begin_s, "end_s": end_s, "span_s": span_s}
    found["growth"] = found["rss_mib"]["last"] / found["rss_mib"]["first"] - 1
    found["slope_mib_per_h"] = slope(warm[:, 0], warm[:, 1])
    return found


def turns(rounds: Sequence[Round]) -> Figures:
    """Growth from the first time that a fault was over to the last, with its 95 % interval over the faults.

    Empty where no fault came twice.
    """
    mib: dict[str, list[float]] = {}
    for done in (one for one in rounds if one.outcome == "alive"):
        mib.setdefault(done.fault, []).append(done.reading["rss_mib"])
    ratios = np.array([times[-1] / times[0] for times in mib.values() if len(times) > 1])
    if not len(ratios):
        return {}
    drawn = np.random.default_rng(1).choice(ratios, (1000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5)) - 1
    times = min(len(times) for times in mib.values())
    return {"growth": float(np.median(ratios)) - 1, "low": float(low), "high": float(high), "times": times}


def slope(at_s: Floats, mib: Floats, blocks: int = 10, draws: int = 1000) -> Figures:
    """Least squares, MiB/h, with its 95 % interval; empty where there are too few to say.

    The interval draws stretches of what the line leaves over, not single samples: neighbours in time are alike.
    """
    if len(at_s) < 4 * blocks:
        return {}
    fitted: Floats = np.asarray(np.polyval(np.polyfit(at_s, mib, 1), at_s), float)
    pieces = np.array_split(mib - fitted, blocks)
    dice = np.random.default_rng(1)
    drawn = []
    for _ in range(draws):
        rest = np.concatenate([pieces[index] for index in dice.integers(0, blocks, blocks)])
        drawn.append(_slope(at_s, np.add(fitted, np.resize(rest, len(at_s)))))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"value": _slope(at_s, mib), "low": float(low), "high": float(high)}


def _slope(at_s: Floats, mib: Floats) -> float:
    return float(np.polyfit(at_s, mib, 1)[0]) * 3600
