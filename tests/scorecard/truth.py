"""Ground truth: what the kernel's own counters say of the time that the verdicts explain."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import Verdict
from tailspan.timeline.evidence import Table
from tests.scorecard.load import Asked
from tests.scorecard.scene import UPSTREAM_PORT, Scene


@dataclass(frozen=True)
class Seen:
    """What is known of a fault's stretches: ``windows``, ns."""

    windows: Sequence[tuple[int, int]]
    counted: float  #: by the truth's counter in those
    requests: Sequence[tuple[Asked, Verdict]]  #: stored, in the stretches or beside them
    sockets: Table  #: SOCKET_WAIT rows, each once, of the whole run


@dataclass(frozen=True)
class Truth:
    """``compare``: what the kernel says and what was stored. ``counter``: only grows; read around each stretch."""

    words: str
    unit: str
    compare: Callable[[Seen], tuple[float, float]]
    counter: Callable[[Scene], float] = lambda scene: 0.0


def _time_of(*causes: Cause, together: bool = False) -> Callable[[Seen], tuple[float, float]]:
    """ms in which requests were in one of these causes. ``together``: those that waited together waited once."""

    def compare(seen: Seen) -> tuple[float, float]:
        steps = [
            (verdict.request.start_mono_ns + step.start_ns, verdict.request.start_mono_ns + step.end_ns)
            for _, verdict in seen.requests
            for step in verdict.waterfall
            if step.cause in causes
        ]
        waits = [steps] if together else [[step] for step in steps]
        told = sum(union_ns(wait, *window) for wait in waits for window in seen.windows)
        return seen.counted, told / 1e6

    return compare


def union_ns(intervals: list[tuple[int, int]], first: int, past: int) -> int:
    """What they cover of the window."""
    total, until = 0, first
    for start, end in sorted(intervals):
        total += max(0, min(end, past) - max(start, until))
        until = max(until, end)
    return total


def _run_delay(seen: Seen) -> tuple[float, float]:
    """Of each request's own thread: one that it waits for goes on when the request is over."""
    metered = [(asked.run_delay_ns, verdict) for asked, verdict in seen.requests if asked.run_delay_ns >= 0]
    told = sum(
        step.end_ns - step.start_ns
        for _, verdict in metered
        for step in verdict.waterfall
        if step.cause is Cause.RUN_QUEUE and step.tid == verdict.request.tid and not step.chain
    )
    return sum(delay for delay, _ in metered) / 1e6, told / 1e6


def _throttled(scene: Scene) -> float:
    fields = dict(line.split() for line in scene.cgroups.cpu_stat().read_text().splitlines())
    return (
        int(fields["throttled_time"]) / 1e6 if "throttled_time" in fields else int(fields["throttled_usec"]) / 1e3
    )


def _reading(scene: Scene) -> float:
    """Of the disk that the scene's folder is on: over its reads, how long each took."""
    device = scene.folder.stat().st_dev
    for line in Path("/proc/diskstats").read_text().splitlines():
        fields = line.split()
        if (int(fields[0]), int(fields[1])) == (os.major(device), os.minor(device)):
            return float(fields[6])
    return 0.0


def _retransmitted(scene: Scene) -> float:
    """By the worker, to its upstream, on the connections that are open."""
    sockets = scene.near.run("ss", "-tinH", "dst", scene.far.address)
    return float(sum(int(total) for total in re.findall(r"\bretrans:\d+/(\d+)", sockets)))


def _retransmitted_in_waits(seen: Seen) -> tuple[float, float]:
    rows = seen.sockets[seen.sockets["remote_port"] == UPSTREAM_PORT]
    at = rows["retransmit_mono_ns"]
    told = sum(rows["retransmits"][(at >= first) & (at < past)].sum() for first, past in seen.windows)
    return seen.counted, float(told)


RUN_DELAY = Truth("schedstat run delay of its thread", "ms", _run_delay)
THROTTLED = Truth("cpu.stat throttled time", "ms", _time_of(Cause.THROTTLED, together=True), _throttled)
READING = Truth("diskstats time of reads", "ms", _time_of(Cause.IO, Cause.PAGE_IN), _reading)
RETRANSMITTED = Truth("ss retransmitted segments", "segments", _retransmitted_in_waits, _retransmitted)
