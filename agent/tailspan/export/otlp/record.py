"""What one encoded batch looks like in a spool's file, and how it is found again in a damaged one. Pure.

::

    magic  crc of the header  length  crc of the payload | what was before it | what it is | payload

Each record says how much was put into the spool *before* it. So what a damaged stretch held is known from the next
record that is whole, to the item, and a record that is met twice is known too.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from tailspan.wire.otlp import Origin

MAGIC = b"TSO1"
_HEADER = struct.Struct("<4sIIIQQQQQIHBB")
_CHECKED_FROM = 8  #: of the header, what its crc covers
HEADER_SIZE = _HEADER.size
_ORIGINS = tuple(Origin)
_IS_JSON = 1
_SEARCHED_BYTES = 1 << 16
#: No count and no time of this century is larger: a record that says so is none of ours.
MOST = 1 << 62

#: What is at (offset, length) of a file; shorter where the file ends.
Read = Callable[[int, int], bytes]


class Counts(NamedTuple):
    """How much has been put into a spool, since it was made."""

    batches: int = 0
    own: int = 0  #: items
    forwarded: int = 0  #: items
    verdicts: int = 0

    def plus(self, other: Counts) -> Counts:
        return Counts(*(mine + its for mine, its in zip(self, other, strict=True)))

    def since(self, earlier: Counts) -> Counts:
        """Never negative: a file that was put back in place must not make losses undone."""
        return Counts(*(max(0, mine - its) for mine, its in zip(self, earlier, strict=True)))


NOTHING = Counts()


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded items of one signal, to be sent as they are."""

    payload: bytes
    items: int  #: spans, data points or log records
    origin: Origin
    is_json: bool = False
    verdicts: int = 0  #: that the items tell of
    created_unix_ns: int = field(default_factory=time.time_ns)

    @property
    def counts(self) -> Counts:
        own = self.items if self.origin is Origin.OWN else 0
        return Counts(1, own, self.items - own, self.verdicts)


@dataclass(frozen=True, slots=True)
class Record:
    """A batch as it lies in a file."""

    batch: Batch
    before: Counts
    end: int  #: offset behind it

    @property
    def after(self) -> Counts:
        return self.before.plus(self.batch.counts)


def fits(batch: Batch) -> bool:
    """Whether a record can tell of it."""
    return len(batch.payload) < 1 << 32 and 0 <= batch.items < 1 << 32 and 0 <= batch.verdicts < 1 << 16


def encode(batch: Batch, before: Counts) -> bytes:
    """The record of a batch that fits."""
    header = _HEADER.pack(
        MAGIC,
        0,
        len(batch.payload),
        zlib.crc32(batch.payload),
        batch.created_unix_ns,
        *before,
        batch.items,
        batch.verdicts,
        _ORIGINS.index(batch.origin),
        _IS_JSON if batch.is_json else 0,
    )
    crc = zlib.crc32(header[_CHECKED_FROM:])
    return b"".join((header[:4], crc.to_bytes(4, "little"), header[_CHECKED_FROM:], batch.payload))


def find(read: Read, offset: int) -> Record | None:
    """The first whole record at ``offset`` or behind it."""
    while offset >= 0:
        record = _whole(read, offset)
        if record is not None:
            return record
        offset = _next_magic(read, offset + 1)
    return None


def _whole(read: Read, offset: int) -> Record | None:
    header = read(offset, HEADER_SIZE)
    if len(header) < HEADER_SIZE or not header.startswith(MAGIC):
        return None
    _, crc, length, payload_crc, created_unix_ns, *rest = _HEADER.unpack(header)
    *before, items, verdicts, origin, flags = rest
    if zlib.crc32(header[_CHECKED_FROM:]) != crc or origin >= len(_ORIGINS) or max(before) >= MOST:
        return None
    payload = read(offset + HEADER_SIZE, length)
    if len(payload) < length or zlib.crc32(payload) != payload_crc:
        return None
    batch = Batch(payload, items, _ORIGINS[origin], bool(flags & _IS_JSON), verdicts, created_unix_ns)
    return Record(batch, Counts(*before), offset + HEADER_SIZE + length)


def _next_magic(read: Read, offset: int) -> int:
    """Where a record may begin, at ``offset`` or behind it; -1: nowhere."""
    while piece := read(offset, _SEARCHED_BYTES):
        at = piece.find(MAGIC)
        if at >= 0:
            return offset + at
        if len(piece) < len(MAGIC):
            break
        offset += len(piece) - len(MAGIC) + 1
    return -1
