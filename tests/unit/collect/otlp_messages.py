"""OTLP messages as an SDK would send them."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

TRACE = bytes(range(16))
LOCAL, REMOTE = 0x100, 0x300
SECOND = 1_000_000_000
#: When the spans begin, on the wall clock and on the other one.
START_UNIX = 1_700_000_000 * SECOND
OFFSET = START_UNIX - 1000 * SECOND


def attribute(key: str, value: object) -> KeyValue:
    if isinstance(value, str):
        return KeyValue(key=key, value=AnyValue(string_value=value))
    if isinstance(value, bool):
        return KeyValue(key=key, value=AnyValue(bool_value=value))
    if isinstance(value, int):
        return KeyValue(key=key, value=AnyValue(int_value=value))
    if isinstance(value, float):
        return KeyValue(key=key, value=AnyValue(double_value=value))
    assert isinstance(value, list)
    values = [attribute("", item).value for item in value]
    return KeyValue(key=key, value=AnyValue(array_value=ArrayValue(values=values)))


def span(
    number: int,
    parent: int = 0,
    *,
    at: int = 0,
    lasts: int = SECOND,
    flags: int = LOCAL,
    trace: bytes = TRACE,
    attributes: dict[str, object] | None = None,
    **fields: Any,
) -> Span:
    """Span ids are numbers; ``at``: ns after START_UNIX."""
    return Span(
        **{
            "trace_id": trace,
            "span_id": number.to_bytes(8, "big"),
            "parent_span_id": parent.to_bytes(8, "big") if parent else b"",
            "name": f"span {number}",
            "start_time_unix_nano": START_UNIX + at,
            "end_time_unix_nano": START_UNIX + at + lasts,
            "flags": flags,
            "attributes": [attribute(key, value) for key, value in (attributes or {}).items()],
            **fields,
        }
    )


def traces(*spans: Span, resource: dict[str, object] | None = None) -> ExportTraceServiceRequest:
    message = ExportTraceServiceRequest()
    one = message.resource_spans.add()
    one.resource.attributes.extend(attribute(key, value) for key, value in (resource or {}).items())
    one.scope_spans.add().spans.extend(spans)
    return message


def metrics(points: int) -> ExportMetricsServiceRequest:
    """Half of them of a gauge, the others of a histogram."""
    message = ExportMetricsServiceRequest()
    scope = message.resource_metrics.add().scope_metrics.add()
    for _ in range(points // 2):
        scope.metrics.add(name="g").gauge.data_points.add(as_int=1)
    for _ in range(points - points // 2):
        scope.metrics.add(name="h").histogram.data_points.add(count=1)
    return message


def logs(records: int) -> ExportLogsServiceRequest:
    message = ExportLogsServiceRequest()
    scope = message.resource_logs.add().scope_logs.add()
    for _ in range(records):
        scope.log_records.add(trace_id=TRACE, body=AnyValue(string_value="said"))
    return message


def as_json(message: ExportTraceServiceRequest) -> bytes:
    """As OTLP has it: ids in hex."""
    tree = MessageToDict(message, use_integers_for_enums=True)
    for resource in tree.get("resourceSpans", []):
        for scope in resource.get("scopeSpans", []):
            for given, one in zip(message.resource_spans[0].scope_spans[0].spans, scope["spans"], strict=True):
                one["traceId"], one["spanId"] = given.trace_id.hex(), given.span_id.hex()
                one["parentSpanId"] = given.parent_span_id.hex()
    return json.dumps(tree).encode()
