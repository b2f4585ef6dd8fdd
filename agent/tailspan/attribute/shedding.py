"""What the agent gives up when it costs more than it may, in which order, and what a verdict then cannot say.

Taken from the first on, and given back from the last. docs/cost.md is about this table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import Shed
from tailspan.timeline.arrivals import began
from tailspan.timeline.evidence import Meta, Table


@dataclass(frozen=True, slots=True)
class Step:
    name: str  #: in metrics, JSON and Meta
    what: str  #: is shed: a plural
    saves: str
    unsaid: str  #: what a verdict then cannot say; "" where it says as much as before
    unseen: frozenset[Cause] = frozenset()  #: causes that are unknowable then: small is not ruled out
    unseen_probe: str = ""  #: likewise, all causes of a probe


SYSCALLS, GPU_CALLS, SLICES = "syscalls", "gpu_calls", "slices"
SHORT_WAITS, VERDICTS = "short_waits", "verdicts"

STEPS: tuple[Step, ...] = (
    Step(
        SYSCALLS,
        "records of system calls",
        "the slow path of every system call of the host, where they were traced",
        "",
    ),
    Step(
        GPU_CALLS,
        "CUDA calls",
        "a microsecond or more a call in the worker, and a record",
        "what waits for a GPU were for is not known",
        unseen_probe="gpu",
    ),
    Step(
        SLICES,
        "neighbours' slices",
        "a record at every switch of a CPU that somebody waits for, and the attribution of those",
        "who had the CPU is not known",
        unseen=frozenset({Cause.IRQ}),  # waits behind ksoftirqd are told by who had the CPU
    ),
    Step(
        SHORT_WAITS,
        "records of waits below 200 µs",
        "most records of threads that hand work back and forth; sums stay exact",
        "what waits below 200 µs were for is not known",
    ),
    Step(
        VERDICTS,
        "live verdicts",
        "the judging of slow requests; their evidence is stored, and judged when it is read",
        "",
    ),
)

#: A wait shorter than this gives no record of its own while that step is shed.
RAISED_FLOOR_NS = 200_000

BY_NAME = {step.name: step for step in STEPS}
#: Why something is shed.
CPU, MEMORY = "cpu", "memory"
_ABOVE = {CPU: "its CPU budget", MEMORY: "its memory budget"}


def overlap_ns(intervals: list[list[int]], start: int, end: int) -> int:
    """ns of [start, end) that lie in any of these intervals, which are disjoint."""
    return sum(max(0, min(end, until) - max(start, since)) for since, until in intervals)


def were_seen(requests: Table, meta: Meta) -> npt.NDArray[np.bool_]:
    """Which REQUEST rows lie wholly in times with probes on: what is normal is learned from those."""
    seen = np.ones(len(requests), bool)
    start = began(requests)
    for since, until in meta.probes_off:
        seen &= (start >= until) | (requests["end_mono_ns"] <= since)
    return seen


def shed_during(meta: Meta, start: int, end: int) -> tuple[Shed, ...]:
    """What was shed during some of [start, end), in the order of the table."""
    found: dict[str, str] = {}
    for key, intervals in meta.shed.items():
        name, _, why = key.partition("/")
        if any(since < end and until > start for since, until in intervals):
            found.setdefault(name, why)
    return tuple(Shed(step.name, found[step.name]) for step in STEPS if step.name in found)


def in_words(one: Shed) -> str:
    """What a verdict lacks of it, and why; "" where it lacks nothing."""
    step = BY_NAME[one.step]
    above = _ABOVE.get(one.why, "its budget")
    return f"{step.unsaid}: {step.what} were shed, the agent was above {above}" if step.unsaid else ""
