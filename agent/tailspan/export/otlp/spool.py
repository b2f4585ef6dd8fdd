"""Batches of one signal that wait for their backend: first in, first out, on disk, and bounded.

What :meth:`Spool.put` has returned from survives a killed process: the kernel has it. A power cut may cost what
the kernel had not written yet. Full, the oldest file goes. While the disk takes nothing, batches wait in memory.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

from tailspan.export.otlp import files, record
from tailspan.export.otlp.files import Mark, Segment
from tailspan.export.otlp.record import NOTHING, Batch, Counts, Record
from tailspan.log import once_per
from tailspan.wire.otlp import Origin

log = logging.getLogger(__name__)

SPOOL_FULL = "spool_full"  #: the oldest made room for newer ones
DAMAGED = "damaged"  #: it was stored, and cannot be read any more
TOO_LARGE = "too_large"  #: it alone is larger than the spool may be, or than a record can be
SHUTDOWN = "shutdown"  #: it came after the end
KILLED = "killed"  #: it waited in memory when the process was killed

#: What waits in memory while the disk takes nothing.
MEMORY_BYTES = 8 << 20
#: The spool is full by whole files: one is this share of it, within bounds.
SEGMENT_SHARE = 1 / 8
SEGMENT_BYTES = (1 << 16, 1 << 24)


@dataclass(slots=True)
class _Taken:
    """The batch that is being sent."""

    batch: Batch
    record: Record | None  # None: only memory has it


@dataclass(frozen=True, slots=True)
class SpoolState:
    size_bytes: int  #: on disk with what describes them
    waiting: Counts
    oldest_unix_ns: int  #: when the one that is sent next was put in; 0: there is none
    dropped: Counter[
        tuple[Origin, str]
    ]  #: items that were lost, by reason: an errno's name in lower case, or as above
    dropped_verdicts: Counter[str]


class Spool:
    """Thread-safe for any number that put and one that takes. Nothing raises; what is lost is counted."""

    def __init__(self, folder: Path, max_bytes: int, memory_bytes: int = MEMORY_BYTES) -> None:
        self.max_bytes = max_bytes
        self._dropped: Counter[tuple[Origin, str]] = Counter()
        self._dropped_verdicts: Counter[str] = Counter()
        self._folder = folder
        self._memory_bytes = memory_bytes
        least, most = SEGMENT_BYTES
        self._segment_bytes = min(max(least, int(max_bytes * SEGMENT_SHARE)), most)
        self._lock = threading.Lock()
        self._segments: deque[Segment] = deque()
        self._mark_fd = self._write_fd = self._read_fd = -1
        self._offset = 0  # in the first segment, of what is taken next
        self._passed = self._written = self._loose = NOTHING
        self._memory: deque[Batch] = deque()
        self._in_memory = 0  # bytes
        self._why_not_disk = ""
        self._taken: _Taken | None = None
        self._closed = False
        if folder.is_dir():
            try:
                self._recover()
            except OSError as error:
                log.warning("what waits in %s cannot be sent: %s", folder, error)

    def put(self, batch: Batch) -> None:
        """Keep a batch. Where it goes when neither disk nor memory takes it, it is counted."""
        with self._lock:
            reason = self._why_not(batch)
            if reason:
                self._drop(batch.counts, reason)
                return
            self._memory.append(batch)
            self._in_memory += len(batch.payload)
            self._loose = self._loose.plus(batch.counts)
            self._to_disk()
            while self._in_memory > self._memory_bytes:
                self._drop(self._out_of_memory().counts, self._why_not_disk)
            if self._memory:
                self._write_mark()

    def peek(self) -> Batch | None:
        """The oldest batch: the same one until :meth:`done`. None: nothing waits."""
        with self._lock:
            if self._taken is None and not self._closed:
                self._taken = self._take()
            return self._taken.batch if self._taken else None

    def done(self) -> None:
        """The batch that :meth:`peek` gave is delivered, or counted: it is forgotten."""
        with self._lock:
            taken, self._taken = self._taken, None
            if taken is None or self._closed:
                return
            if taken.record is None:
                self._loose = self._loose.since(taken.batch.counts)
            else:
                self._offset, self._passed = taken.record.end, taken.record.after
            self._write_mark()

    def state(self) -> SpoolState:
        with self._lock:
            loose = self._taken.batch if self._taken and self._taken.record is None else None
            return SpoolState(
                max(0, sum(segment.size for segment in self._segments) - self._offset)
                + self._in_memory
                + (len(loose.payload) if loose else 0),
                self._written.since(self._passed).plus(self._loose),
                self._taken.batch.created_unix_ns if self._taken else 0,
                self._dropped.copy(),
                self._dropped_verdicts.copy(),
            )

    def close(self) -> None:
        """Keep what waits for the next start; what the disk does not take is counted."""
        with self._lock:
            if self._closed:
                return
            if self._taken and self._taken.record is None:
                self._memory.appendleft(self._taken.batch)
                self._in_memory += len(self._taken.batch.payload)
                self._taken = None
            self._to_disk()
            while self._memory:
                self._drop(self._out_of_memory().counts, self._why_not_disk)
            self._closed = True
            self._write_mark()
            for fd in (self._write_fd, self._read_fd, self._mark_fd):
                if fd >= 0:
                    os.close(fd)
            self._write_fd = self._read_fd = self._mark_fd = -1

    def _why_not(self, batch: Batch) -> str:
        if self._closed:
            return SHUTDOWN
        if record.HEADER_SIZE + len(batch.payload) > self.max_bytes or not record.fits(batch):
            return TOO_LARGE
        return ""

    # --- writing --------------------------------------------------------------------------------------------

    def _to_disk(self) -> None:
        """All that memory has, in order, until the disk takes no more."""
        while self._memory:
            try:
                self._append(self._memory[0])
            except OSError as error:
                self._why_not_disk = errno.errorcode.get(error.errno or 0, "EIO").lower()
                once_per(60, f"spool {self._folder}", log, "%s takes nothing: %s", self._folder, error)
                return

    def _append(self, batch: Batch) -> None:
        if self._mark_fd < 0:
            self._recover()
        data = record.encode(batch, self._written)
        self._make_room(len(data))
        segment = self._segment_for(len(data))
        try:
            files.write_all(self._write_fd, data)
        except OSError:
            try:
                os.ftruncate(self._write_fd, segment.size)
            except OSError:  # half a record stays behind: go on in another file
                self._end_segment()
            raise
        segment.size += len(data)
        self._out_of_memory()
        self._written = self._written.plus(batch.counts)
        self._write_mark()

    def _out_of_memory(self) -> Batch:
        batch = self._memory.popleft()
        self._in_memory -= len(batch.payload)
        self._loose = self._loose.since(batch.counts)
        return batch

    def _make_room(self, length: int) -> None:
        while self._segments and sum(segment.size for segment in self._segments) + length > self.max_bytes:
            if self._taken and self._taken.record:  # it lies in the file that goes, and is still being sent
                self._passed = self._taken.record.after
                self._loose = self._loose.plus(self._taken.batch.counts)
                self._taken.record = None
            self._remove_first(SPOOL_FULL)

    def _segment_for(self, length: int) -> Segment:
        if self._write_fd >= 0:
            segment = self._segments[-1]
            there = os.fstat(self._write_fd).st_nlink > 0  # else somebody has deleted it under us
            if there and (not segment.size or segment.size + length <= self._segment_bytes):
                return segment
            self._end_segment()
        newest = self._segments[-1].begun_unix_ns if self._segments else 0
        begun_unix_ns = max(time.time_ns(), newest + 1)  # names stay in order when the wall clock steps back
        segment, self._write_fd = Segment.create(self._folder, begun_unix_ns, self._written)
        self._segments.append(segment)
        return segment

    def _end_segment(self) -> None:
        os.close(self._write_fd)
        self._write_fd = -1

    # --- reading --------------------------------------------------------------------------------------------

    def _take(self) -> _Taken | None:
        while self._segments:
            found = self._find()
            if found is None:
                if len(self._segments) == 1 and self._write_fd >= 0:
                    self._pass(self._written, DAMAGED)
                    self._offset = self._segments[0].size
                    break
                self._remove_first(DAMAGED)
            elif not self._passed.batches <= found.before.batches < self._written.batches:
                self._offset = found.end  # met before, or never put in: the file was tampered with
            else:
                self._pass(found.before, DAMAGED)
                return _Taken(found.batch, found)
        if not self._segments:  # somebody has taken them away
            self._pass(self._written, DAMAGED)
        if not self._memory:
            return None
        batch = self._memory.popleft()
        self._in_memory -= len(batch.payload)
        return _Taken(batch, None)

    def _find(self) -> Record | None:
        if self._offset >= self._segments[0].size:
            return None
        try:
            if self._read_fd < 0:
                self._read_fd = self._segments[0].open()
        except OSError as error:
            log.warning("%s cannot be read any more: %s", self._segments[0].path, error)
            return None
        return record.find(self._segments[0].reader(self._read_fd), self._offset)

    def _remove_first(self, reason: str) -> None:
        """Take the first segment away; what it had that nobody has taken is counted under ``reason``."""
        segment = self._segments.popleft()
        if self._read_fd >= 0:
            os.close(self._read_fd)
            self._read_fd = -1
        if not self._segments and self._write_fd >= 0:
            self._end_segment()
        self._offset = 0
        self._pass(self._segments[0].before if self._segments else self._written, reason)
        self._write_mark()
        with contextlib.suppress(OSError):
            segment.path.unlink()

    def _pass(self, to: Counts, reason: str) -> None:
        """Go on to a point of what was put in; what lies in between is lost."""
        lost = to.since(self._passed)
        self._passed = to
        if any(lost):
            self._drop(lost, reason)
            self._write_mark()

    def _drop(self, lost: Counts, reason: str) -> None:
        for origin, items in ((Origin.OWN, lost.own), (Origin.FORWARDED, lost.forwarded)):
            if items:
                self._dropped[origin, reason] += items
        if lost.verdicts:
            self._dropped_verdicts[reason] += lost.verdicts

    # --- between two lives ----------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Go on where the process before has stopped, however it has. Raises OSError."""
        fd, raw = files.open_mark(self._folder)
        try:
            known = Mark.decode(raw)
            mark = known or Mark()
            segments, written = files.segments(self._folder, mark.written)
            while segments and segments[0].begun_unix_ns < mark.segment:  # read, and not taken away any more
                segments.popleft().path.unlink(missing_ok=True)
        except OSError:
            os.close(fd)
            raise
        if known is None and (raw or segments):
            log.warning("%s/mark is damaged: what was read last may be sent twice", self._folder)
        self._mark_fd, self._segments, self._written = fd, segments, written
        self._passed = mark.passed if known else segments[0].before if segments else NOTHING
        self._offset = mark.offset if segments and segments[0].begun_unix_ns == mark.segment else 0
        # What was written last may not have been marked any more: before, it waited in memory.
        self._drop(mark.loose.since(written.since(mark.written)), KILLED)
        self._write_mark()

    def _write_mark(self) -> None:
        if self._mark_fd < 0:
            return
        segment = self._segments[0].begun_unix_ns if self._segments else 0
        mark = Mark(segment, self._offset, self._passed, self._written, self._loose)
        try:
            os.pwrite(self._mark_fd, mark.encode(), 0)
        except OSError as error:
            once_per(60, f"mark {self._folder}", log, "some may be sent twice: %s: %s", self._folder, error)
