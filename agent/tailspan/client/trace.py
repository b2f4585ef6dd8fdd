"""Where a request stands in its trace: W3C Trace Context in and out, and B3 in.

https://www.w3.org/TR/trace-context/ and https://github.com/openzipkin/b3-propagation
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SAMPLED = 0x01
#: What is handed on of a caller's flags: sampled and random. Flags that are not known here must be cleared.
KNOWN_FLAGS = SAMPLED | 0x02

_HEADER = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_B3 = re.compile(r"([0-9a-f]{16}|[0-9a-f]{32})-([0-9a-f]{16})(?:-([01d])(?:-[0-9a-f]{16})?)?")
#: Sampling decisions, of ``b3`` and of ``X-B3-Sampled``; some tracers spell the latter out.
_B3_FLAGS = {"0": 0, "1": SAMPLED, "d": SAMPLED, "false": 0, "true": SAMPLED}
_TRACE_HEADERS = frozenset(("traceparent", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-flags"))
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


#: Names and values as text or bytes: a mapping, or pairs as ASGI gives them.
Headers = Mapping[Any, Any] | Iterable[tuple[Any, Any]]


def from_header(header: str | bytes | None) -> TraceContext:
    """The context of a request that came with ``header``; a new sampled trace if that is absent or invalid."""
    return _of_child(parse(header) or (_NO_TRACE, _NO_SPAN, SAMPLED))


def from_headers(headers: Headers) -> TraceContext:
    """The context of a request that came with ``headers``: by ``traceparent``, else by B3, else a new trace.

    Names in any case. What is invalid is passed over. Raises only what ``headers`` itself does.
    """
    get = getattr(headers, "get", None)
    parent = parse(get("traceparent")) if get else None  # most often that is all: 2 µs less than to look at each
    if parent is None:
        given = _trace_headers(headers)
        parent = parse(given.get("traceparent")) or _parse_b3(given)
    return _of_child(parent or (_NO_TRACE, _NO_SPAN, SAMPLED))


def _of_child(parent: tuple[bytes, bytes, int]) -> TraceContext:
    """A span below ``parent``; without a trace id it begins a trace, for which the sampling decision holds."""
    trace_id, parent_id, flags = parent
    return TraceContext(trace_id if any(trace_id) else _new_id(16), _new_id(8), parent_id, flags & KNOWN_FLAGS)


def _trace_headers(headers: Headers) -> dict[str, str]:
    """The headers that say something about traces; of a repeated one the first."""
    items = getattr(headers, "items", None)  # http.client's are no Mapping
    found: dict[str, str] = {}
    for key, value in headers if items is None else items():
        name = _text(key).lower()
        if name in _TRACE_HEADERS:
            found.setdefault(name, _text(value))
    return found


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _parse_b3(headers: dict[str, str]) -> tuple[bytes, bytes, int] | None:
    """(trace id, parent id, flags), of zeros where only the decision came; None where the ids are invalid.

    The one header goes before the several. Trace ids of 64 bits are padded on the left.
    """
    single = headers.get("b3", "").lower()
    match = _B3.fullmatch(single)
    if match is not None:
        trace, span, decision = match.groups()
        return _b3(trace, span, _B3_FLAGS.get(decision, SAMPLED))
    if single in ("0", "1", "d"):
        return _NO_TRACE, _NO_SPAN, _B3_FLAGS[single]
    trace, span, sampled = (headers.get(f"x-b3-{name}", "").lower() for name in ("traceid", "spanid", "sampled"))
    debug = headers.get("x-b3-flags") == "1"
    flags = SAMPLED if debug else _B3_FLAGS.get(sampled, SAMPLED)
    if not trace and not span:
        return _NO_TRACE, _NO_SPAN, flags
    match = _B3.fullmatch(f"{trace}-{span}")
    return _b3(trace, span, flags) if match and not match[3] else None


def _b3(trace: str, span: str, flags: int) -> tuple[bytes, bytes, int] | None:
    trace_id, parent_id = bytes.fromhex(trace.zfill(32)), bytes.fromhex(span)
    return None if trace_id == _NO_TRACE or parent_id == _NO_SPAN else (trace_id, parent_id, flags)


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
