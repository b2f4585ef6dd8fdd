"""How well a worker, or the host, is: 0 to 100, and in one word. Pure: what was seen of it lately in, a grade out.

A grade has parts, each from 0, as bad as it gets, to 1. One that is not known is absent, and never counts as bad.
The score is halfway between the weighted mean of the parts and the lowest of them: by their mean alone, two good
parts would hide a third that is terrible; by the lowest alone, nothing but that one would count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tailspan import config
from tailspan.timeline.gpus import GpuReading

LOAD, GPU_MEMORY, LATENCY = "load", "gpu_memory", "latency"
PARTS = (LOAD, GPU_MEMORY, LATENCY)

#: Who waits for a CPU for this share of the time that it could run, takes twice as long as it would alone.
WAITED_AT_WORST = 0.5
#: CPUs that a worker is taken to want at least: of one that does next to nothing most of the time is that of its
#: wake-ups, some microseconds each, and harms nobody.
LITTLE_CPU = 0.05
#: Share of slow requests that is as bad as it gets.
SLOW_AT_WORST = 0.25
#: Requests that were not slow, thought to be there besides those that were seen: one slow one of two says little.
GOOD_BEFORE = 10
#: Free share of a GPU's memory that is enough. Many runtimes take nine tenths at their start and keep it.
FREE_ENOUGH = 0.05
#: What NVML said longer ago is not known any more.
STALE_GPU_NS = 60_000_000_000
#: Points above a threshold that it takes to leave the worse state again.
MARGIN = 5.0


class State(StrEnum):
    UNKNOWN = "unknown"  #: no part is known
    HEALTHY = "healthy"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Part:
    name: str  #: one of PARTS
    value: float  #: 0 to 1
    reason: str  #: what it is made of, with numbers


@dataclass(frozen=True, slots=True)
class Grade:
    state: State = State.UNKNOWN
    score: float | None = None  #: 0 to 100; None where no part is known
    parts: tuple[Part, ...] = ()
    why: str = ""  #: what lowers it most; "" where nothing does


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """All processes of one service on this host, as if they were one."""

    service: str
    grade: Grade
    processes: Mapping[int, Grade] = field(default_factory=dict)  #: by tgid


@dataclass(frozen=True, slots=True)
class HostHealth:
    host: Grade = Grade()
    workers: tuple[WorkerHealth, ...] = ()  #: by service
    ungraded: int = 0  #: processes of workers beyond those that are told apart


def load(waited_ns: int, ran_ns: int, seen_ns: int) -> Part:
    """``waited_ns``: for a CPU, for quota, or stopped; summed over its threads, as ``ran_ns`` is, in ``seen_ns``.

    ``1 - share / WAITED_AT_WORST``, where the share is of the time in which they ran or waited. It says how much
    longer everything takes for want of a CPU, whoever has it. More threads than CPUs wait for each other: that is
    load too.
    """
    share = waited_ns / max(waited_ns + ran_ns, LITTLE_CPU * seen_ns, 1)
    reason = f"its threads waited for a CPU for {share:.0%} of the time that they could run"
    return Part(LOAD, _within(1 - share / WAITED_AT_WORST), reason)


def gpu_memory(gpus: Iterable[GpuReading], now_mono_ns: int) -> Part | None:
    """The fullest of the GPUs: ``free / FREE_ENOUGH``, where free is the share of its memory. A lost GPU is 0.

    None where of none of them it is known. Memory that a runtime has taken and does not use counts as used.
    """
    parts = [part for gpu in gpus if (part := _gpu_memory(gpu, now_mono_ns))]
    return min(parts, key=lambda part: part.value, default=None)


def _gpu_memory(gpu: GpuReading, now_mono_ns: int) -> Part | None:
    if gpu.lost:
        return Part(GPU_MEMORY, 0.0, f"{gpu.uuid} cannot be reached: {gpu.lost}")
    used, total = gpu.values.get("memory_used"), gpu.values.get("memory_total")
    if used is None or not total or now_mono_ns - gpu.taken_mono_ns > STALE_GPU_NS:
        return None
    value = _within((total - used) / total / FREE_ENOUGH)
    return Part(GPU_MEMORY, value, f"{used / total:.1%} of the memory of {gpu.uuid} is used")


def latency(served: int, slow: int, slo_ms: float = 0.0) -> Part | None:
    """``1 - share / SLOW_AT_WORST``, where the share is that of slow requests among all that ended.

    Slow is above ``slo_ms``; where there is no objective, slow for its like. None without a request: silence is no
    illness. A request that failed counts by its time alone.
    """
    if not served:
        return None
    share = slow / (served + GOOD_BEFORE)
    than = f"took more than {slo_ms:g} ms" if slo_ms else "were slow for their like"
    return Part(LATENCY, _within(1 - share / SLOW_AT_WORST), f"{slow} of {served} requests {than}")


def grade(parts: Iterable[Part | None], weights: config.Health, before: State = State.UNKNOWN) -> Grade:
    """``before``: its state until now. A part that weighs nothing does not count, and is shown."""
    known = tuple(part for part in parts if part)
    weight = dict(
        zip(PARTS, (weights.load_weight, weights.gpu_memory_weight, weights.latency_weight), strict=True)
    )
    counted = [part for part in known if weight[part.name]]
    if not counted:
        return Grade(parts=known)
    mean = sum(part.value * weight[part.name] for part in counted) / sum(weight[part.name] for part in counted)
    worst = min(counted, key=lambda part: part.value)
    score = round(50 * (mean + worst.value), 1)
    return Grade(state_of(score, weights, before), score, known, worst.reason if worst.value < 1 else "")


def worst_of(own: Grade, workers: Iterable[WorkerHealth], weights: config.Health, before: State) -> Grade:
    """The host's grade: its own, or the lowest of its workers' where that is lower, for it serves all of them."""
    scores = {each.grade.score: each for each in workers if each.grade.score is not None}
    lowest = min(scores, default=None)
    if lowest is None or (own.score is not None and own.score <= lowest):
        return own
    worst = scores[lowest]
    why = f"{worst.service}: {worst.grade.why}" if worst.grade.why else ""
    return Grade(state_of(lowest, weights, before), lowest, own.parts, why)


def state_of(score: float, thresholds: config.Health, before: State) -> State:
    """A state is left for a better one only MARGIN points above its threshold, so that it does not flap there."""
    if score < _threshold(thresholds.critical, before is State.CRITICAL):
        return State.CRITICAL
    if score < _threshold(thresholds.warning, before in (State.WARNING, State.CRITICAL)):
        return State.WARNING
    return State.HEALTHY


def _threshold(at: int, is_below: bool) -> float:
    return min(at + MARGIN, 100.0) if is_below and at else at


def _within(value: float) -> float:
    return round(min(max(value, 0.0), 1.0), 3)
