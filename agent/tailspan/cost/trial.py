"""The live A/B: probes are switched off and on in turns under the real load, and the requests of both compared."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tailspan.cost.difference import MIN_PAIRS, MIN_REQUESTS, Difference, Floats, Turn, compare
from tailspan.timeline.evidence import Table

#: How long probes stay as they are, and how much of it is not looked at: caches and queues settle.
TURN_S, MARGIN_S = 2.0, 0.25
MIN_SECONDS, MAX_SECONDS = 2 * MIN_PAIRS * TURN_S, 600.0
#: After the last turn: requests that have ended are still on their way.
LATE_S = 1.0
#: Turns that a request is looked for in: an older one has come too late.
RECENT_TURNS = 4
#: Without a request for so long there is nothing to compare.
SILENT_S = 6 * TURN_S
#: Wall times that are kept, of each kind; of more a random part.
MAX_WALLS, MAX_WALLS_A_TURN = 60_000, 5_000

TOO_LITTLE = (
    f"too little traffic: it takes {MIN_REQUESTS} requests that begin and end within turns of {TURN_S:g} s, of"
    f" each kind, in {MIN_PAIRS} pairs of turns"
)


@dataclass(slots=True)
class _Turn:
    is_on: bool
    pair: int
    start_mono_ns: int
    end_mono_ns: int = 0
    cpu_s: float = 0.0
    served: int = 0
    inside: int = 0
    walls: Floats = field(default_factory=lambda: np.empty(0))
    lots: Floats = field(default_factory=lambda: np.empty(0))  # a number that each wall has drawn: the lowest stay


class Trial:
    """Driven by :meth:`poll` from one thread, until it returns an answer; :meth:`stop` ends it before its time.

    ``switch`` turns the probes on or off. ``cpu_ns``: CPU time of each process that serves requests, in all.
    """

    def __init__(
        self,
        seconds: float,
        seed: int,
        switch: Callable[[bool], None],
        cpu_ns: Callable[[], dict[int, int]],
    ) -> None:
        self._switch, self._cpu_ns = switch, cpu_ns
        self._random, self._numbers = random.Random(seed), np.random.default_rng(seed)
        self._seed = seed
        self._started_s = self._heard_s = time.monotonic()
        self._pairs = max(1, int(seconds / (2 * TURN_S)))
        self._order = [is_on for _ in range(self._pairs) for is_on in self._shuffled()]
        self._cap = min(MAX_WALLS_A_TURN, MAX_WALLS // self._pairs)
        self._turns: list[_Turn] = []
        self._is_on = True
        self._next_s = self._started_s
        self._cpu_before: dict[int, int] | None = None
        self._ended_s: float | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._found: Future[dict[str, Difference]] | None = None

    def poll(self) -> dict[str, Any] | None:
        """The answer once it is there; until then None."""
        now_s = time.monotonic()
        if self._found:
            return self._answer(self._found) if self._found.done() else None
        if self._ended_s is not None:
            if now_s - self._ended_s >= LATE_S:
                self._thread = ThreadPoolExecutor(1, "cost")
                self._found = self._thread.submit(compare, self._compared(), self._seed)
            return None
        if not self._is_measured() and now_s >= self._next_s - TURN_S + MARGIN_S:
            self._begin_to_look()
        if now_s < self._next_s:
            return None
        self._end_turn()
        if now_s - self._heard_s > SILENT_S:
            self._restore()
            return {"ok": False, "error": f"no request has come for {SILENT_S:g} s: {TOO_LITTLE}"}
        if len(self._turns) == len(self._order):
            self._restore()
            self._ended_s = time.monotonic()
            return None
        self._begin_turn()
        return None

    def served(self, requests: Table) -> None:
        """Finished requests (REQUEST rows), in any order, also of turns that are over."""
        if not len(requests):
            return
        self._heard_s = time.monotonic()
        start, end = requests["start_mono_ns"], requests["end_mono_ns"]
        for turn in self._turns[-RECENT_TURNS:]:
            if not turn.start_mono_ns:
                continue
            ended = (end >= turn.start_mono_ns) & (end < (turn.end_mono_ns or np.iinfo(np.int64).max))
            turn.served += int(ended.sum())
            inside = ended & (start >= turn.start_mono_ns)
            walls = ((end - start)[inside] / 1e9).astype(np.float64)
            if len(walls):
                turn.inside += len(walls)
                self._keep(turn, walls)

    def stop(self) -> None:
        """Probes are on again."""
        self._restore()
        if self._thread:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _shuffled(self) -> Iterable[bool]:
        first = self._random.random() < 0.5
        return first, not first

    def _begin_turn(self) -> None:
        is_on = self._order[len(self._turns)]
        if is_on != self._is_on:
            self._switch(is_on)
            self._is_on = is_on
        self._turns.append(_Turn(is_on, len(self._turns) // 2, 0))
        self._cpu_before = None
        self._next_s = time.monotonic() + TURN_S

    def _is_measured(self) -> bool:
        return not self._turns or self._turns[-1].start_mono_ns > 0

    def _begin_to_look(self) -> None:
        self._turns[-1].start_mono_ns = time.monotonic_ns()
        self._cpu_before = self._cpu_ns()

    def _end_turn(self) -> None:
        if not self._turns:
            return
        turn, before, after = self._turns[-1], self._cpu_before or {}, self._cpu_ns()
        turn.end_mono_ns = time.monotonic_ns()
        turn.cpu_s = sum(after[tgid] - before[tgid] for tgid in after.keys() & before.keys()) / 1e9

    def _restore(self) -> None:
        if not self._is_on:
            self._is_on = True
            self._switch(True)

    def _keep(self, turn: _Turn, walls: Floats) -> None:
        """Each request of a turn stays with the same chance, however many come."""
        turn.walls = np.concatenate((turn.walls, walls))
        turn.lots = np.concatenate((turn.lots, self._numbers.random(len(walls))))
        if len(turn.walls) > self._cap:
            stay = np.argpartition(turn.lots, self._cap)[: self._cap]
            turn.walls, turn.lots = turn.walls[stay], turn.lots[stay]

    def _compared(self) -> list[tuple[Turn, Turn]]:
        by_pair: list[dict[bool, Turn]] = [{} for _ in range(self._pairs)]
        for turn in self._turns:
            by_pair[turn.pair][turn.is_on] = Turn(turn.walls, turn.served, turn.cpu_s)
        return [(pair[True], pair[False]) for pair in by_pair]

    def _answer(self, done: Future[dict[str, Difference]]) -> dict[str, Any]:
        self.stop()
        if error := done.exception():
            return {"ok": False, "error": f"what was measured could not be compared: {error}"}
        found = done.result()
        requests = {
            name: sum(turn.inside for turn in self._turns if turn.is_on is is_on)
            for name, is_on in (("on", True), ("off", False))
        }
        if not found:
            told = f"{requests['on']} with probes on and {requests['off']} with probes off in {self._pairs} pairs"
            return {"ok": False, "error": f"{TOO_LITTLE}; there were {told}"}
        return {
            "ok": True,
            "measured_unix_s": time.time(),
            "seconds": round(time.monotonic() - self._started_s, 1),
            "turns": len(self._turns),
            "pairs": self._pairs,
            "seed": self._seed,
            "requests": requests,
            "differences": {
                name: {
                    **asdict(difference),
                    "estimate_s": difference.estimate_s,
                    "ratio": difference.ratio,
                    "told_apart": difference.told_apart,
                }
                for name, difference in found.items()
            },
        }
