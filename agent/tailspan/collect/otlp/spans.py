"""What of an OTLP trace message is of interest; the rest of it is let go at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from tailspan.wire import span_attributes as names
from tailspan.wire.spans import MAX_RESOURCE, MAX_TEXT

REQUEST_ID_HEADER = "http.request.header.x-request-id"
GEN_AI_MODEL = "gen_ai.request.model"
ERROR_TYPE = "error.type"
SERVICE_NAME = "service.name"
SERVICE_VERSION = "service.version"
PROCESS_PID = "process.pid"

_OF_INTEREST = frozenset(
    {
        *(names.BATCH_ID, names.BATCH_SIZE, names.BATCH_CAPACITY),
        *(names.MODEL_NAME, names.MODEL_VERSION, GEN_AI_MODEL),
        *(names.REQUEST_ID, REQUEST_ID_HEADER),
        *(names.THREAD_TID, ERROR_TYPE),
        *names.PEER_PORTS,
    }
)

# opentelemetry/proto/trace/v1/trace.proto, enum SpanFlags; older releases of the Python package lack it
_HAS_IS_REMOTE = 0x100
_IS_REMOTE = 0x200


class Parentage(IntEnum):
    """What a span says about its parent."""

    NONE = 0  #: it has none
    REMOTE = 1  #: it is another process's
    LOCAL = 2  #: it is this process's


Value = str | int


@dataclass(slots=True)
class WorkerSpan:
    """A span as the worker told it, unchecked."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    parentage: Parentage
    name: str
    start_unix_ns: int
    end_unix_ns: int
    is_caller: bool  #: kind CLIENT or PRODUCER: its peer is whom it calls
    failed: bool
    attributes: dict[str, Value]  #: those of interest


@dataclass(slots=True)
class Resource:
    attributes: dict[str, str]  #: scalars only, without the pid
    pid: int  #: as the process has it; 0 where it does not say


def worker_spans(told: ResourceSpans) -> list[WorkerSpan]:
    return [_span(span) for scope in told.scope_spans for span in scope.spans]


def resource(told: ResourceSpans) -> Resource:
    pairs = told.resource.attributes[: 2 * MAX_RESOURCE]
    found = {pair.key: value for pair in pairs if (value := _scalar(pair.value)) is not None}
    pid = found.pop(PROCESS_PID, 0)
    attributes = {key[:MAX_TEXT]: str(value) for key, value in list(found.items())[:MAX_RESOURCE]}
    return Resource(attributes, pid if isinstance(pid, int) and 0 < pid < 1 << 31 else 0)


def _span(span: Span) -> WorkerSpan:
    return WorkerSpan(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_id=span.parent_span_id,
        parentage=_parentage(span),
        name=span.name[:MAX_TEXT],
        start_unix_ns=span.start_time_unix_nano,
        end_unix_ns=span.end_time_unix_nano,
        is_caller=span.kind in (Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_PRODUCER),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        attributes=_values(pair for pair in span.attributes if pair.key in _OF_INTEREST),
    )


def _parentage(span: Span) -> Parentage:
    if not any(span.parent_span_id):
        return Parentage.NONE
    if span.flags & _HAS_IS_REMOTE:
        return Parentage.REMOTE if span.flags & _IS_REMOTE else Parentage.LOCAL
    # an SDK that does not say: whoever serves or consumes was asked by another process
    serves = span.kind in (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CONSUMER)
    return Parentage.REMOTE if serves else Parentage.LOCAL


def _values(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    return {pair.key: value for pair in pairs if (value := _first(pair.value)) is not None}


def _first(value: AnyValue) -> Value | None:
    """Of a list, which the values of a header are, its first."""
    items = value.array_value.values
    return _scalar(items[0] if items else value)


def _scalar(value: AnyValue) -> Value | None:
    """A string, cut, or an integer; None for what is neither a string nor a number."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value[:MAX_TEXT]
    if kind == "int_value":
        return value.int_value
    if kind == "bool_value":
        return str(value.bool_value).lower()
    if kind == "double_value":
        return repr(value.double_value)
    return None
