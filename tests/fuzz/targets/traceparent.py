"""Headers of a request that say where it stands in its trace: ``traceparent`` and B3."""

from __future__ import annotations

import random
import re

from tailspan.client.trace import KNOWN_FLAGS, TraceContext, from_header, from_headers, parse
from tests.fuzz import frames
from tests.fuzz.target import Change, Target

_WRITTEN = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]")
_TRACE, _SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def check(data: bytes) -> None:
    pieces = frames.split(data)
    pairs = list(zip(pieces[::2], pieces[1::2], strict=False))
    _check_context(from_headers(pairs))
    _check_context(from_headers({name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}))
    for piece in pieces:
        context = from_header(piece)
        _check_context(context)
        known = parse(piece)
        if known is not None:
            assert (context.trace_id, context.parent_id) == known[:2], "it is not the caller's trace"


def _check_context(context: TraceContext) -> None:
    assert (len(context.trace_id), len(context.span_id), len(context.parent_id)) == (16, 8, 8)
    assert any(context.trace_id) and any(context.span_id), "an id of zeros"
    assert context.flags & ~KNOWN_FLAGS == 0
    written = context.traceparent()
    assert _WRITTEN.fullmatch(written), written
    assert parse(written) == (context.trace_id, context.span_id, context.flags), written


def seeds() -> dict[str, bytes]:
    headers = {
        "w3c": {"traceparent": f"00-{_TRACE}-{_SPAN}-01"},
        "w3c-later": {"Traceparent": f"cc-{_TRACE}-{_SPAN}-03-more"},
        "b3-single": {"b3": f"{_TRACE}-{_SPAN}-d-{_SPAN}"},
        "b3-denied": {"b3": "0"},
        "b3-several": {"X-B3-TraceId": _TRACE[16:], "X-B3-SpanId": _SPAN, "X-B3-Sampled": "true"},
        "b3-debug": {"x-b3-flags": "1"},
    }
    return {
        name: frames.join(text.encode() for pair in one.items() for text in pair) for name, one in headers.items()
    }


def _piece(which: int, piece: bytes, rng: random.Random, change: Change) -> bytes:
    return change(piece, len(piece) + 16)


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    return frames.mutate(data, rng, change, _piece)


TARGET = Target(
    name="traceparent",
    reads="headers of any caller, by `client.trace` in the worker",
    holds="ids have their lengths and are not zero, unknown flags are cleared, what is handed on parses to it",
    sources=("tailspan.client.trace",),
    check=check,
    seeds=seeds,
    mutate=mutate,
    words=(b"traceparent", b"b3", b"x-b3-traceid", b"x-b3-spanid", b"x-b3-sampled", b"x-b3-flags", b"-ff-"),
    max_bytes=512,
)
