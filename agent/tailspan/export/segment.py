"""The segment file: what is on disk, byte by byte. Pure; ``local`` does the I/O.

::

    file    magic, schema version, created_unix_ns, host, crc
    block   magic, lengths and CRCs of what follows, time range, crc | index | payload
    block   ...

A block is one :class:`Evidence`. Its index (msgpack, not compressed) is enough for listings and look-up; its
payload (:mod:`tailspan.export.payload`, zlib) is read only to explain. All integers are little-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import msgpack

from tailspan.attribute.judge import request_facts
from tailspan.attribute.verdict import Outcome, RequestFacts, Verdict
from tailspan.errors import SegmentError
from tailspan.export import payload
from tailspan.export.semconv import cause_name
from tailspan.timeline.evidence import Evidence
from tailspan.timeline.tables import SCHEMA_VERSION

FILE_MAGIC = b"\x89tsSEG\r\n"  # a high bit and both line ends, so that a text-mode copy is found out at once
BLOCK_MAGIC = b"\x89tsBLK\r\n"
MAX_INDEX = 1 << 20
MAX_PAYLOAD = payload.MAX_RAW

_FILE = struct.Struct("<8sIq64s")
_BLOCK = struct.Struct("<8sIIIIIqq")
_CRC = struct.Struct("<I")
FILE_HEADER_SIZE = _FILE.size + _CRC.size
BLOCK_HEADER_SIZE = _BLOCK.size + _CRC.size


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One judged request of a block: what lists show. A field that an older file lacks has its default."""

    trace_id: str = ""  #: hex
    span_id: str = ""
    request_id: str = ""
    name: str = ""
    model: str = ""
    service: str = ""
    status: str = ""
    pid: int = 0
    start_unix_ns: int = 0
    wall_ns: int = 0
    normal_ns: int = 0  #: median of its like
    threshold_ns: int = 0
    outcome: str = ""
    cause: str = "none"  #: :func:`~tailspan.export.semconv.cause_name`
    cause_ns: int = 0
    culprit: str = ""  #: its label
    confidence: float = 0.0
    sentence: str = ""
    join: str = "said"  #: how its thread is known
    broken: int = 0  #: spans of its trace that do not fit

    @classmethod
    def of(cls, verdict: Verdict) -> Self:
        return cls(
            **_of_request(verdict.request),
            normal_ns=verdict.like.p50_ns,
            threshold_ns=verdict.like.threshold_ns,
            outcome=str(verdict.outcome),
            cause=cause_name(verdict.cause),
            cause_ns=sum(part.ns for part in verdict.ledger if part.cause == verdict.cause),
            culprit=verdict.culprit.label if verdict.culprit else "",
            confidence=float(verdict.confidence),
            sentence=verdict.sentence,
        )

    @classmethod
    def unjudged(cls, evidence: Evidence, row: int) -> Self:
        """Of a request whose evidence is stored and that nobody has judged yet."""
        like = evidence.likes[row]
        return cls(
            **_of_request(request_facts(evidence, row)),
            normal_ns=like.p50_ns,
            threshold_ns=like.threshold_ns,
            outcome=str(Outcome.UNJUDGED),
            sentence="Not judged yet: one of many slow requests at once. Explain it by its id.",
        )


_INDEX_TYPES = {field.name: type(field.default) for field in fields(IndexRow)}


def _of_request(request: RequestFacts) -> dict[str, Any]:
    """The fields of an :class:`IndexRow` that the request itself gives."""
    names = ("trace_id", "span_id", "request_id", "name", "model", "service", "status", "pid", "join", "broken")
    return {name: getattr(request, name) for name in (*names, "start_unix_ns", "wall_ns")}


@dataclass(frozen=True, slots=True)
class FileHeader:
    version: int
    created_unix_ns: int
    host: str


@dataclass(frozen=True, slots=True)
class BlockHeader:
    index_len: int
    payload_len: int  #: as stored
    raw_len: int  #: decompressed
    index_crc: int
    payload_crc: int
    start_unix_ns: int  #: of the earliest request; 0 where there is none
    end_unix_ns: int

    @property
    def body_len(self) -> int:
        return self.index_len + self.payload_len


def encode_file_header(created_unix_ns: int, host: str) -> bytes:
    return _with_crc(_FILE.pack(FILE_MAGIC, SCHEMA_VERSION, created_unix_ns, host.encode()[:64]))


def decode_file_header(data: bytes) -> FileHeader:
    """Raises :class:`SegmentError`: not a segment, damaged, or of a newer schema."""
    if data[: len(FILE_MAGIC)] != FILE_MAGIC:
        raise SegmentError("not a tailspan segment")
    body = _without_crc(data, FILE_HEADER_SIZE)
    if body is None:
        raise SegmentError("its header is damaged")
    _, version, created_unix_ns, host = _FILE.unpack(body)
    if version > SCHEMA_VERSION:
        raise SegmentError(f"schema version {version}: this tailspan reads up to {SCHEMA_VERSION}; upgrade it")
    return FileHeader(version, created_unix_ns, host.rstrip(b"\0").decode(errors="replace"))


def encode_block(evidence: Evidence, rows: Sequence[IndexRow]) -> bytes:
    """Raises :class:`SegmentError` where the evidence is too large to be read back."""
    index = msgpack.packb([asdict(row) for row in rows])
    if len(index) > MAX_INDEX:
        raise SegmentError(f"an index of {len(index)} bytes is too large to store")
    compressor = zlib.compressobj(level=1)
    raw_len, pieces = 0, []
    for piece in payload.encode(evidence):
        raw_len += len(piece)
        pieces.append(compressor.compress(piece))
    pieces.append(compressor.flush())
    stored = b"".join(pieces)
    header = _BLOCK.pack(
        BLOCK_MAGIC,
        len(index),
        len(stored),
        raw_len,
        zlib.crc32(index),
        zlib.crc32(stored),
        *_time_range(evidence),
    )
    return b"".join((_with_crc(header), index, stored))


def decode_block_header(data: bytes) -> BlockHeader | None:
    """None where the bytes are not a whole, undamaged header with lengths in bounds."""
    body = _without_crc(data, BLOCK_HEADER_SIZE)
    if body is None or not body.startswith(BLOCK_MAGIC):
        return None
    header = BlockHeader(*_BLOCK.unpack(body)[1:])
    if header.index_len > MAX_INDEX or header.payload_len > MAX_PAYLOAD or header.raw_len > payload.MAX_RAW:
        return None
    return header


def decode_index(header: BlockHeader, data: bytes, naming: Sequence[bytes] = ()) -> list[IndexRow]:
    """Raises :class:`SegmentError` where the index is damaged.

    ``naming``: no rows at all where none of these texts (UTF-8) occurs in any of them, which is found out at once.
    """
    if zlib.crc32(data) != header.index_crc:
        raise SegmentError("index CRC differs")
    if naming and not any(text in data for text in naming):
        return []
    try:
        return [_index_row(body) for body in msgpack.unpackb(data, raw=False)]
    except SegmentError:
        raise
    except Exception as error:  # as in payload.decode
        raise SegmentError(f"index does not decode: {error!r:.200}") from None


def decode_payload(header: BlockHeader, data: bytes) -> Evidence:
    """Raises :class:`SegmentError` where the payload is damaged."""
    if zlib.crc32(data) != header.payload_crc:
        raise SegmentError("payload CRC differs")
    decompressor = zlib.decompressobj()
    try:
        raw = decompressor.decompress(data, header.raw_len + 1)  # one more, so that a longer stream shows
    except zlib.error as error:
        raise SegmentError(f"payload does not decompress: {error}") from None
    if len(raw) != header.raw_len or not decompressor.eof:
        raise SegmentError("payload is not as long as its header says")
    return payload.decode(raw)


def _index_row(body: Any) -> IndexRow:
    known = {name: value for name, value in body.items() if name in _INDEX_TYPES}
    for name, value in known.items():
        if type(value) is not _INDEX_TYPES[name]:
            raise SegmentError(f"index: {name} is a {type(value).__name__}")
    return IndexRow(**known)


def _time_range(evidence: Evidence) -> tuple[int, int]:
    requests, offset = evidence.requests, evidence.meta.unix_offset_ns
    if not len(requests):
        return 0, 0
    return int(requests["start_mono_ns"].min()) + offset, int(requests["end_mono_ns"].max()) + offset


def _with_crc(data: bytes) -> bytes:
    return data + _CRC.pack(zlib.crc32(data))


def _without_crc(data: bytes, size: int) -> bytes | None:
    if len(data) != size:
        return None
    body, crc = data[: -_CRC.size], data[-_CRC.size :]
    return body if _CRC.pack(zlib.crc32(body)) == crc else None
