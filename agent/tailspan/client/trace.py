"""W3C Trace Context: the ``traceparent`` header in and out. https://www.w3.org/TR/trace-context/"""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass

SAMPLED = 0x01
#: What is handed on of a caller's flags: sampled and random. Flags that are not known here must be cleared.
KNOWN_FLAGS = SAMPLED | 0x02

_HEADER = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE = bytes(16)
_NO_SPAN = bytes(8)

# Our own generator: a worker that seeds the global one would give every process the same ids.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


@dataclass(slots=True)
class TraceContext:
    """Where a request stands in its trace: ``span_id`` is the request's own, ``parent_id`` the caller's."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    flags: int

    def traceparent(self) -> str:
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-{self.flags:02x}"


def from_header(header: str | bytes | None) -> TraceContext:
    """The context of a request that came with ``header``; a new sampled trace if that is absent or invalid."""
    parent = parse(header)
    if parent is None:
        return TraceContext(_new_id(16), _new_id(8), _NO_SPAN, SAMPLED)
    trace_id, parent_id, flags = parent
    return TraceContext(trace_id, _new_id(8), parent_id, flags & KNOWN_FLAGS)


def parse(header: str | bytes | None) -> tuple[bytes, bytes, int] | None:
    """(trace id, parent id, flags) of a valid header, else None. Later versions: their first four fields."""
    if isinstance(header, bytes):
        header = header.decode("latin-1")
    match = _HEADER.fullmatch(header) if isinstance(header, str) else None
    if match is None:
        return None
    version, trace, parent, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    trace_id, parent_id = bytes.fromhex(trace), bytes.fromhex(parent)
    if trace_id == _NO_TRACE or parent_id == _NO_SPAN:
        return None
    return trace_id, parent_id, int(flags, 16)


def _new_id(length: int) -> bytes:
    while True:
        number = _random.getrandbits(8 * length)
        if number:
            return number.to_bytes(length, "big")
