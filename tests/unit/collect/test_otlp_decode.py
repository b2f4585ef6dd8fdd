"""Bytes are an OTLP message, or refused by a reason; never more than they may take."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tailspan.collect.otlp.decode import MAX_BODY_BYTES, MAX_OBJECTS, MAX_PARTS, decode
from tailspan.collect.otlp.spans import resource, worker_spans
from tailspan.errors import MessageError
from tailspan.wire.otlp import Signal
from tests.unit.collect.otlp_messages import TRACE, as_json, logs, metrics, span, traces

REASONS = {"malformed", "oversized", "too_many_parts"}
SOME = traces(
    span(1, 9, kind=Span.SPAN_KIND_SERVER, flags=0x300, attributes={"tailspan.batch.id": 1 << 62}),
    span(2, 1, attributes={"a": ["x", 1], "b": 1.5, "c": True}),
    resource={"service.name": "triton", "process.pid": 7},
)


@pytest.mark.parametrize(
    ("signal", "message", "items"),
    [
        (Signal.TRACES, SOME, 2),
        (Signal.METRICS, metrics(23), 23),
        (Signal.LOGS, logs(23), 23),
        (Signal.TRACES, traces(), 0),
    ],
)
def test_a_message_comes_back_with_its_items(signal: Signal, message: Any, items: int) -> None:
    assert decode(signal, message.SerializeToString(), False) == (message, items)


def test_a_metric_without_data_has_no_points() -> None:
    message = metrics(2)
    message.resource_metrics[0].scope_metrics[0].metrics.add(name="nothing")
    assert decode(Signal.METRICS, message.SerializeToString(), False)[1] == 2


def test_json_means_the_same_as_protobuf() -> None:
    decoded, items = decode(Signal.TRACES, as_json(SOME), True)
    assert items == 2
    assert decoded == SOME


def test_json_as_the_specification_shows_it() -> None:
    """Numbers of 64 bits as strings or numbers, enums as numbers, unknown fields ignored, ids in either case."""
    one = {
        "traceId": TRACE.hex().upper(),
        "spanId": "00000000000000ab",
        "name": "infer",
        "kind": 2,
        "flags": 257,
        "startTimeUnixNano": "1700000000000000001",
        "endTimeUnixNano": 1700000000000000002,
        "attributes": [{"key": "tailspan.batch.id", "value": {"intValue": "12"}}],
        "status": {"code": 2, "surprise": [1]},
        "surprise": {"deep": None},
    }
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [one], "more": 1}]}], "more": {}}).encode()

    decoded, items = decode(Signal.TRACES, body, True)

    assert isinstance(decoded, ExportTraceServiceRequest)
    (told,) = worker_spans(decoded.resource_spans[0])
    assert items == 1
    assert (told.trace_id, told.span_id) == (TRACE, bytes(7) + b"\xab")
    assert (told.start_unix_ns, told.end_unix_ns) == (1700000000000000001, 1700000000000000002)
    assert (told.failed, told.attributes) == (True, {"tailspan.batch.id": 12})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"1",
        b"null",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"resourceSpans": 1}',
        b'{"resourceSpans": [1]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "no hex"}]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": 1}]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "\\ud800"}]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "yesterday"}]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": -1}]}]}]}',
    ],
)
def test_what_is_no_json_of_otlp_is_malformed(body: bytes) -> None:
    with pytest.raises(MessageError) as refused:
        decode(Signal.TRACES, body, True)
    assert refused.value.reason == "malformed"


def field(number: int, content: bytes) -> bytes:
    length, size = len(content), bytearray()
    while length >= 128:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


@pytest.mark.parametrize(
    ("signal", "bomb"),
    [
        (Signal.TRACES, field(1, field(2, b"\x12\x00" * (MAX_BODY_BYTES // 2 - 64)))),
        (Signal.TRACES, b"\x0a\x00" * (MAX_BODY_BYTES // 2)),
        (Signal.TRACES, field(1, b"\x12\x00" * (MAX_BODY_BYTES // 2 - 64))),
        (Signal.LOGS, field(1, field(2, b"\x12\x00" * (MAX_BODY_BYTES // 2 - 64)))),
        (Signal.METRICS, field(1, field(2, field(2, field(5, b"\x0a\x00" * (MAX_BODY_BYTES // 2 - 64)))))),
    ],
)
def test_a_small_message_that_decodes_to_a_large_one_is_refused(signal: Signal, bomb: bytes) -> None:
    """Four MiB of empty spans would be 350 MiB."""
    with pytest.raises(MessageError) as refused:
        decode(signal, bomb, False)
    assert refused.value.reason == "too_many_parts"


def test_as_many_spans_as_may_be_are_taken() -> None:
    most = field(1, field(2, b"\x12\x00" * (MAX_PARTS - 2)))
    assert decode(Signal.TRACES, most, False)[1] == MAX_PARTS - 2


def test_json_of_too_many_objects_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(MessageError) as refused:
        decode(Signal.TRACES, b"{" * (MAX_OBJECTS + 1), True)
    assert refused.value.reason == "too_many_parts"


@pytest.mark.parametrize("is_json", [False, True])
def test_a_message_that_is_too_long_is_refused(is_json: bool) -> None:
    with pytest.raises(MessageError) as refused:
        decode(Signal.LOGS, bytes(MAX_BODY_BYTES + 1), is_json)
    assert refused.value.reason == "oversized"


@given(st.sampled_from(Signal), st.binary(max_size=300), st.booleans())
def test_any_bytes_are_a_message_or_refused(signal: Signal, body: bytes, is_json: bool) -> None:
    try:
        decode(signal, body, is_json)
    except MessageError as error:
        assert error.reason in REASONS


@given(st.sampled_from(Signal), st.integers(0, 400), st.binary(min_size=1, max_size=4), st.integers(0, 400))
def test_a_damaged_message_is_a_message_or_refused(signal: Signal, at: int, damage: bytes, end: int) -> None:
    for whole, is_json in ((SOME.SerializeToString(), False), (as_json(SOME), True)):
        damaged = (whole[: at % len(whole)] + damage + whole[at % len(whole) :])[: len(whole) - end % len(whole)]
        try:
            message, _ = decode(signal, damaged, is_json)
        except MessageError as error:
            assert error.reason in REASONS
        else:
            if isinstance(message, ExportTraceServiceRequest):  # then the rest of the way takes it too
                for one in message.resource_spans:
                    resource(one)
                    worker_spans(one)


KEYS = st.sampled_from(
    [
        "resourceSpans",
        "scopeSpans",
        "spans",
        "traceId",
        "spanId",
        "attributes",
        "key",
        "value",
        "intValue",
        "links",
    ]
)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=20,
)


@given(TREES)
def test_any_json_is_a_message_or_refused(tree: object) -> None:
    try:
        decode(Signal.TRACES, json.dumps(tree).encode(), True)
    except MessageError as error:
        assert error.reason == "malformed"


def test_a_resource_keeps_scalars_and_its_pid_apart() -> None:
    told = traces(
        resource={
            "service.name": "triton",
            "process.pid": 42,
            "process.command_args": ["a", "b"],
            "gpu": True,
            "share": 0.5,
            "x" * 300: "y" * 300,
        }
    ).resource_spans[0]
    of = resource(told)
    assert of.pid == 42
    assert of.attributes == {"service.name": "triton", "gpu": "true", "share": "0.5", "x" * 256: "y" * 256}


@pytest.mark.parametrize("pid", ["42", -1, 0, 1 << 40])
def test_a_pid_that_is_none_is_none(pid: object) -> None:
    assert resource(traces(resource={"process.pid": pid}).resource_spans[0]).pid == 0
