"""A segment file: found block by block, index by index, payload by payload."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import struct
import zlib
from typing import BinaryIO

from tailspan.errors import SegmentError
from tailspan.export import payload, scan, segment
from tailspan.export.segment import BLOCK_HEADER_SIZE, FILE_HEADER_SIZE, MAX_INDEX, BlockHeader, IndexRow
from tests.builders import sample_evidence, sample_verdict
from tests.fuzz import mutation
from tests.fuzz.target import Change, Target
from tests.fuzz.targets import evidence

_BLOCK = struct.Struct("<8sIIIIIqq")


@functools.cache
def _file() -> BinaryIO:
    return os.fdopen(os.memfd_create("segment"), "r+b")


def close() -> None:
    _file().close()
    _file.cache_clear()


def check(data: bytes) -> None:
    file = _file()
    file.seek(0)
    file.truncate(0)
    file.write(data)
    file.flush()
    told: list[str] = []
    try:
        found = list(scan.blocks(file, told.append))
    except SegmentError as error:
        assert str(error)
        return
    past = FILE_HEADER_SIZE
    for offset, header in found:
        assert offset >= past, "a block begins in the one before"
        past = offset + BLOCK_HEADER_SIZE + header.body_len
        assert past <= len(data), "a block goes on behind the file"
        _check_block(file, offset, header)
    assert len(told) <= len(found) + 1, "more is damaged than there is"


def _check_block(file: BinaryIO, offset: int, header: BlockHeader) -> None:
    assert header.index_len <= MAX_INDEX and header.raw_len <= payload.MAX_RAW
    try:
        rows = scan.read_index(file, (offset, header))
    except SegmentError:
        rows = []
    for row in rows:
        assert all(type(getattr(row, name)) is type(getattr(IndexRow(), name)) for name in IndexRow.__slots__)
    with contextlib.suppress(SegmentError):
        evidence.check_evidence(scan.read_payload(file, offset))


def seeds() -> dict[str, bytes]:
    header = segment.encode_file_header(1_763_000_000_000_000_000, "host-1")
    block = segment.encode_block(sample_evidence(), [IndexRow.of(sample_verdict())])
    return {
        "one": header + block,
        "between-damage": header + b"\x89tsBLK\r\n" + bytes(40) + block + block[: len(block) // 2],
        "empty": header,
    }


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    """One block's index, payload or header changed, and its lengths and checksums made true again."""
    at = data.find(segment.BLOCK_MAGIC, FILE_HEADER_SIZE)
    if at < 0 or len(data) < at + BLOCK_HEADER_SIZE or rng.random() < 0.1:
        return change(data, len(data) + 64)
    _, index_len, payload_len, raw_len, _, _, start, end = _BLOCK.unpack_from(data, at)
    first = at + BLOCK_HEADER_SIZE
    index, stored = data[first : first + index_len], data[first + index_len : first + index_len + payload_len]
    rest = data[first + index_len + payload_len :]
    act = rng.choice(("index", "payload", "stored", "length", "double"))
    if act == "index":
        index = mutation.msgpack_map(index, rng, change)
    elif act == "payload":
        raw = evidence.mutate(_inflated(stored), rng, change)
        stored, raw_len = zlib.compress(raw, 1), len(raw)
    elif act == "stored":
        stored = change(stored, len(stored) + 16)
    elif act == "length":
        raw_len = mutation.number(raw_len, rng) % (1 << 32)
    else:
        rest += data[at:]
    body = _BLOCK.pack(
        segment.BLOCK_MAGIC, len(index), len(stored), raw_len, zlib.crc32(index), zlib.crc32(stored), start, end
    )
    sealed = body + zlib.crc32(body).to_bytes(4, "little")
    if rng.random() < 0.1:
        sealed = change(sealed, len(sealed))
    return data[:at] + sealed + index + stored + rest


def _inflated(stored: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(stored, 1 << 20)
    except zlib.error:
        return b""


TARGET = Target(
    name="segment",
    reads="a segment file of the store, damaged or not, by `export.scan`, `export.segment` and `export.payload`",
    holds="blocks lie one behind the other within the file; an index row has its types; what is read back keeps "
    "the invariants of `evidence`; checksums are made true, so that what lies behind them is reached",
    sources=("tailspan.export.segment", "tailspan.export.scan", "tailspan.export.payload"),
    check=check,
    close=close,
    seeds=seeds,
    mutate=mutate,
    words=(segment.BLOCK_MAGIC, segment.FILE_MAGIC, b"sentence", b"wall_ns", b"\xca\x7f\xc0\0\0"),
    max_bytes=16384,
)
