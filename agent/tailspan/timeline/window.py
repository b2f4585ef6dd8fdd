"""The live window: everything of the last seconds, in bounded memory, from which evidence is cut.

Rows are kept as they came, batch by batch; sorting is done once per cut. Beyond the bound the oldest go, and that
is a loss like any other: counted, and shown on every verdict whose window it touches.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from tailspan.timeline.evidence import TABLES, Table
from tailspan.timeline.tables import LOSS, LOSS_WINDOW, join


@dataclass(slots=True)
class _Chunk:
    rows: Table
    end: int  # latest time in it
    reach: int  # ... and in all chunks before it


class Column:
    """One table of the window. ``start`` and ``end`` name the fields that bound a row in time."""

    def __init__(self, name: str, start: str, end: str, max_rows: int) -> None:
        self.dtype = TABLES[name]
        self._start, self._end = start, end
        self._max_rows = max_rows
        self._chunks: deque[_Chunk] = deque()
        self.rows = 0

    def append(self, rows: Table) -> None:
        if len(rows):
            end = int(rows[self._end].max())
            reach = max(end, self._chunks[-1].reach) if self._chunks else end
            self._chunks.append(_Chunk(rows, end, reach))
            self.rows += len(rows)

    def evict(self, before_mono_ns: int) -> tuple[int, int]:
        """Forget what ended before; and, beyond the bound, the oldest. (rows dropped for the bound, their end)."""
        dropped, until = 0, 0
        while self._chunks and self._chunks[0].end < before_mono_ns:
            self.rows -= len(self._chunks.popleft().rows)
        while self.rows > self._max_rows and len(self._chunks) > 1:
            chunk = self._chunks.popleft()
            self.rows -= len(chunk.rows)
            dropped, until = dropped + len(chunk.rows), max(until, chunk.end)
        return dropped, until

    def cut(self, start: int, end: int) -> Table:
        """Rows that overlap ``[start, end]``, in the order they came."""
        parts = []
        for chunk in reversed(self._chunks):
            if chunk.reach < start:
                break
            if chunk.end < start:
                continue
            overlaps = (chunk.rows[self._end] >= start) & (chunk.rows[self._start] <= end)
            if overlaps.any():
                parts.append(chunk.rows[overlaps])
        return join(parts[::-1], self.dtype)


class Window:
    """``seconds`` and ``max_rows`` (per table) bound it."""

    def __init__(self, seconds: float = 30.0, max_rows: int = 200_000) -> None:
        self._keep_ns = int(seconds * 1e9)
        self.cycles = Column("cycles", "run_mono_ns", "on_mono_ns", max_rows)
        self.slices = Column("slices", "start_mono_ns", "end_mono_ns", max_rows)
        self.activations = Column("activations", "start_mono_ns", "end_mono_ns", max_rows)
        self.losses = Column("losses", "start_mono_ns", "end_mono_ns", max_rows)
        self.sockets = Column("sockets", "from_mono_ns", "to_mono_ns", max_rows)
        self.blocks = Column("blocks", "queued_mono_ns", "completed_mono_ns", max_rows)
        self.incidents = Column("incidents", "mono_ns", "mono_ns", max_rows)
        self.pauses = Column("pauses", "start_mono_ns", "end_mono_ns", max_rows)
        self.samples = Column("samples", "start_mono_ns", "end_mono_ns", max_rows)
        self.gpu_calls = Column("gpu_calls", "enter_mono_ns", "exit_mono_ns", max_rows)
        self.gpu_samples = Column("gpu_samples", "start_mono_ns", "end_mono_ns", max_rows)
        self.gpu_processes = Column("gpu_processes", "start_mono_ns", "end_mono_ns", max_rows)
        self.gpu_events = Column("gpu_events", "mono_ns", "mono_ns", max_rows)
        self.columns = {name: column for name, column in vars(self).items() if isinstance(column, Column)}

    def evict(self, now_mono_ns: int) -> Table:
        """Drop what is older than the window, and what is beyond its bound; the latter as LOSS rows."""
        before = now_mono_ns - self._keep_ns
        rows = []
        for column in self.columns.values():
            dropped, until = column.evict(before)
            if dropped:
                rows.append((before, until, dropped, LOSS_WINDOW, 0))
        losses = np.array(rows, LOSS)
        self.losses.append(losses)
        return losses

    def sorted_cycles(self, start: int, end: int) -> Table:
        rows = self.cycles.cut(start, end)
        return rows[np.lexsort((rows["run_mono_ns"], rows["tid"]))]

    def sorted_slices(self, start: int, end: int) -> Table:
        rows = self.slices.cut(start, end)
        return rows[np.lexsort((rows["start_mono_ns"], rows["cpu"]))]


class Strings:
    """Interned strings, bounded: beyond ``limit`` everything new is ``(other)``, and counted."""

    def __init__(self, limit: int = 4096) -> None:
        self.all: list[str] = ["", "(other)"]
        self._index = {"": 0, "(other)": 1}
        self._limit = limit
        self.overflowed = 0

    def index(self, text: str) -> int:
        at = self._index.get(text)
        if at is None:
            if len(self.all) >= self._limit:
                self.overflowed += 1
                return 1
            at = self._index[text] = len(self.all)
            self.all.append(text)
        return at
