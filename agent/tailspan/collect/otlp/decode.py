"""One OTLP message, protobuf or JSON, to the protobuf classes; refused where it is not what it says it is.

A small message can decode to a large one: two bytes are an empty span, which takes 170 bytes. So its parts are
counted before anything is made of them.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tailspan.errors import MessageError
from tailspan.wire.otlp import Signal, parse_json

Export = ExportTraceServiceRequest | ExportMetricsServiceRequest | ExportLogsServiceRequest

#: Of a message before compression. What a gRPC server takes by default; the SDKs' batches are a tenth of it.
MAX_BODY_BYTES = 4 << 20
#: Resources, scopes, metrics and items of one message together.
MAX_PARTS = 32_768
#: In JSON all objects are, attributes too, of which each has two.
MAX_OBJECTS = 300_000

_CLASSES: dict[Signal, type[Export]] = {
    Signal.TRACES: ExportTraceServiceRequest,
    Signal.METRICS: ExportMetricsServiceRequest,
    Signal.LOGS: ExportLogsServiceRequest,
}
#: Field numbers from a message down to its items, per level: resource_spans, scope_spans, spans; a metric has its
#: data points in one of five kinds of data.
_PATHS: dict[Signal, tuple[tuple[int, ...], ...]] = {
    Signal.TRACES: ((1,), (2,), (2,)),
    Signal.METRICS: ((1,), (2,), (2,), (5, 7, 9, 10, 11), (1,)),
    Signal.LOGS: ((1,), (2,), (2,)),
}


def decode(signal: Signal, body: bytes, is_json: bool) -> tuple[Export, int]:
    """The message, and how many spans, data points or log records it has.

    Raises :class:`MessageError` with reason ``malformed``, ``oversized`` or ``too_many_parts``; nothing else,
    whatever the bytes.
    """
    if len(body) > MAX_BODY_BYTES:
        raise MessageError("oversized", f"{len(body)} bytes, at most {MAX_BODY_BYTES}")
    if is_json:
        message = _from_json(signal, body)
    else:
        _bound_parts(body, _PATHS[signal])
        try:
            message = _CLASSES[signal].FromString(body)
        except DecodeError as error:
            raise MessageError("malformed", str(error) or "no protobuf message") from None
    return message, _items(message)


def _items(message: Export) -> int:
    if isinstance(message, ExportTraceServiceRequest):
        return sum(len(scope.spans) for resource in message.resource_spans for scope in resource.scope_spans)
    if isinstance(message, ExportLogsServiceRequest):
        return sum(len(scope.log_records) for resource in message.resource_logs for scope in resource.scope_logs)
    scopes = (scope for resource in message.resource_metrics for scope in resource.scope_metrics)
    data = (getattr(metric, metric.WhichOneof("data") or "gauge") for scope in scopes for metric in scope.metrics)
    return sum(len(one.data_points) for one in data)


def _bound_parts(body: bytes, path: tuple[tuple[int, ...], ...]) -> None:
    """Walks the encoding down to the items without looking into them."""
    parts, stack = 0, [(0, len(body), 0)]
    while stack:
        at, end, depth = stack.pop()
        while at < end:
            tag, at = _varint(body, at, end)
            kind = tag & 7
            if kind == 0:
                _, at = _varint(body, at, end)
            elif kind == 1:
                at += 8
            elif kind == 2:
                length, at = _varint(body, at, end)
                if length > end - at:
                    raise MessageError("malformed", "a field is longer than its message")
                if tag >> 3 in path[depth]:
                    parts += 1
                    if parts > MAX_PARTS:
                        raise MessageError("too_many_parts", f"more than {MAX_PARTS} spans, points or records")
                    if depth + 1 < len(path):
                        stack.append((at, at + length, depth + 1))
                at += length
            elif kind == 5:
                at += 4
            elif kind > 5:
                raise MessageError("malformed", f"no wire type {kind}")


def _varint(body: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = body[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise MessageError("malformed", "a number does not end")


def _from_json(signal: Signal, body: bytes) -> Export:
    if body.count(b"{") > MAX_OBJECTS:
        raise MessageError("too_many_parts", f"more than {MAX_OBJECTS} objects")
    message = _CLASSES[signal]()
    try:
        parse_json(body, message)
    except Exception as error:  # protobuf's parser raises a dozen types where a field is of another kind
        raise MessageError("malformed", str(error)[:200] or type(error).__name__) from None
    return message
