"""The one place that converts between the two clocks.

``*_mono_ns`` is CLOCK_MONOTONIC: what BPF stamps and what the client sends. ``*_unix_ns`` is CLOCK_REALTIME: what
OTLP, Prometheus and people use. NTP slews both alike; a step moves only the second, so the offset is measured
again whenever it is asked for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

#: include/linux/posix-timers_types.h: of a process's clocks, the one of its CPU time. clock_getcpuclockid(3).
_CPUCLOCK_SCHED = 2


@dataclass(frozen=True, slots=True)
class Offset:
    """``unix = mono + offset_ns``, off by at most ``error_ns``."""

    offset_ns: int
    error_ns: int


def measure(attempts: int = 5) -> Offset:
    """Read the one clock between two readings of the other; keep the tightest of some attempts."""
    best = Offset(0, 1 << 62)
    for _ in range(attempts):
        before = time.monotonic_ns()
        unix = time.time_ns()
        after = time.monotonic_ns()
        error = (after - before + 1) // 2
        if error < best.error_ns:
            best = Offset(unix - (before + after) // 2, error)
    return best


def process_cpu_ns(tgid: int) -> int:
    """CPU time of all threads that a process has and had. Raises OSError where there is none of that number."""
    return time.clock_gettime_ns((~tgid << 3) | _CPUCLOCK_SCHED)
