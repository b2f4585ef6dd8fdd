"""What a context switch costs more with the agent there: a storm's throughput with it, divided by that without.

Compared with the agent absent (nothing attached), interleaved; each round begins with another kind:

* ``absent again``   the same once more: what this machine calls a difference when there is none
* ``empty program``  one that does nothing, at every switch: less than that nobody can cost
* ``not followed``   programs attached, the storm's threads not followed: what the rest of the host pays
* ``followed``       followed and drained, default floor: the storm's waits are too short for records of their own
* ``every switch``   followed and drained, floor 0: a record for every switch, the most there can be
* other tools that look at every switch of the host (:mod:`tests.bench.others`), started anew each time; those that
  are not installed or do not run here are left out, and the section says so

The storm does nothing but switch, one pair of threads a CPU, so these are upper bounds: a program that switches a
hundredth as often pays a hundredth of it. Draining competes with the storm for its CPUs and is part of the ratio.

Noise: identical runs differ by 2 to 5 % on a virtual machine, more when the host is busy.

The second table is the kernel's own measure (``kernel.bpf_stats_enabled``), in rounds of its own because taking it
costs something too. What the empty program reads in the same round is subtracted from each run.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailspan.collect.bpf.programs import Options
from tailspan.collect.bpf.source import BpfSource
from tailspan.errors import CannotError
from tests.bench import others
from tests.bench.measured import EMPTY, RunTimes, bpf_stats, empty_program, programs
from tests.bench.others import TOOLS, Tool
from tests.bench.page import interval, number, span, table
from tests.bench.spread import Figures, estimate, quotient_of_costs, ratio, spread, turns
from tests.bench.storm import Storm, build, storm

ABSENT, AGAIN, NOTHING = "absent", "absent again", "empty program"
IGNORED, FOLLOWED, EVERY = "not followed", "followed", "every switch"
OURS: dict[str, Options] = {
    IGNORED: Options(),
    FOLLOWED: Options(),
    # Rings large enough that no record is lost: a lost one would be cheaper than one that is written.
    EVERY: Options(short_wait_ns=0, cycle_ring_bytes=16 << 20),
}


@dataclass(slots=True)
class _There:
    """What is attached while the storm runs."""

    run_times: Callable[[], RunTimes] = dict
    tick: Callable[[], object] | None = None
    lost: int = 0


def run(quick: bool) -> Figures:
    if quick:
        return measure(rounds=3, seconds=0.4, measured_rounds=2)
    return measure(rounds=12, seconds=1.5, measured_rounds=7)


def measure(rounds: int, seconds: float, measured_rounds: int, tools: Sequence[Tool] = TOOLS) -> Figures:
    pairs = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name, storm(build(Path(name)), pairs, 0) as one:
        folder = Path(name)
        left_out = {tool.name: why for tool in tools if (why := _why_not(tool, folder))}
        theirs = {tool.name: tool for tool in tools if tool.name not in left_out}
        kinds = (ABSENT, AGAIN, NOTHING, *OURS, *theirs)
        per_s: dict[str, list[float]] = {kind: [] for kind in kinds}
        lost = dict.fromkeys((FOLLOWED, EVERY), 0)
        one.run(seconds)  # caches and clocks warm up
        for order in turns(kinds, rounds):
            for kind in order:
                with _attached(kind, theirs.get(kind), one.pid, folder) as there:
                    per_s[kind].append(one.run(seconds, there.tick).per_s)
                if kind in lost:
                    lost[kind] += there.lost
        measured: dict[str, list[dict[str, Figures]]] = {kind: [] for kind in kinds[2:]}
        with bpf_stats():
            for order in turns(tuple(measured), measured_rounds):
                for kind in order:
                    with _attached(kind, theirs.get(kind), one.pid, folder) as there:
                        measured[kind].append(_measured(there, one, seconds))
    empty_ns = [reading[EMPTY]["ns"] for reading in measured[NOTHING]]
    return {
        "pairs": pairs,
        "rounds": rounds,
        "seconds_per_round": seconds,
        "measured_rounds": measured_rounds,
        "round_trips_per_s": {kind: spread(values) for kind, values in per_s.items()},
        "ratio": {kind: ratio(values, per_s[ABSENT]) for kind, values in per_s.items() if kind != ABSENT},
        "cost_to": {
            kind: {name: quotient_of_costs(per_s[kind], per_s[name], per_s[ABSENT]) for name in theirs}
            for kind in (FOLLOWED, EVERY)
        },
        "lost": lost,
        "empty_ns": spread(empty_ns),
        "programs": {kind: _of_programs(measured[kind], empty_ns) for kind in OURS},
        "switch_ns": {
            kind: estimate([_over_empty(reading, empty) for reading, empty in zip(of, empty_ns, strict=True)])
            for kind, of in measured.items()
            if kind != NOTHING
        },
        "left_out": left_out,
    }


@contextlib.contextmanager
def _attached(kind: str, tool: Tool | None, pid: int, folder: Path) -> Iterator[_There]:
    if tool:
        with others.running(tool, folder) as run_times:
            yield _There(run_times)
    elif kind == NOTHING:
        with empty_program() as run_times:
            yield _There(run_times)
    elif kind in OURS:
        with contextlib.closing(BpfSource(OURS[kind])) as source:
            if kind != IGNORED:
                source.follow([pid])
            there = _There(source.run_times)

            def drain() -> None:
                there.lost += int(source.drain().losses["count"].sum())

            there.tick = drain
            yield there
    else:
        yield _There()


def _why_not(tool: Tool, folder: Path) -> str:
    """Why it is left out, in one line; it is tried."""
    why = others.why_not(tool)
    if why:
        return why
    try:
        with others.running(tool, folder):
            return ""
    except CannotError as error:
        return str(error)


def _measured(there: _There, one: Storm, seconds: float) -> dict[str, Figures]:
    before = there.run_times()
    segment = one.run(seconds, there.tick)
    return programs(before, there.run_times(), 2 * segment.count)


def _of_programs(readings: list[dict[str, Figures]], empty_ns: list[float]) -> dict[str, Figures]:
    """Program -> what it takes a run; those that ran in every round."""
    found = {}
    for name in readings[0]:
        of_it = [reading[name] for reading in readings if name in reading]
        if len(of_it) == len(readings):
            ns = [one["ns"] for one in of_it]
            found[name] = {
                "ns": spread(ns)["median"],
                "over_empty_ns": estimate([one - empty for one, empty in zip(ns, empty_ns, strict=True)]),
                "runs_per_event": spread([one["runs_per_event"] for one in of_it])["median"],
            }
    return found


def _over_empty(reading: dict[str, Figures], empty_ns: float) -> float:
    """Of all programs together, for one switch and the wake-up before it."""
    return float(sum((one["ns"] - empty_ns) * one["runs_per_event"] for one in reading.values()))


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
        for name in measured[EVERY]
        if max(measured[kind].get(name, {"runs_per_event": 0})["runs_per_event"] for kind in measured) > _RARE
    ]
    costs = [
        [
            f"`{name}`",
            *(_bounds(measured[kind][name]["over_empty_ns"]) if name in measured[kind] else "-" for kind in OURS),
        ]
        for name in names
    ]
    costs.append(["all of them, a switch", *(_bounds(figures["switch_ns"][kind]) for kind in OURS)])
    return f"""## A context switch

{figures["pairs"]} pairs of threads, one a CPU, do nothing but hand a byte back and forth, {figures["rounds"]}
rounds of {number(figures["seconds_per_round"])} s of each kind. *Not followed* is what every other process of
the host pays. *Followed* are the threads of an inference worker, with the default floor for waits of
{Options().short_wait_ns // 1000} µs (these are shorter, and folded into sums). *Every switch* has no floor: a
full record for each. *Empty program* does nothing, once at every switch.

{table(["at every switch", "round trips/s", "ratio to absent", "ns more a switch"], throughput)}

Records lost: followed {figures["lost"][FOLLOWED]:,}, every switch {figures["lost"][EVERY]:,}. How
far the ratio of *absent again* is from 1 is what cannot be told apart here. A switch is half a round trip, and
{figures["pairs"]} CPUs switch at once. *ns more a switch* comes from the ratio: programs, reader and the caches
that they share with the storm. {_of_others(figures)}

What the kernel measures, ns a run, less the {span(figures["empty_ns"])} ns that the empty program reads in the
same round; medians of {figures["measured_rounds"]} rounds, with their intervals.

{table(["program", *OURS], costs)}

What bounds it: `on_switch` runs at every switch of the host, and looks whether one of the two threads is
followed or waited for. Two such look-ups are what threads that are not followed pay; what followed ones pay is
clock reading and writing the record."""


def _of_others(figures: Figures) -> str:
    """How the other tools compare, and which there are not."""
    said = []
    for kind, quotients in figures["cost_to"].items():
        costs = ", ".join(f"{interval(quotient)} times what *{name}* does" for name, quotient in quotients.items())
        if costs:
            said.append(f"Of the throughput, *{kind}* costs {costs}.")
    if said:
        names = figures["cost_to"][EVERY]
        in_kernel = ", ".join(f"*{name}* {_bounds(figures['switch_ns'][name])} ns" for name in names)
        said += [
            f"Their programs alone, measured as below, take for a switch: {in_kernel}. They add waits up in the",
            "kernel; *every switch* includes that its records are read.",
        ]
    said += [f"*{name}* is left out: {why}." for name, why in figures["left_out"].items()]
    return " ".join(said)


def _bounds(figure: Figures) -> str:
    return f"{number(figure['median'])} [{number(figure['low'])}, {number(figure['high'])}]"


def _cost_ns(figures: Figures, kind: str) -> str:
    """Of the median ratio: CPU time that one switch takes more than with the agent absent."""
    if kind not in figures["ratio"]:
        return ""
    switch_ns = figures["pairs"] * 1e9 / (2 * figures["round_trips_per_s"][ABSENT]["median"])
    return number(switch_ns * (1 / figures["ratio"][kind]["median"] - 1))
