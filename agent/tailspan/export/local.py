"""Raw segments on local disk: what was seen of each slow request, kept so that it can be explained later.

The writer appends and never raises; the reader only reads. The layout is in :mod:`tailspan.export.segment`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailspan.errors import CannotError, NotFoundError, SegmentError, UsageError
from tailspan.export import scan, segment
from tailspan.export.folder import make
from tailspan.export.scan import Located
from tailspan.export.segment import FILE_HEADER_SIZE, IndexRow
from tailspan.timeline.evidence import Evidence

log = logging.getLogger(__name__)

SUFFIX = ".tspan"
TOO_LARGE = "too_large"
UNENCODABLE = "unencodable"
#: A segment takes blocks for this share of the retention time, so that age can be enforced by whole files.
SEGMENT_AGE_SHARE = 1 / 8

Block = tuple[Evidence, Sequence[IndexRow]]


class SegmentWriter:
    """Appends blocks to the newest segment of a directory; deletes the oldest segments to stay within bounds.

    A failed write is a counted drop; the next append tries again. Data is synced when a segment is full or
    closed, so a power cut costs at most the newest segment's tail. For one thread.
    """

    def __init__(
        self, directory: Path, *, host: str, max_segment_bytes: int, max_total_bytes: int, max_age_s: float
    ) -> None:
        self.bound(max_segment_bytes, max_total_bytes, max_age_s)
        self.appended = 0  #: evidence
        self.dropped: Counter[str] = Counter()  #: evidence, by reason: an errno's name in lower case, or as above
        self.deleted_segments = 0
        self.deleted_bytes = 0
        self._directory = directory
        self._host = host
        self._fd = -1
        self._path = directory
        self._size = 0
        self._opened_mono_s = 0.0

    def bound(self, max_segment_bytes: int, max_total_bytes: int, max_age_s: float) -> None:
        """Keep so much from now on: what is there already goes with the next segment, or :meth:`expire`."""
        if not 0 < max_segment_bytes <= max_total_bytes:
            raise UsageError(
                f"a segment of {max_segment_bytes} bytes does not fit into {max_total_bytes} in total"
            )
        self._max_segment_bytes, self._max_total_bytes = max_segment_bytes, max_total_bytes
        self._max_age_s = max_age_s

    def append(self, evidence: Evidence, rows: Sequence[IndexRow]) -> bool:
        """Store one evidence; False, and a counted drop, where it cannot be."""
        reason = self._append(evidence, rows)
        if reason:
            self.dropped[reason] += 1
            log.warning("evidence not stored in %s: %s", self._directory, reason)
        else:
            self.appended += 1
        return not reason

    def expire(self) -> None:
        """Enforce age and total size, as every rotation does: for a host that has no slow requests."""
        if self._fd >= 0 and self._is_old():
            self.close()
        try:
            self._delete_oldest()
        except OSError as error:
            log.warning("cannot clean up %s: %s", self._directory, error)

    def close(self) -> None:
        if self._fd < 0:
            return
        try:
            os.fsync(self._fd)
        except OSError as error:
            log.warning("%s may not have reached the disk: %s", self._path, error)
        os.close(self._fd)
        self._fd = -1

    def _append(self, evidence: Evidence, rows: Sequence[IndexRow]) -> str:
        """The reason why it is dropped; "" when it is stored."""
        try:
            block = segment.encode_block(evidence, rows)
        except SegmentError:
            return TOO_LARGE
        except Exception:
            log.exception("evidence cannot be encoded")
            return UNENCODABLE
        if FILE_HEADER_SIZE + len(block) > self._max_segment_bytes:
            return TOO_LARGE
        try:
            if self._must_rotate(len(block)):
                self.close()
                self._open()
            self._write(block)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, "EIO").lower()
        return ""

    def _must_rotate(self, length: int) -> bool:
        if self._fd < 0 or self._size + length > self._max_segment_bytes or self._is_old():
            return True
        return os.fstat(self._fd).st_nlink == 0  # somebody has deleted it under us

    def _is_old(self) -> bool:
        return time.monotonic() - self._opened_mono_s > self._max_age_s * SEGMENT_AGE_SHARE

    def _open(self) -> None:
        make(self._directory)
        self._delete_oldest()
        newest = max((int(path.stem) for path in _segments(self._directory)), default=0)
        created_unix_ns = max(time.time_ns(), newest + 1)  # names stay in order when the wall clock steps back
        path = self._directory / f"{created_unix_ns:020d}{SUFFIX}"
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            os.fchmod(fd, 0o640)
            _write_all(fd, segment.encode_file_header(created_unix_ns, self._host))
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        self._fd, self._path, self._size = fd, path, FILE_HEADER_SIZE
        self._opened_mono_s = time.monotonic()

    def _write(self, block: bytes) -> None:
        try:
            _write_all(self._fd, block)
        except OSError:
            try:
                os.ftruncate(self._fd, self._size)
            except OSError:  # half a block stays behind; the reader stops there, so go on in another file
                self.close()
            raise
        self._size += len(block)

    def _delete_oldest(self) -> None:
        """Drop what is past its age or leaves no room for a full segment; spare the one being written."""
        found = [(path, path.stat()) for path in sorted(_segments(self._directory))]
        total = sum(stat.st_size for _, stat in found)
        room = self._max_total_bytes - (0 if self._fd >= 0 else self._max_segment_bytes)
        oldest_mtime = time.time() - self._max_age_s
        for path, stat in found:
            if self._fd >= 0 and path == self._path:
                continue
            if total > room or stat.st_mtime < oldest_mtime:
                path.unlink()
                total -= stat.st_size
                self.deleted_segments += 1
                self.deleted_bytes += stat.st_size


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of an index, and where its evidence lies."""

    row: IndexRow
    path: Path
    offset: int  #: of the block


def _never(_: int) -> bool:
    return False


class SegmentReader:
    """Reads one segment file, or a directory of them; needs read permission only and locks nothing.

    Damage never stops it: what cannot be read is skipped and described in :attr:`corrupt`. Raises
    :class:`NotFoundError` where there is nothing, :class:`CannotError` without permission, and
    :class:`SegmentError` for a single file that is no segment or of a newer schema.
    """

    def __init__(self, path: Path) -> None:
        self.corrupt: list[str] = []  #: what the last pass had to skip
        self._path = path
        with _readable(path):
            self._is_directory = path.is_dir()
            if not self._is_directory:
                next(self._blocks(path, 0), None)

    def rows(
        self,
        since_unix_ns: int = 0,
        naming: Sequence[str] = (),
        enough: Callable[[int], bool] = _never,
    ) -> Iterator[Entry]:
        """Index rows, newest block first; only blocks that reach past ``since_unix_ns``. Reads no payload.

        ``naming``: only of blocks whose rows have one of these texts in them, in whatever field.
        ``enough``: asked before each file, of when it was last written to; where true, it ends there.
        """
        texts = [text.encode(errors="surrogateescape") for text in naming]
        for path, found in self._newest_first(since_unix_ns, enough):
            for offset, rows in self._indexes(path, found, texts):
                for row in reversed(rows):
                    yield Entry(row, path, offset)

    def load(self, entry: Entry) -> Evidence:
        """The evidence behind a row. Raises :class:`SegmentError` where it is damaged."""
        return self._load(entry.path, entry.offset)

    def evidence(self) -> Iterator[Evidence]:
        """All evidence, oldest first, with or without index rows: what ``replay`` goes through."""
        for path, found in reversed(list(self._newest_first(0))):
            for offset, _ in reversed(found):
                try:
                    yield self._load(path, offset)
                except SegmentError as error:
                    self.corrupt.append(str(error))

    def _newest_first(
        self, since_unix_ns: int, enough: Callable[[int], bool] = _never
    ) -> Iterator[tuple[Path, list[Located]]]:
        self.corrupt.clear()
        with _readable(self._path):
            paths = sorted(_segments(self._path), reverse=True) if self._is_directory else [self._path]
        for path in paths:
            try:
                with _readable(path):
                    if enough(path.stat().st_mtime_ns):
                        return
                    found = list(self._blocks(path, since_unix_ns))
            except NotFoundError:
                continue  # retention took it since the listing
            except SegmentError as error:
                if not self._is_directory:
                    raise
                self.corrupt.append(f"{error}; skipped")
                continue
            yield path, found[::-1]

    def _blocks(self, path: Path, since_unix_ns: int) -> Iterator[Located]:
        with open(path, "rb") as file:
            if self._is_directory and os.fstat(file.fileno()).st_size < FILE_HEADER_SIZE:
                return  # created this instant
            try:
                for located in scan.blocks(file, lambda what: self.corrupt.append(f"{path}: {what}")):
                    if located[1].end_unix_ns >= since_unix_ns:
                        yield located
            except SegmentError as error:
                raise SegmentError(f"{path}: {error}") from None

    def _indexes(
        self, path: Path, found: Sequence[Located], naming: Sequence[bytes]
    ) -> Iterator[tuple[int, list[IndexRow]]]:
        """(offset, rows) of these blocks, in their order."""
        try:
            with _readable(path), open(path, "rb") as file:
                for located in found:
                    if not os.fstat(file.fileno()).st_nlink:
                        return  # retention has taken it, and its evidence with it
                    try:
                        yield located[0], scan.read_index(file, located, naming)
                    except SegmentError as error:
                        self.corrupt.append(f"{path} at {located[0]}: {error}")
        except NotFoundError:
            return  # ... before it was opened

    def _load(self, path: Path, offset: int) -> Evidence:
        try:
            with _readable(path), open(path, "rb") as file:
                return scan.read_payload(file, offset)
        except SegmentError as error:
            raise SegmentError(f"{path} at {offset}: {error}") from None


def write_evidence_file(path: Path, blocks: Iterable[Block], *, host: str) -> None:
    """Write one file of the same format, for ``record``: others may not read it. Never overwrites.

    Raises :class:`CannotError` where the disk refuses, :class:`SegmentError` for evidence that is too large.
    """
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o640)) as file:
            file.write(segment.encode_file_header(time.time_ns(), host))
            for evidence, rows in blocks:
                file.write(segment.encode_block(evidence, rows))
    except OSError as error:
        raise CannotError(f"cannot write {path}: {error.strerror}") from None


def _segments(directory: Path) -> list[Path]:
    # Not Path.glob, which takes a directory that it may not read for an empty one.
    return [path for path in directory.iterdir() if path.suffix == SUFFIX and path.stem.isdecimal()]


def _write_all(fd: int, data: bytes) -> None:
    """One write() in the ordinary case; a short one goes on, which makes the kernel say why it was short."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFoundError(f"no segments at {path}") from None
    except PermissionError as error:
        owner = error.filename or path
        raise CannotError(
            f"cannot read {owner}: permission denied; be root or in the group that owns it"
        ) from None
    except OSError as error:
        raise CannotError(f"cannot read {path}: {error.strerror}") from None
