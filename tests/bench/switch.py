"""What a context switch costs more with the agent there: a storm's throughput with it, divided by that without.

Compared with the agent absent (nothing attached), interleaved; each round begins with another kind:

* ``absent again``   the same once more: what this machine calls a difference when there is none
* ``not followed``   programs attached, the storm's threads not followed: what the rest of the host pays
* ``followed``       followed and drained, default floor: the storm's waits are too short for records of their own
* ``every switch``   followed and drained, floor 0: a record for every switch, the most there can be

The storm does nothing but switch, one pair of threads a CPU, so these are upper bounds: a program that switches a
hundredth as often pays a hundredth of it. Draining competes with the storm for its CPUs and is part of the ratio.

Noise: identical runs differ by 2 to 5 % on a virtual machine, more when the host is busy.

The second table is the kernel's own measure (``kernel.bpf_stats_enabled``), in a pass of its own because taking it
costs something too. An empty program reads up to 50 ns there; nothing is subtracted.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tailspan.collect.bpf.source import BpfSource, Options
from tests.bench.page import interval, number, span, table
from tests.bench.spread import Figures, ratio, spread, turns
from tests.bench.storm import Storm, build, storm

ABSENT = "absent"
KINDS: dict[str, Options | None] = {
    ABSENT: None,
    "absent again": None,
    "not followed": Options(),
    "followed": Options(),
    # Rings large enough that no record is lost: a lost one would be cheaper than one that is written.
    "every switch": Options(short_wait_ns=0, cycle_ring_bytes=16 << 20),
}
FOLLOWED = ("followed", "every switch")
STATS = Path("/proc/sys/kernel/bpf_stats_enabled")


def run(quick: bool) -> Figures:
    return measure(rounds=3, seconds=0.4) if quick else measure(rounds=12, seconds=1.5)


def measure(rounds: int, seconds: float) -> Figures:
    pairs = len(os.sched_getaffinity(0))
    per_s: dict[str, list[float]] = {kind: [] for kind in KINDS}
    lost = dict.fromkeys(FOLLOWED, 0)
    with tempfile.TemporaryDirectory() as folder, storm(build(Path(folder)), pairs, 0) as one:
        one.run(seconds)  # caches and clocks warm up
        for kinds in turns(tuple(KINDS), rounds):
            for kind in kinds:
                reading = _storm_with(kind, one, seconds)
                per_s[kind].append(reading["round_trips_per_s"])
                if kind in FOLLOWED:
                    lost[kind] += reading["lost"]
        with bpf_stats():
            measured = {kind: _storm_with(kind, one, seconds)["programs"] for kind in ("not followed", *FOLLOWED)}
    return {
        "pairs": pairs,
        "rounds": rounds,
        "seconds_per_round": seconds,
        "round_trips_per_s": {kind: spread(values) for kind, values in per_s.items()},
        "ratio": {kind: ratio(values, per_s[ABSENT]) for kind, values in per_s.items() if kind != ABSENT},
        "lost": lost,
        "programs": measured,
    }


def _storm_with(kind: str, one: Storm, seconds: float) -> Figures:
    options = KINDS[kind]
    if options is None:
        return {"round_trips_per_s": one.run(seconds).per_s}
    with contextlib.closing(BpfSource(options)) as source:
        if kind in FOLLOWED:
            source.follow([one.pid])
        lost = 0

        def drain() -> None:
            nonlocal lost
            lost += int(source.drain().losses["count"].sum())

        before = source.run_times()
        segment = one.run(seconds, drain)
        return {
            "round_trips_per_s": segment.per_s,
            "lost": lost,
            "programs": programs(before, source.run_times(), 2 * segment.count),
        }


def programs(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], events: int
) -> dict[str, Figures]:
    """ns a run, and runs per event of the workload, of each program that ran between two ``run_times()``."""
    found = {}
    for program, (ns, runs) in after.items():
        ns, runs = ns - before[program][0], runs - before[program][1]
        if runs:
            found[program] = {"ns": ns / runs, "runs_per_event": runs / events}
    return found


@contextlib.contextmanager
def bpf_stats() -> Iterator[None]:
    """The kernel measures every BPF program meanwhile; afterwards it is as it was."""
    before = STATS.read_text()
    STATS.write_text("1")
    try:
        yield
    finally:
        STATS.write_text(before)


#: Programs that run less often than this per switch are left out of the table: timers and the like.
_RARE = 0.01


def render(figures: Figures) -> str:
    throughput = [
        [
            kind,
            span(raw),
            interval(figures["ratio"][kind]) if kind in figures["ratio"] else "1",
            _cost_ns(figures, kind),
        ]
        for kind, raw in figures["round_trips_per_s"].items()
    ]
    measured = figures["programs"]
    names = [
        name
        for name in measured["every switch"]
        if max(measured[kind].get(name, {"runs_per_event": 0})["runs_per_event"] for kind in measured) > _RARE
    ]
    costs = [
        [
            f"`{name}`",
            *(number(measured[kind][name]["ns"]) if name in measured[kind] else "-" for kind in measured),
        ]
        for name in names
    ]
    return f"""## A context switch

{figures["pairs"]} pairs of threads, one a CPU, do nothing but hand a byte back and forth, {figures["rounds"]}
rounds of {number(figures["seconds_per_round"])} s of each kind. *Not followed* is what every other process of
the host pays. *Followed* are the threads of an inference worker, with the default floor for waits of
{Options().short_wait_ns // 1000} µs (these are shorter, and folded into sums). *Every switch* has no floor: a
full record for each.

{table(["agent", "round trips/s", "ratio to absent", "ns more a switch"], throughput)}

Records lost: followed {figures["lost"]["followed"]:,}, every switch {figures["lost"]["every switch"]:,}. How
far the ratio of *absent again* is from 1 is what cannot be told apart here. A switch is half a round trip, and
{figures["pairs"]} CPUs switch at once. *ns more a switch* comes from the ratio: programs, reader and the caches
that they share with the storm.

What the kernel measures, ns a run. It includes the measuring: an empty program reads up to 50, by machine.
Nothing is subtracted.

{table(["program", *measured], costs)}

What bounds it: `on_switch` runs at every switch of the host, and looks whether one of the two threads is
followed or waited for. Two such look-ups are what threads that are not followed pay; what followed ones pay is
clock reading and writing the record."""


def _cost_ns(figures: Figures, kind: str) -> str:
    """Of the median ratio: CPU time that one switch takes more than with the agent absent."""
    if kind not in figures["ratio"]:
        return ""
    switch_ns = figures["pairs"] * 1e9 / (2 * figures["round_trips_per_s"][ABSENT]["median"])
    return number(switch_ns * (1 / figures["ratio"][kind]["median"] - 1))
