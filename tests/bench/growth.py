"""How the cost of what the agent does in Python grows: with threads, with requests, with what happens in one.

One of three sizes goes from 10² to 10⁵, the other two are held. Each stage is timed alone, in CPU time of one
thread, on synthetic evidence (``second.py``): records out of a ring, the look at all threads, the live window,
ledgers, verdicts, a stored block written and read. A power is fitted to what comes out: 1 is linear, 2 quadratic.

A fit over all sizes has the cost of a call in it, which is most of what a small size costs; so the last factor of
ten has a power of its own, and that is the one to look at. Noise: 5 to 10 %, which is 0.04 of that power.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tailspan.attribute.judge import judge
from tailspan.attribute.ledger import Account, account, ledgers
from tailspan.collect.bpf.ring import Ring, drain
from tailspan.config import Config
from tailspan.export import segment
from tailspan.export.segment import BLOCK_HEADER_SIZE, IndexRow
from tailspan.pipeline import MAX_REQUESTS
from tailspan.timeline.cut import narrow
from tailspan.timeline.evidence import Evidence, Table
from tailspan.timeline.threads import Threads
from tailspan.timeline.window import Window
from tailspan.wire.events import THREAD_CYCLE
from tests.bench import curves
from tests.bench.page import number, table
from tests.bench.second import SECOND, Shape, evidence
from tests.bench.spread import Figures, spread

SIZES = (100, 1_000, 10_000, 100_000)
#: One request in so many is slow.
SLOW = 100
#: Drains of the rings between two judgements, at the default `agent.tick_ms` and `agent.judge_ms`.
DRAINS = 16
#: A stage is repeated until it took so long, or so often.
ENOUGH_S, OFTEN = 0.5, 7
#: A power above it in the last factor of ten is more than linear, and no noise.
LINEAR = 1.15
PICTURE = "pictures/growth.svg"

RING_BYTES = 1 << 20
_RECORD = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Dimension:
    """What is varied. ``host``: the evidence of a size."""

    words: str
    held: str
    host: Callable[[int], Evidence]


def _with_threads(threads: int) -> Evidence:
    return evidence(1_000, Shape(sleepers=threads - SECOND.busy))


def _with_turns(turns: int) -> Evidence:
    """Eight requests of 4 s, which one batch runs: of each of the nine threads so many turns."""
    request_ns = 4_000_000_000
    turn_ns = request_ns // turns
    return evidence(
        8, Shape(handlers=8, executors=1, cpus=4, request_ns=request_ns, turn_ns=turn_ns, slice_ns=turn_ns)
    )


DIMENSIONS = {
    "threads": Dimension("followed threads", "1,000 requests, 10 turns each", _with_threads),
    "requests": Dimension("requests judged at once", "50 threads, 10 turns a request", evidence),
    "turns": Dimension("turns of a thread in one request", "9 threads, 8 requests", _with_turns),
}

STAGES = {
    "decode": "records out of rings",
    "threads": "the look at all threads",
    "window": "window: append, cut, evict",
    "ledgers": "ledgers of all requests",
    "verdicts": f"verdicts, one in {SLOW}",
    "write": "their block, written",
    "read": "their block, read",
}


def run(quick: bool) -> Figures:
    return measure(SIZES[:3] if quick else SIZES)


def measure(sizes: Sequence[int]) -> Figures:
    return {"dimensions": {name: _grown(dimension, sizes) for name, dimension in DIMENSIONS.items()}}


def _grown(dimension: Dimension, sizes: Sequence[int]) -> Figures:
    cells = [_cell(size, dimension.host(size)) for size in sizes]
    return {
        "words": dimension.words,
        "held": dimension.held,
        "cells": cells,
        "powers": {stage: _power(sizes, [cell["cpu_s"][stage]["median"] for cell in cells]) for stage in STAGES},
    }


def _cell(size: int, whole: Evidence) -> Figures:
    slow = narrow(whole, np.arange(0, len(whole.requests), SLOW))
    rows = [IndexRow.unjudged(slow, row) for row in range(len(slow.requests))]
    block = segment.encode_block(slow, rows)
    threads = Threads()
    threads.see(whole.open_threads)  # a live agent knows all but the new ones
    accounts: deque[Account] = deque(maxlen=1)

    def all_ledgers() -> None:
        accounts.append(account(whole))
        ledgers(accounts[0], len(whole.requests))

    return {
        "size": size,
        "threads": len(whole.open_threads),
        "requests": len(whole.requests),
        "turns": len(whole.cycles),
        "slow": len(slow.requests),
        "block_bytes": len(block),
        "cpu_s": {
            "decode": spread(_drained(whole.cycles)),
            "threads": _timed(lambda: _look(threads, whole)),
            "window": _timed(lambda: _window(whole)),
            "ledgers": _timed(all_ledgers),
            "verdicts": _timed(lambda: judge(slow)),
            "write": _timed(lambda: segment.encode_block(slow, rows)),
            "read": _timed(lambda: _read(block)),
        },
        "stretches": len(accounts[0].rows),
    }


def _power(sizes: Sequence[int], cpu_s: Sequence[float]) -> Figures:
    """``fitted``: of size, over all sizes; ``last``: of the last two alone."""
    x, y = np.log(sizes), np.log(cpu_s)
    last = (y[-1] - y[-2]) / (x[-1] - x[-2])
    return {"fitted": float(np.polyfit(x, y, 1)[0]), "last": float(last)}


def _timed(work: Callable[[], object]) -> Figures:
    """CPU seconds of this thread: what else the machine does meanwhile is not counted."""
    found: list[float] = []
    while len(found) < OFTEN and sum(found) < ENOUGH_S:
        before = time.thread_time()
        work()
        found.append(time.thread_time() - before)
    return spread(found)


# --- the stages -------------------------------------------------------------------------------------------------


def _look(threads: Threads, whole: Evidence) -> None:
    """What a judgement does with the look at all followed threads that comes before it."""
    threads.see(whole.open_threads)
    threads.forget_missing(whole.open_threads)
    threads.rows(int(whole.requests["start_mono_ns"].min()))


def _window(whole: Evidence) -> None:
    window = Window(max_rows=len(whole.cycles) + len(whole.slices))
    for name in ("cycles", "slices"):
        for part in np.array_split(getattr(whole, name), DRAINS):
            window.columns[name].append(part)
    start, end = int(whole.requests["start_mono_ns"].min()), int(whole.requests["end_mono_ns"].max())
    window.sorted_cycles(start, end)
    window.sorted_slices(start, end)
    window.evict(end)


def _read(block: bytes) -> None:
    header = segment.decode_block_header(block[:BLOCK_HEADER_SIZE])
    assert header is not None
    index_end = BLOCK_HEADER_SIZE + header.index_len
    segment.decode_index(header, block[BLOCK_HEADER_SIZE:index_end])
    segment.decode_payload(header, block[index_end:])


def _drained(rows: Table) -> list[float]:
    """CPU seconds to read them all, as many as a ring of the default size holds at a time."""
    with _ring(rows) as (held, drain):
        times = -(-len(rows) // held)
        found: list[float] = []
        while len(found) < OFTEN and sum(found) < ENOUGH_S:
            found.append(sum(drain() for _ in range(times)) * len(rows) / (held * times))
    return found


@contextmanager
def _ring(rows: Table) -> Iterator[tuple[int, Callable[[], float]]]:
    """A ring full of the first of them: how many, and what empties it and says how long that took.

    The same pages as the kernel's (``collect/bpf/ring.py``), in memory of this process.
    """
    page, header = mmap.PAGESIZE, _RECORD.pack(THREAD_CYCLE.itemsize, 0)
    stride = len(header) + THREAD_CYCLE.itemsize
    held = min(len(rows), RING_BYTES // stride)
    fd = os.memfd_create("ring", os.MFD_CLOEXEC)
    os.ftruncate(fd, 2 * page + 2 * RING_BYTES)
    os.pwrite(fd, b"".join(header + row.tobytes() for row in rows[:held]), 2 * page)
    os.pwrite(fd, struct.pack("<Q", held * stride), page)
    ring = Ring(fd, RING_BYTES, THREAD_CYCLE)

    def drained() -> float:
        os.pwrite(fd, bytes(8), 0)
        before = time.thread_time()
        found, _ = drain([ring], THREAD_CYCLE)
        took = time.thread_time() - before
        assert len(found) == held
        return took

    try:
        yield held, drained
    finally:
        ring.close()


# --- the page ---------------------------------------------------------------------------------------------------


def render(figures: Figures) -> str:
    parts = [_of(name, grown) for name, grown in figures["dimensions"].items()]
    together = "\n\n".join(parts)
    return f"""## Growth

CPU time of one thread, ms, on synthetic evidence of a busy host. One size is varied, the others are held. *Power*:
the cost grows with so high a power of the size, fitted over all sizes; *last*: over the last factor of ten, where
what a call costs by itself is no part of it any more. 1 is linear, 0 does not grow. Verdicts and blocks are of one
request in {SLOW}.

![CPU time by size, both on logarithmic scales]({PICTURE})

{together}

{_verdict(figures)}

What bounds it: a live agent meets no such sizes at once. It judges {MAX_REQUESTS:,} requests at a time, and its
window holds `window.max_rows` ({Config().window.max_rows:,}) rows of each table."""


def _of(name: str, grown: Figures) -> str:
    cells, last = grown["cells"], grown["cells"][-1]
    header = [f"**{grown['words']}** ({grown['held']})", *(f"{cell['size']:,}" for cell in cells)]
    header += ["power", "last", *_per(name)]
    rows = []
    for stage, words in STAGES.items():
        costs = [cell["cpu_s"][stage]["median"] for cell in cells]
        power = grown["powers"][stage]
        rows.append([words, *(number(cost * 1e3) for cost in costs)])
        rows[-1] += [f"{power['fitted']:.2f}", f"{power['last']:.2f}"]
        rows[-1] += [number(costs[-1] / last[each] * factor) for each, factor in _per(name).values()]
    return table(header, rows)


def _per(name: str) -> dict[str, tuple[str, float]]:
    """Heading -> (what the largest size's cost is divided by, and the unit's factor)."""
    if name == "threads":
        return {"a thread, ns": ("threads", 1e9)}
    return {"a turn, ns": ("turns", 1e9), "a request, µs": ("requests", 1e6)}


def steep(figures: Figures) -> list[tuple[str, str, float]]:
    """(dimension, stage, power) of what grows faster than its size at the end."""
    return [
        (name, stage, power["last"])
        for name, grown in figures["dimensions"].items()
        for stage, power in grown["powers"].items()
        if power["last"] > LINEAR
    ]


def _verdict(figures: Figures) -> str:
    found = steep(figures)
    largest = max(power["last"] for grown in figures["dimensions"].values() for power in grown["powers"].values())
    if not found:
        return f"Nothing grows faster than its size: the highest power at the end is {largest:.2f}."
    each = "; ".join(
        f"{STAGES[stage]}, with {figures['dimensions'][name]['words']}: {power:.2f}"
        for name, stage, power in found
    )
    return f"Faster than its size grows: {each}."


def draw(figures: Figures, file: Path) -> None:
    """The curves as a picture (SVG): a panel for each dimension."""
    panels = [
        curves.Panel(
            grown["words"],
            grown["held"],
            {
                STAGES[stage]: [
                    (cell["size"], cell["cpu_s"][stage]["median"] * 1e3)
                    for cell in grown["cells"]
                    if cell["cpu_s"][stage]["median"] > 0
                ]
                for stage in STAGES
            },
        )
        for grown in figures["dimensions"].values()
    ]
    file.write_text(curves.picture("CPU time by size", "ms", panels))


def per_unit(figures: Figures, dimension: str, stage: str, each: str) -> float:
    """Seconds of a stage at the largest size, for one of ``each``: ``turns``, ``requests``, ``threads``."""
    last = figures["dimensions"][dimension]["cells"][-1]
    return float(last["cpu_s"][stage]["median"] / last[each])
