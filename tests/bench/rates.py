"""What the whole agent takes at a given rate of events, and when there are none.

A storm of ``storm.c`` is followed: one pair of threads a CPU hands a byte back and forth, at a pace, some round
trips every millisecond. The floor for short waits is 0, so that every wait of a thread is an event: a turn record,
which the agent drains, adds up in its metrics, and keeps in its window. No requests are made, so nothing is
attributed; what a request costs is in :mod:`tests.bench.attribution`, and both together in
:mod:`tests.bench.worker`.

Each pace has an agent of its own, a process as it is installed, with default rings and window; paces have turns.
CPU time and memory are the kernel's counts for that process. Compared with nothing.

Then an agent that has nothing to do is left alone: with no worker, and with one that has connected and is silent.

Noise: 5 to 10 % of the agent's CPU time. Losses depend on the machine: an agent that waits for a CPU drains late.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench import serving
from tests.bench.page import number, span, table
from tests.bench.spread import Figures, spread, turns
from tests.bench.storm import Storm, build, storm

#: Turn records a second.
PACES = (50_000, 100_000, 200_000, 400_000, 800_000)
#: Less than this share of a pace was not made: the machine is too slow for it.
_MADE = 0.95
TURN, SLICE, WINDOW_ROW = "cycle", "slice", "window_row"

_WARM_UP_S = 0.5
#: Two judgements and a bit: what the kernel has handed over is in the metrics.
_REST_S = 0.6


def run(quick: bool) -> Figures:
    if quick:
        return measure(rounds=1, seconds=2.0, idle_s=5.0)
    return measure(rounds=5, seconds=8.0, idle_s=30.0)


def measure(rounds: int, seconds: float, idle_s: float, paces: tuple[int, ...] = PACES) -> Figures:
    cpus = len(os.sched_getaffinity(0))
    readings: dict[str, list[Figures]] = {str(pace): [] for pace in paces}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with storm(build(folder), cpus, 0) as one:
            for order in turns(tuple(readings), rounds):
                for pace in order:
                    readings[pace].append(_at(int(pace), one, cpus, seconds, folder))
        idle = _idle(folder, idle_s)
    paced = {pace: _summary(int(pace), of) for pace, of in readings.items()}
    return {
        "threads": 2 * cpus,
        "rounds": rounds,
        "seconds_per_round": seconds,
        "paces": paced,
        "most_without_loss_per_s": _most_without_loss(paced),
        "more_ns_per_record": _more_ns(paced, _most_without_loss(paced)),
        "idle_seconds": idle_s,
        "idle": idle,
    }


def _at(pace: int, one: Storm, cpus: int, seconds: float, folder: Path) -> Figures:
    """Both threads of a pair have a turn in each round trip."""
    per_pair = pace // (2 * cpus)
    with serving.agent(folder, settings={"follow.pids": one.pid, "probes.short_wait_us": 0}) as agent:
        agent.wait_for_worker()
        one.run(_WARM_UP_S, per_s=per_pair)
        time.sleep(_REST_S)
        before, cpu_s, start_s = agent.reading(), agent.cpu_s, time.monotonic()
        segment = one.run(seconds, per_s=per_pair)
        cpu_s, took_s = agent.cpu_s - cpu_s, time.monotonic() - start_s
        time.sleep(_REST_S)
        after = agent.reading()

    def more(key: str) -> dict[str, int]:
        return {name: count - before[key].get(name, 0) for name, count in after[key].items()}

    lost, records = more("lost"), more("records_by_class")
    return {
        "cpu_percent": 100 * cpu_s / took_s,
        "made_per_s": 2 * segment.per_s,
        "turns_per_s": records.get(TURN, 0) / segment.seconds,
        "slices_per_s": records.get(SLICE, 0) / segment.seconds,
        "cpu_ns_per_record": 1e9 * cpu_s / max(1, sum(records.values())),
        "rss_mib": after["rss_mib"],
        "lost": {name: count for name, count in lost.items() if name != WINDOW_ROW},
        "let_go_early": lost.get(WINDOW_ROW, 0),
    }


def _summary(pace: int, readings: list[Figures]) -> Figures:
    lost: dict[str, int] = {}
    for reading in readings:
        for name, count in reading["lost"].items():
            lost[name] = lost.get(name, 0) + count
    numbers = ("cpu_percent", "made_per_s", "turns_per_s", "slices_per_s", "cpu_ns_per_record", "rss_mib")
    return {
        **{name: spread([reading[name] for reading in readings]) for name in numbers},
        "made": all(reading["made_per_s"] >= _MADE * pace for reading in readings),
        "lost": lost,
        "let_go_early": sum(reading["let_go_early"] for reading in readings),
    }


def _most_without_loss(paced: dict[str, Figures]) -> int:
    """The highest pace that was made, and at and below which nothing was lost; 0 if there is none."""
    most = 0
    for pace in sorted(map(int, paced)):
        figures = paced[str(pace)]
        if not figures["made"] or any(figures["lost"].values()):
            break
        most = pace
    return most


def _more_ns(paced: dict[str, Figures], most: int) -> float | None:
    """The agent's CPU time for one more record, from the lowest pace to ``most``; None if that is no higher."""
    lowest = min(map(int, paced))
    if most <= lowest:
        return None
    low, high = (
        {name: paced[str(pace)][name]["median"] for name in ("cpu_percent", "turns_per_s", "slices_per_s")}
        for pace in (lowest, most)
    )
    more = high["turns_per_s"] + high["slices_per_s"] - low["turns_per_s"] - low["slices_per_s"]
    return float(1e7 * (high["cpu_percent"] - low["cpu_percent"]) / more)


def _idle(folder: Path, seconds: float) -> Figures:
    """% of one core, and what is resident at the end: of one agent, with nobody, and with a silent worker."""
    with serving.agent(folder) as agent:
        alone = _left_alone(agent, seconds)
        with serving.silent_worker(folder):
            agent.wait_for_worker()
            return {"no worker": alone, "a worker, silent": _left_alone(agent, seconds)}


def _left_alone(agent: serving.Agent, seconds: float) -> Figures:
    time.sleep(_REST_S)
    cpu_s, start_s = agent.cpu_s, time.monotonic()
    time.sleep(seconds)
    percent = 100 * (agent.cpu_s - cpu_s) / (time.monotonic() - start_s)
    return {"cpu_percent": percent, "rss_mib": agent.reading()["rss_mib"]}


def _lost(figures: Figures) -> str:
    there = {name: count for name, count in figures["lost"].items() if count}
    return ", ".join(f"{name} {count:,}" for name, count in there.items()) or "0"


_ROWS: dict[str, Callable[[Figures], str]] = {
    "events the storm made a second": lambda figures: span(figures["made_per_s"]),
    "turns read a second": lambda figures: span(figures["turns_per_s"]),
    "slices read a second": lambda figures: span(figures["slices_per_s"]),
    "agent's CPU, % of one core": lambda figures: span(figures["cpu_percent"]),
    "a record, ns": lambda figures: span(figures["cpu_ns_per_record"]),
    "resident, MiB": lambda figures: span(figures["rss_mib"]),
    "**lost, by class**": lambda figures: f"**{_lost(figures)}**",
    "rows that left the window early": lambda figures: f"{figures['let_go_early']:,}",
}


def render(figures: Figures) -> str:
    paces = figures["paces"]
    rows = [[label, *(cell(one) for one in paces.values())] for label, cell in _ROWS.items()]
    idle = [[words, number(one["cpu_percent"]), number(one["rss_mib"])] for words, one in figures["idle"].items()]
    return f"""## The agent at a rate of events

{figures["threads"]} followed threads hand bytes back and forth at a pace, {figures["rounds"]} rounds of
{number(figures["seconds_per_round"])} s of each in turn, beside a whole agent with default rings and window. The
floor for short waits is 0, so that each wait is an event: a turn record. Where others waited meanwhile, a slice is
written too. Nobody sends requests.

{table(["events a second", *(f"{int(pace):,}" for pace in paces)], rows)}

The highest of these rates at which nothing is lost: **{figures["most_without_loss_per_s"]:,} events/s**. Rows that
left the window early were read and counted in all metrics; the window keeps the last `window.max_rows` of a kind,
and beyond that a verdict says what it lacks.

Left alone for {number(figures["idle_seconds"])} s:

{table(["", "CPU, % of one core", "resident, MiB"], idle)}

What bounds it: a tick that finds records makes some hundred numpy calls, however few they are{_more(figures)}
copied out of its ring, put together with those of other CPUs, and added up by reason, process and waker. Above
the highest rate it is not CPU time but the rings: the record that makes one half full wakes the agent, and the
other half holds what comes until it has a CPU and has read."""


def _more(figures: Figures) -> str:
    more = figures["more_ns_per_record"]
    return "; each record is then" if more is None else f". Then each record more takes {number(more)} ns: it is"
