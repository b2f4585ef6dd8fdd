"""What it costs to read records: a storm in which every context switch of every thread is a record.

Compared with nothing: it is the CPU time of a process that does what the agent does (drain all rings on the
agent's timer), divided by the records it got. Nothing is done with them. The storm leaves the reader no idle
CPU, so records wait in the rings as long as they ever will; how many are lost then is part of the result. Three
storms: one at a pace that the default rings are meant for, one flat out, and that one with rings that hold it.

Noise: 10 to 20 % between rounds. The reader shares caches with a storm that has just written the records, and
wakes late when the scheduler lets it; larger batches are cheaper per record.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tailspan.collect.bpf.programs import Options
from tailspan.collect.bpf.source import BpfSource
from tailspan.wire.events import CPU_SLICE, THREAD_CYCLE, RecordClass
from tests.bench.page import number, span, table
from tests.bench.spread import Figures, spread
from tests.bench.storm import TICK_S, Storm, build, storm

#: More than one pair a CPU, so that threads also wait for one another: a switch is then a cycle and a slice.
PAIRS_PER_CPU = 3
#: Of each thread before it hands on: about 150,000 switches a second and CPU.
PACE_NS = 5_000
RING_HEADER_BYTES = 8
CYCLE_BYTES = RING_HEADER_BYTES + THREAD_CYCLE.itemsize
SLICE_BYTES = RING_HEADER_BYTES + CPU_SLICE.itemsize

DEFAULT_RINGS = Options(short_wait_ns=0)
LARGE_RINGS = Options(short_wait_ns=0, cycle_ring_bytes=8 << 20, slice_ring_bytes=4 << 20)

STORMS = {  # name -> (ns of work before a hand-over, rings)
    "paced": (PACE_NS, DEFAULT_RINGS),
    "flat out": (0, DEFAULT_RINGS),
    "flat out, large rings": (0, LARGE_RINGS),
}


def run(quick: bool) -> Figures:
    return measure(rounds=2, seconds=0.5) if quick else measure(rounds=9, seconds=3.0)


def measure(rounds: int, seconds: float) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        binary = build(Path(folder))
        storms = {
            name: _storm(binary, work_ns, options, rounds, seconds) for name, (work_ns, options) in STORMS.items()
        }
    return {
        "threads": 2 * PAIRS_PER_CPU * len(os.sched_getaffinity(0)),
        "rounds": rounds,
        "seconds_per_round": seconds,
        "tick_ms": TICK_S * 1e3,
        "cycle_bytes": CYCLE_BYTES,
        "slice_bytes": SLICE_BYTES,
        "storms": storms,
    }


def _storm(binary: Path, work_ns: int, options: Options, rounds: int, seconds: float) -> Figures:
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(BpfSource(options)))
        one = stack.enter_context(storm(binary, PAIRS_PER_CPU * len(os.sched_getaffinity(0)), work_ns))
        source.follow([one.pid])
        source.drain()
        readings = [_round(source, one, seconds) for _ in range(rounds)]

    def total(key: str) -> int:
        return sum(reading[key] for reading in readings)

    def each(figure: Callable[[Figures], float]) -> Figures:
        return spread([figure(reading) for reading in readings])

    return {
        "ring_kib_per_cpu": (options.cycle_ring_bytes + options.slice_ring_bytes) >> 10,
        "cycle_ring_records": options.cycle_ring_bytes // CYCLE_BYTES,
        **{key: total(key) for key in ("waits", "cycles", "cycles_lost", "slices", "slices_lost")},
        "bytes_per_record": (total("cycles") * CYCLE_BYTES + total("slices") * SLICE_BYTES) / total("records"),
        "cpu_ns_per_record": each(lambda reading: reading["cpu_ns"] / reading["records"]),
        "drain_ns_per_record": each(lambda reading: reading["drain_ns"] / reading["records"]),
        "records_per_s": each(lambda reading: reading["records"] / reading["seconds"]),
        "switches_per_s": each(lambda reading: reading["waits"] / reading["seconds"]),
        "reader_cpu_percent": each(lambda reading: reading["cpu_ns"] / reading["seconds"] / 1e7),
        "longest_gap_ms": each(lambda reading: reading["longest_gap_ms"]),
    }


class _Reader:
    """Drains, and keeps count of what came, what was lost and the CPU time inside ``drain()``."""

    def __init__(self, source: BpfSource) -> None:
        self.cycles = self.slices = self.drain_ns = self.longest_gap_ns = 0
        self.lost = [0] * RecordClass.COUNT
        self._source = source
        self._last_ns = time.monotonic_ns()

    def drain(self) -> None:
        now = time.monotonic_ns()
        self.longest_gap_ns = max(self.longest_gap_ns, now - self._last_ns)
        self._last_ns = now
        before = time.thread_time_ns()
        batch = self._source.drain()
        self.drain_ns += time.thread_time_ns() - before
        self.cycles += len(batch.cycles)
        self.slices += len(batch.slices)
        for row in batch.losses:
            self.lost[row["klass"]] += int(row["count"])


def _round(source: BpfSource, one: Storm, seconds: float) -> Figures:
    """``waits`` is the kernel's own count of turns: each must have come as a cycle, or be counted as lost."""
    waits = _waits(source)
    reader = _Reader(source)
    start_s, cpu_ns = time.monotonic(), time.process_time_ns()
    one.run(seconds, reader.drain)
    cpu_ns = time.process_time_ns() - cpu_ns
    took_s = time.monotonic() - start_s
    return {
        "seconds": took_s,
        "cpu_ns": cpu_ns,
        "drain_ns": reader.drain_ns,
        "longest_gap_ms": reader.longest_gap_ns / 1e6,
        "waits": _waits(source) - waits,
        "records": reader.cycles + reader.slices,
        "cycles": reader.cycles,
        "cycles_lost": reader.lost[RecordClass.CYCLE],
        "slices": reader.slices,
        "slices_lost": reader.lost[RecordClass.SLICE],
    }


def _waits(source: BpfSource) -> int:
    return int(source.threads()["total_waits"].sum())


_ROWS: dict[str, Callable[[Figures], str]] = {
    "reader CPU a record, ns": lambda figures: span(figures["cpu_ns_per_record"]),
    "of it inside `drain()`, ns": lambda figures: span(figures["drain_ns_per_record"]),
    "records read a second": lambda figures: span(figures["records_per_s"]),
    "context switches a second": lambda figures: span(figures["switches_per_s"]),
    "reader CPU, % of one core": lambda figures: span(figures["reader_cpu_percent"]),
    "longest time between two drains, ms": lambda figures: span(figures["longest_gap_ms"]),
    "bytes a record, with its ring header": lambda figures: number(figures["bytes_per_record"]),
    "rings, KiB a CPU": lambda figures: number(figures["ring_kib_per_cpu"]),
    "turns the kernel counted": lambda figures: f"{figures['waits']:,}",
    "turns read": lambda figures: f"{figures['cycles']:,}",
    "**turns lost**": lambda figures: f"**{figures['cycles_lost']:,}**",
    "slices read": lambda figures: f"{figures['slices']:,}",
    "**slices lost**": lambda figures: f"**{figures['slices_lost']:,}**",
}


def render(figures: Figures) -> str:
    storms = figures["storms"]
    rows = [[label, *(cell(one) for one in storms.values())] for label, cell in _ROWS.items()]
    return f"""## Reading records

{figures["threads"]} threads hand bytes back and forth, {figures["rounds"]} rounds of
{number(figures["seconds_per_round"])} s. The floor for short waits is 0, so that every context switch of theirs
is a record: {figures["cycle_bytes"]} bytes for a turn of a thread, {figures["slice_bytes"]} for a slice of a
CPU that others waited for. One process drains every {number(figures["tick_ms"])} ms, on CPUs that the storm
leaves no idle moment.
*Paced*, each thread works for {PACE_NS / 1000:.0f} µs before it hands on.

{table(["", *storms], rows)}

What bounds it: copying the records out of the rings, in numpy, one array a ring and drain. No Python runs per
record. Records are lost when the reader comes later than a ring can hold: the default one holds
{storms["paced"]["cycle_ring_records"]:,} turns a CPU, and a reader that has to queue for a CPU comes late. What
is lost is counted, and marks the verdicts it touches. With the default floor (`probes.short_wait_us`) such a
storm gives next to no records at all: see *A context switch*."""
