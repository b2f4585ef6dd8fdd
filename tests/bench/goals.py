"""What the agent must not cost more than, and what it was measured to cost: the table at the head of the page.

Each goal says where in the figures of the benches its measure is. A bench that was not run, or that does not give
the figure, leaves its goal open. A goal is *met* if the whole interval of its measure is on the right side; where
the interval lies on both sides of it, that is what the table says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.page import number, table
from tests.bench.spread import Figures
from tests.bench.switch import EVERY, FOLLOWED

MET, MISSED, OPEN = "met", "**not met**", "not measured in this run"
BOTH = "not shown: the interval is on both sides"


@dataclass(frozen=True, slots=True)
class Measured:
    value: float
    low: float  #: of its 95 % interval; of the lowest reading where it has none
    high: float
    words: str = ""  #: beside the figure

    def text(self) -> str:
        figure = number(self.value)
        if self.low != self.high:
            figure += f" [{number(self.low)}, {number(self.high)}]"
        return f"{figure} {self.words}".rstrip()


@dataclass(frozen=True, slots=True)
class Goal:
    words: str
    bound: float
    unit: str
    of: Callable[[Figures], Measured | None]
    why: str | Callable[[Figures], str]  #: what bounds it
    at_least: bool = False

    def text(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {_plain(self.bound)} {self.unit}".rstrip()

    def verdict(self, measured: Measured | None) -> str:
        if measured is None:
            return OPEN
        worst, best = (measured.low, measured.high) if self.at_least else (measured.high, measured.low)
        if self._holds(worst):
            return MET
        return BOTH if self._holds(best) else MISSED

    def _holds(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def _at(*path: str) -> Callable[[Figures], Measured | None]:
    """A figure of the benches, by its path: a number, or a median with an interval or its extremes."""

    def find(benches: Figures) -> Measured | None:
        found = _dig(benches, path)
        return None if found is None else _measured(found)

    return find


def _dig(figures: object, path: tuple[str, ...]) -> object | None:
    for key in path:
        if not isinstance(figures, dict) or key not in figures:
            return None
        figures = figures[key]
    return figures


def _measured(found: object, words: str = "") -> Measured | None:
    if isinstance(found, int | float):
        return Measured(found, found, found, words)
    if not isinstance(found, dict) or "median" not in found:
        return None
    low, high = found.get("low", found.get("min")), found.get("high", found.get("max"))
    median = found["median"]
    return Measured(median, median if low is None else low, median if high is None else high, words)


def _lost(*path: str) -> Callable[[Figures], Measured | None]:
    """Records of all classes together."""

    def find(benches: Figures) -> Measured | None:
        lost = _dig(benches, path)
        return _measured(sum(lost.values())) if isinstance(lost, dict) else None

    return find


def _against_bpftrace(kind: str) -> Callable[[Figures], Measured | None]:
    def find(benches: Figures) -> Measured | None:
        quotients = _dig(benches, ("switch", "cost_to", kind))
        if not isinstance(quotients, dict):
            return None
        theirs = next((name for name in quotients if "bpftrace" in name), None)
        return _measured(quotients[theirs]) if theirs else None

    return find


def _verdict_latency(benches: Figures) -> Measured | None:
    """The bound of the histogram below which all verdicts were; ``inf`` above the last."""
    within = _dig(benches, ("worker", "agent", "steady", "verdicts_within"))
    if not isinstance(within, dict) or not within:
        return None
    total = max(within.values())
    bound = min((float(bound) for bound, count in within.items() if count == total), default=float("inf"))
    return Measured(bound, bound, bound, f"or sooner, {total:,.0f} verdicts") if total else None


def _shared(benches: Figures) -> str:
    """What the agent's CPU time alone makes of a machine that has none to spare."""
    words = "worker, load and agent saturate the CPUs that they share: what the agent takes is missing there"
    cpu, cpus = _dig(benches, ("worker", "agent", "steady", "cpu_percent")), _dig(benches, ("worker", "cpus"))
    if not isinstance(cpu, dict) or not isinstance(cpus, int):
        return words
    percent = cpu["median"]
    return (
        f"{words}. Its own CPU time is {number(percent / cpus)} % of these {cpus}, and would be less than 1 % of "
        f"{math.floor(percent) + 1}; the rest is its programs' and the caches'"
    )


GOALS = (
    Goal(
        "throughput of the worker, to absent",
        0.99,
        "",
        _at("worker", "ratio", "running", "throughput_per_s"),
        _shared,
        at_least=True,
    ),
    Goal(
        "its p99, to absent",
        1.01,
        "",
        _at("worker", "ratio", "running", "p99_ms"),
        "the same; and a p99 is decided by a handful of requests, so that its interval is wide",
    ),
    Goal(
        "an ignored switch, over an empty program",
        25,
        "ns",
        _at("switch", "programs", "not followed", "on_switch", "over_empty_ns"),
        "looking whether one of two threads is followed, or waited for",
    ),
    Goal(
        "a followed switch with its full record, over an empty program",
        200,
        "ns",
        _at("switch", "programs", "every switch", "on_switch", "over_empty_ns"),
        "reading the clock, and writing the record",
    ),
    Goal(
        "cost of the storm when followed, to that with bpftrace's runqlat",
        0.5,
        "",
        _against_bpftrace(FOLLOWED),
        "the programs at a switch and a wake-up; both look at every one of the host",
    ),
    Goal(
        "the same with a record of every switch (`probes.short_wait_us = 0`)",
        0.5,
        "",
        _against_bpftrace(EVERY),
        "the same, writing the record, and the reader on the storm's CPUs; runqlat adds up in the kernel",
    ),
    Goal(
        "a record decoded",
        25,
        "ns",
        _at("decode", "storms", "flat out, large rings", "drain_ns_per_record"),
        "copying it out of its ring: caches that the storm has just filled",
    ),
    Goal(
        "records lost at 200,000 followed events/s",
        0,
        "",
        _lost("rates", "paces", "200000", "lost"),
        "how long the reader may have to wait for a CPU, and what a ring holds meanwhile",
    ),
    Goal(
        "CPU at 50,000 events/s",
        10,
        "% of a core",
        _at("rates", "paces", "50000", "cpu_percent"),
        "numpy's calls for each drain and ring",
    ),
    Goal(
        "CPU with nothing to do",
        1,
        "% of a core",
        _at("rates", "idle", "no worker", "cpu_percent"),
        "looking into rings and sockets every `agent.tick_ms`",
    ),
    Goal(
        "resident, under load",
        80 * 1e6 / (1 << 20),
        "MiB (80 MB)",
        _at("worker", "agent", "steady", "rss_mib"),
        "the interpreter, numpy and OTLP; rings count twice, since they are mapped twice in a row",
    ),
    Goal(
        "process start to attached",
        300,
        "ms",
        _at("startup", "ms", "attached"),
        "imports, numpy's first, beside the kernel's verifier; then its RCU grace periods",
    ),
    Goal(
        "a verdict after its request's end",
        2,
        "s",
        _verdict_latency,
        "`agent.judge_ms`, and what is judged before it",
    ),
)


def render(benches: Figures) -> str:
    """``benches``: the figures of each bench, by its name."""
    rows = []
    met = 0
    for goal in GOALS:
        measured = goal.of(benches)
        verdict = goal.verdict(measured)
        met += verdict == MET
        why = goal.why if isinstance(goal.why, str) else goal.why(benches)
        rows.append([goal.words, goal.text(), measured.text() if measured else "", verdict, why])
    return f"""## Goals

{met} of {len(GOALS)} are met in this run. Measured: a median, with its 95 % interval in brackets. That memory
stays flat over an hour is in [endurance.md](endurance.md).

{table(["goal", "", "measured", "", "what bounds it"], rows, words=(0, 1, 3, 4))}"""


def _plain(value: float) -> str:
    return f"{value:,.3g}"
