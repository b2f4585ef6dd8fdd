"""The body of a request, whole and unpacked, or refused before it takes more memory than it may."""

from __future__ import annotations

import re
import zlib
from email.message import Message
from io import BufferedIOBase

from tailspan.collect.otlp.decode import MAX_BODY_BYTES
from tailspan.errors import MessageError

#: Of a chunk's size with its extensions, and of a trailer.
_MAX_LINE = 1024
_MAX_TRAILERS = 64
#: A gzip file may be several in a row; nobody sends more than one.
_MAX_MEMBERS = 8
_GZIP = 31


def read_body(stream: BufferedIOBase, headers: Message) -> bytes:
    """As it was before it was compressed.

    Raises :class:`MessageError` with reason ``length_required``, ``oversized``, ``malformed`` or ``unsupported``,
    and what ``stream`` raises.
    """
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("gzip", "identity", ""):
        raise MessageError("unsupported", f"Content-Encoding {encoding[:40]!r}, this is for gzip or none")
    body = _read_chunks(stream) if "Transfer-Encoding" in headers else _read_length(stream, headers)
    return gunzip(body) if encoding == "gzip" else body


def gunzip(packed: bytes) -> bytes:
    """Raises :class:`MessageError` for what is no gzip, or too long when it is unpacked."""
    unpacked = bytearray()
    for _ in range(_MAX_MEMBERS):
        member = zlib.decompressobj(_GZIP)
        try:
            unpacked += member.decompress(packed, MAX_BODY_BYTES + 1 - len(unpacked))
        except zlib.error as error:
            raise MessageError("malformed", f"gzip: {error}") from None
        if len(unpacked) > MAX_BODY_BYTES:
            raise MessageError("oversized", f"more than {MAX_BODY_BYTES} bytes when unpacked")
        if not member.eof:
            raise MessageError("malformed", "gzip: it is cut short")
        packed = member.unused_data
        if not packed:
            return bytes(unpacked)
    raise MessageError("malformed", f"gzip: more than {_MAX_MEMBERS} members")


def _read_length(stream: BufferedIOBase, headers: Message) -> bytes:
    told = headers.get("Content-Length")
    if told is None:
        raise MessageError("length_required", "neither Content-Length nor chunks")
    if not re.fullmatch("[0-9]{1,18}", told):
        raise MessageError("malformed", "Content-Length is no number")
    return _read(stream, int(told))


def _read_chunks(stream: BufferedIOBase) -> bytes:
    body = bytearray()
    while size := _chunk_size(stream):
        _bound(len(body) + size)
        body += _read(stream, size)
        if stream.readline(_MAX_LINE).rstrip(b"\r\n"):
            raise MessageError("malformed", "a chunk is longer than it says")
    for _ in range(_MAX_TRAILERS):
        if not stream.readline(_MAX_LINE).rstrip(b"\r\n"):
            return bytes(body)
    raise MessageError("malformed", "too many trailers")


def _chunk_size(stream: BufferedIOBase) -> int:
    match = re.match(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;|\r?\n)", stream.readline(_MAX_LINE))
    if not match:
        raise MessageError("malformed", "a chunk without its size")
    return int(match[1], 16)


def _read(stream: BufferedIOBase, size: int) -> bytes:
    _bound(size)
    body = stream.read(size)
    if len(body) < size:
        raise MessageError("malformed", f"{len(body)} of {size} bytes came")
    return body


def _bound(size: int) -> None:
    if size > MAX_BODY_BYTES:
        raise MessageError("oversized", f"{size} bytes, at most {MAX_BODY_BYTES}")
