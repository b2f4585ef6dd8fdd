"""The files of a spool: segments of records, and the mark that says how far they have been read.

::

    FOLDER/mark                        how far, and how much was ever put in
    FOLDER/01763000000000000000.otlp   records, appended; the name is when the file was begun (Unix ns)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tailspan.export.folder import make
from tailspan.export.otlp import record
from tailspan.export.otlp.record import MOST, NOTHING, Counts, Read, Record

SUFFIX = ".otlp"

_MAGIC = b"TSM1"
_MARK = struct.Struct("<QQ4Q4Q4Q")
_HEADER_SIZE = len(_MAGIC) + 4


@dataclass(frozen=True, slots=True)
class Mark:
    segment: int = 0  #: begun_unix_ns of the one being read
    offset: int = 0  #: in it
    passed: Counts = NOTHING  #: what had been put in before that offset
    written: Counts = NOTHING  #: what has ever been written
    loose: Counts = NOTHING  #: what only memory has

    def encode(self) -> bytes:
        body = _MARK.pack(self.segment, self.offset, *self.passed, *self.written, *self.loose)
        return _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body

    @classmethod
    def decode(cls, raw: bytes) -> Mark | None:
        """None where it is damaged, or says what cannot be: more taken than was ever put in."""
        body = raw[_HEADER_SIZE:]
        if len(body) != _MARK.size or raw[:_HEADER_SIZE] != _MAGIC + zlib.crc32(body).to_bytes(4, "little"):
            return None
        segment, offset, *counts = _MARK.unpack(body)
        passed, written, loose = Counts(*counts[:4]), Counts(*counts[4:8]), Counts(*counts[8:])
        if max(counts) >= MOST or any(passed.since(written)):
            return None
        return cls(segment, offset, passed, written, loose)


def open_mark(folder: Path) -> tuple[int, bytes]:
    """The mark's descriptor, locked, and what is in it. Raises OSError; another process may hold the lock."""
    make(folder)
    fd = os.open(folder / "mark", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(fd, 0o640)
        return fd, os.pread(fd, _HEADER_SIZE + _MARK.size, 0)
    except OSError:
        os.close(fd)
        raise


@dataclass(slots=True)
class Segment:
    begun_unix_ns: int
    path: Path
    size: int
    before: Counts  #: what had been put in when it was begun

    @classmethod
    def create(cls, folder: Path, begun_unix_ns: int, before: Counts) -> tuple[Segment, int]:
        """It, and the descriptor that appends to it. Raises OSError."""
        path = folder / f"{begun_unix_ns:020d}{SUFFIX}"
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        os.fchmod(fd, 0o640)
        return cls(begun_unix_ns, path, 0, before), fd

    def open(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def reader(self, fd: int) -> Read:
        """Reads no more than the segment has, whatever length a damaged header asks for."""
        return lambda offset, length: _pread(fd, max(0, min(length, self.size - offset)), offset)

    def first(self) -> Record | None:
        with self._reading() as read:
            return record.find(read, 0)

    def last(self) -> Record | None:
        last = None
        with self._reading() as read:
            while found := record.find(read, last.end if last else 0):
                last = found
        return last

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Read]:
        """What cannot be read reads as the end of the file."""
        try:
            fd = self.open()
        except OSError:
            yield lambda offset, length: b""
            return
        try:
            yield self.reader(fd)
        finally:
            os.close(fd)


def segments(folder: Path, written: Counts) -> tuple[deque[Segment], Counts]:
    """All that are there, oldest first, and all that was ever put in, of which ``written`` at least is known."""
    paths = [path for path in folder.iterdir() if _is_segment(path)]
    found = deque(Segment(int(path.stem), path, path.stat().st_size, NOTHING) for path in sorted(paths))
    last = next(filter(None, (segment.last() for segment in reversed(found))), None)
    written = max(written, last.after) if last else written
    following = written
    for segment in reversed(found):
        first = segment.first()
        segment.before = following = min(following, first.before) if first else following
    return found, written


def _is_segment(path: Path) -> bool:
    return path.suffix == SUFFIX and path.stem.isdecimal() and int(path.stem) < MOST and path.is_file()


def write_all(fd: int, data: bytes) -> None:
    """One write() in the ordinary case; a short one goes on, which makes the kernel say why it was short."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _pread(fd: int, length: int, offset: int) -> bytes:
    try:
        return os.pread(fd, length, offset)
    except OSError:  # a disk that fails
        return b""
