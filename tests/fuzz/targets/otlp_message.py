"""One OTLP message: decoded, and its spans assembled to requests."""

from __future__ import annotations

import json
import random

from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tailspan.collect.otlp.assemble import SETTLE_NS, WAIT_NS, Assembler
from tailspan.collect.otlp.decode import MAX_PARTS, Export, decode
from tailspan.collect.otlp.spans import resource, worker_spans
from tailspan.errors import MessageError
from tailspan.timeline.inbox import Inbox, Received
from tailspan.timeline.threads import Threads
from tailspan.timeline.window import Strings
from tailspan.wire.otlp import Signal
from tailspan.wire.spans import MAX_RESOURCE, MAX_SPANS, MAX_TEXT, Request, encode
from tailspan.wire.spans import decode as decode_packet
from tests.fuzz import mutation
from tests.fuzz.target import Change, Target
from tests.unit.collect.otlp_messages import (
    OFFSET,
    REMOTE,
    SECOND,
    START_UNIX,
    as_json,
    logs,
    metrics,
    span,
    traces,
)

_TGID = 4711
_CAME = START_UNIX - OFFSET + 10 * SECOND
_REASONS = {"malformed", "oversized", "too_many_parts"}
_SIGNALS = tuple(Signal)
#: Reasons that tell of a span which is in a request all the same, or of an attribute.
_KEPT = ("trace_changed", "bad_value")


def check(data: bytes) -> None:
    if not data:
        return
    signal, is_json = _SIGNALS[data[0] % 3], bool(data[0] & 128)
    try:
        message, items = decode(signal, data[1:], is_json)
    except MessageError as error:
        assert error.reason in _REASONS, error.reason
        return
    assert items >= 0 and (is_json or items <= MAX_PARTS)
    if isinstance(message, ExportTraceServiceRequest):
        _check_spans(message)


def _check_spans(message: ExportTraceServiceRequest) -> None:
    assembler, told = Assembler(), 0
    for one in message.resource_spans:
        said = resource(one)
        assert len(said.attributes) <= MAX_RESOURCE and 0 <= said.pid < 1 << 31
        spans = worker_spans(one)
        told += len(spans)
        assembler.add(_TGID, spans, _CAME, OFFSET)
    received: list[Received] = []
    for now in (_CAME, _CAME + SETTLE_NS, _CAME + WAIT_NS):
        received += assembler.take(now)
    assert assembler.held == 0, f"{assembler.held} spans are held for ever"
    requests = [one.message for one in received if isinstance(one.message, Request)]
    in_requests = sum(1 + len(request.spans) for request in requests)
    gone = sum(count for reason, count in assembler.broken.items() if reason not in _KEPT)
    # those without a parent are in a request or not, and counted either way
    orphans = assembler.broken["no_parent"]
    assert in_requests + gone - orphans <= told <= in_requests + gone, (told, in_requests, assembler.broken)
    for request in requests:
        _check_request(request)
    rows = Inbox(Threads(), Strings()).rows(received)
    assert len(rows.requests) == len(requests)


def _check_request(request: Request) -> None:
    assert len(request.spans) <= MAX_SPANS
    assert 0 <= request.start_mono_ns <= request.end_mono_ns <= _CAME
    texts = (request.name, request.request_id, request.model, request.status)
    assert all(len(text) <= MAX_TEXT for text in texts)
    told = decode_packet(encode(request))  # what a worker's client may say, an OTLP sender may
    assert isinstance(told, Request) and told.spans == request.spans


def seeds() -> dict[str, bytes]:
    attributes: dict[str, object] = {
        "tailspan.thread.tid": 99,
        "tailspan.batch.id": 5512,
        "tailspan.model.name": "resnet",
        "http.request.header.x-request-id": ["r-7"],
        "error.type": "timeout",
        "network.peer.port": 41234,
    }
    trace = traces(
        span(1, 9, flags=REMOTE, attributes=attributes),
        span(2, 1, at=100, lasts=300),
        span(3, 2, at=200, lasts=100),
        resource={"service.name": "triton", "process.pid": 4711, "up": True, "load": 0.5},
    )
    orphans = traces(span(1), span(5, 4, lasts=9), span(6, 1, lasts=5, trace=bytes(reversed(range(16)))), span(1))
    messages: dict[str, tuple[Signal, Export]] = {
        "request": (Signal.TRACES, trace),
        "orphans": (Signal.TRACES, orphans),
        "metrics": (Signal.METRICS, metrics(4)),
        "logs": (Signal.LOGS, logs(2)),
    }
    binary = {
        name: bytes([_SIGNALS.index(signal)]) + message.SerializeToString()
        for name, (signal, message) in messages.items()
    }
    written = {
        f"{name}-json": _json_head(signal) + MessageToJson(message, indent=None).encode()
        for name, (signal, message) in messages.items()
        if signal is not Signal.TRACES
    }
    return binary | written | {"request-json": _json_head(Signal.TRACES) + as_json(trace)}


def _json_head(signal: Signal) -> bytes:
    return bytes([next(byte for byte in range(128, 131) if _SIGNALS[byte % 3] is signal)])


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    head, body = data[:1], data[1:]
    try:
        if head and head[0] & 128:
            return head + json.dumps(mutation.tree_value(json.loads(body), rng, change)).encode()
        message, _ = decode(_SIGNALS[head[0] % 3], body, False)
        mutation.protobuf(message, rng, change)
    except (MessageError, ValueError, IndexError, TypeError, RecursionError):
        return change(data, len(data) + 64)
    return head + message.SerializeToString()


TARGET = Target(
    name="otlp_message",
    reads="messages of programs with an OpenTelemetry SDK, in protobuf or JSON, by "
    "`collect.otlp.decode` and `assemble`",
    holds="no more parts than are allowed; every span is in a request or counted as broken, none is held for "
    "ever; requests lie in their times and limits, and are as fit as a client's own",
    sources=(
        "tailspan.collect.otlp.decode",
        "tailspan.collect.otlp.spans",
        "tailspan.collect.otlp.assemble",
        "tailspan.wire.otlp",
    ),
    check=check,
    seeds=seeds,
    mutate=mutate,
    words=(b'"resourceSpans"', b'"traceId"', b'"spanId"', b'"intValue"', b'"\\ud800"', b"NaN", b"1e999"),
    max_bytes=8192,
)
