"""Synthetic readings of GPUs: each value is another prime, so that one that is taken for another is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tailspan.timeline.gpus import CLOCK_EVENTS, GAUGES, TOTALS, GpuHost, GpuProcess, GpuReading, NvmlState

S = 1_000_000_000
TAKEN_MONO_NS = 1000 * S
UUID = "GPU-00000000-0000-4000-8000-000000000000"
MIG_UUID = "MIG-00000000-0000-4000-8000-000000000001"
WORKER = GpuProcess(tgid=8100, comm="worker", memory_bytes=23 << 20, sm=0.23)


def primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found


VALUES = {name: float(prime) for name, prime in zip((*GAUGES, *TOTALS), primes(99), strict=False)}
HELD_DOWN_S = {reason: float(prime) for reason, prime in zip(CLOCK_EVENTS, primes(99)[50:], strict=False)}


def sample_gpu(**changes: Any) -> GpuReading:
    """A GPU of which everything is known."""
    gpu = GpuReading(
        uuid=UUID,
        name="NVIDIA H200",
        index=3,
        taken_mono_ns=TAKEN_MONO_NS,
        values=VALUES,
        clock_events=HELD_DOWN_S,
        xids={79: 2, 31: 5},
        processes=(WORKER,),
    )
    return replace(gpu, **changes)


def sample_gpu_host(*gpus: GpuReading, **changes: Any) -> GpuHost:
    host = GpuHost(
        state=NvmlState.WORKS,
        driver="580.95.05",
        gpus=gpus,
        calls=1009,
        call_s=0.101,
        failures={"Not Supported": 7},
        attempts=3,
    )
    return replace(host, **changes)
