"""Walking the blocks of one open segment, past damage and up to a tail that is still being written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from tailspan.errors import SegmentError
from tailspan.export import segment
from tailspan.export.segment import BLOCK_HEADER_SIZE, BLOCK_MAGIC, FILE_HEADER_SIZE, BlockHeader, IndexRow
from tailspan.timeline.evidence import Evidence

_STEP = 1 << 20

Located = tuple[int, BlockHeader]  #: offset of the block in its file


def blocks(file: BinaryIO, damaged: Callable[[str], None]) -> Iterator[Located]:
    """Every whole block, in file order. ``damaged`` is told of each stretch that is none.

    Raises :class:`SegmentError` where the file is no segment or of a newer schema.
    """
    # A few bytes of every other page are read: one by one they would be fetched from the disk.
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    file.seek(0)
    segment.decode_file_header(file.read(FILE_HEADER_SIZE))
    size = os.fstat(file.fileno()).st_size
    offset = FILE_HEADER_SIZE
    while offset + BLOCK_HEADER_SIZE <= size:
        header = _header_at(file, offset)
        if header is None:
            resumed = _next_block(file, offset + 1)
            damaged(f"{(resumed or size) - offset} bytes at {offset} are no block")
            offset = resumed or size
            continue
        end = offset + BLOCK_HEADER_SIZE + header.body_len
        if end > size:
            return  # being written now, or cut off by a power failure: all before it is whole
        yield offset, header
        offset = end


def read_index(file: BinaryIO, located: Located, naming: Sequence[bytes] = ()) -> list[IndexRow]:
    """As :func:`segment.decode_index`."""
    offset, header = located
    return segment.decode_index(header, _at(file, offset + BLOCK_HEADER_SIZE, header.index_len), naming)


def read_payload(file: BinaryIO, offset: int) -> Evidence:
    header = _header_at(file, offset)
    if header is None:
        raise SegmentError("no block there")
    payload_at = offset + BLOCK_HEADER_SIZE + header.index_len
    return segment.decode_payload(header, _at(file, payload_at, header.payload_len))


def _header_at(file: BinaryIO, offset: int) -> BlockHeader | None:
    return segment.decode_block_header(_at(file, offset, BLOCK_HEADER_SIZE))


def _at(file: BinaryIO, offset: int, length: int) -> bytes:
    """Not through the file's buffer, which would read 8 KiB for 60 bytes."""
    data = os.pread(file.fileno(), length, offset)
    while data and len(data) < length:  # a signal came in between
        more = os.pread(file.fileno(), length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _next_block(file: BinaryIO, offset: int) -> int:
    """Where the next undamaged block header is, from ``offset`` on; 0 where there is none."""
    while True:
        file.seek(offset)
        chunk = file.read(_STEP)
        at = chunk.find(BLOCK_MAGIC)
        while at >= 0:
            if _header_at(file, offset + at) is not None:
                return offset + at
            at = chunk.find(BLOCK_MAGIC, at + 1)
        if len(chunk) < _STEP:
            return 0
        offset += len(chunk) - len(BLOCK_MAGIC) + 1  # the magic may straddle two chunks
