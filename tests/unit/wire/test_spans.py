"""The worker's messages survive the wire unchanged, and no packet can do more than raise MessageError."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan.errors import MessageError
from tailspan.wire.spans import (
    MAX_PACKET,
    MAX_RUNTIME_LOCKS,
    MAX_SPANS,
    MAX_TEXT,
    Activation,
    ActivationKind,
    Drops,
    Hello,
    Message,
    Pause,
    PauseKind,
    Request,
    Span,
    SpanKind,
    decode,
    encode,
)


def a_request(**changes: Any) -> Request:
    fields: dict[str, Any] = {
        "trace_id": bytes(range(16)),
        "span_id": bytes(range(8)),
        "parent_id": bytes(8),
        "request_id": "r-1",
        "name": "POST /v1/infer",
        "tid": 4711,
        "start_mono_ns": 1_000,
        "end_mono_ns": 9_000,
        "model": "resnet",
        "model_version": "3",
        "batch_id": 2**64 - 1,
        "batch_size": 5,
        "batch_capacity": 8,
        "spans": [
            Span("preprocess", SpanKind.SYNC, 4711, 1_000, 2_000),
            Span("queue", SpanKind.QUEUED, 4712, 2_000, 4_000),
        ],
    }
    return Request(**(fields | changes))


A_PAUSE = Pause(PauseKind.GC, 4711, 4_000, 8_000, 2)

MESSAGES: list[Message] = [
    a_request(),
    a_request(sampled=False, asynchronous=True, status="error", spans=[], peer_port=65535),
    Activation(ActivationKind.BATCH, 4712, 4_000, 8_000, 5512, "infer", 5, 8),
    Activation(ActivationKind.STEP, 4712, 4_000, 8_000, 2**64 - 1),
    Hello(42, "resnet", "3", {"host.name": "a"}),
    Hello(42, "resnet", runtime_locks=[[0xA5B740, 0xA84260], [0, 2**63 - 1]]),
    A_PAUSE,
    Drops(23),
    a_request(device="GPU-00000000-0000-4000-8000-000000000000", provider="CUDAExecutionProvider"),
]


def body_of(message: Message) -> dict[str, Any]:
    body = msgpack.unpackb(encode(message))
    assert isinstance(body, dict)
    return body


def reason_of(packet: bytes) -> str:
    with pytest.raises(MessageError) as caught:
        decode(packet)
    return caught.value.reason


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    assert decode(encode(message)) == message


def test_a_request_of_64_spans_takes_under_4_kib() -> None:
    start = 10**15  # twelve days of uptime: times as long as they get on the wire
    spans = [Span("postprocess", SpanKind.SYNC, 4_000_000, start, start + 1)] * 64
    assert len(encode(a_request(spans=spans))) < 4096


@pytest.mark.parametrize(
    ("message", "change", "reason"),
    [
        (a_request(), {"v": 2}, "version"),
        (a_request(), {"k": "unheard-of"}, "kind"),
        (a_request(), {"tr": b"short"}, "field"),
        (a_request(), {"tr": "0123456789abcdef"}, "field"),
        (a_request(), {"t": 2**32}, "field"),
        (a_request(), {"t": True}, "field"),
        (a_request(), {"t": -1}, "field"),
        (a_request(), {"n": None}, "field"),
        (a_request(), {"s": 9_001}, "time"),
        (a_request(), {"e": 2**63}, "field"),
        (a_request(), {"b": [1, 2]}, "field"),
        (a_request(), {"b": [1, 2**32, 2]}, "field"),
        (a_request(), {"x": [["run", 0, 1, 5, 4]]}, "time"),
        (a_request(), {"x": [["run", 9, 1, 4, 5]]}, "field"),
        (a_request(), {"x": [["run", [], 1, 4, 5]]}, "field"),
        (a_request(), {"x": [["run", 0, 1, 4]]}, "field"),
        (a_request(), {"x": [["", 0, 1, 4, 5]] * (MAX_SPANS + 1)}, "field"),
        (MESSAGES[2], {"a": 7}, "field"),
        (MESSAGES[2], {"o": 2**64 - 1, "b": [-1, 0]}, "field"),
        (Hello(1, "s"), {"resource": {"k": 1}}, "field"),
        (Hello(1, "s"), {"resource": {str(n): "" for n in range(65)}}, "field"),
        (Hello(1, "s"), {"pid": "1"}, "field"),
        (a_request(), {"pp": 65536}, "field"),
        (a_request(), {"pp": None}, "field"),
        (a_request(), {"d": None}, "field"),
        (a_request(), {"d": ["GPU-a"]}, "field"),
        (a_request(), {"d": ["GPU-a", "p", ""]}, "field"),
        (a_request(), {"d": [b"GPU-a", "p"]}, "field"),
        (a_request(), {"d": ["GPU-a", 7]}, "field"),
        (Hello(1, "s"), {"runtime_locks": None}, "field"),
        (Hello(1, "s"), {"runtime_locks": {}}, "field"),
        (Hello(1, "s"), {"runtime_locks": [[1]]}, "field"),
        (Hello(1, "s"), {"runtime_locks": [5]}, "field"),
        (Hello(1, "s"), {"runtime_locks": [[2, 2]]}, "field"),
        (Hello(1, "s"), {"runtime_locks": [[1, 2.0]]}, "field"),
        (Hello(1, "s"), {"runtime_locks": [[1, 2**63]]}, "field"),
        (Hello(1, "s"), {"runtime_locks": [[1, 2]] * (MAX_RUNTIME_LOCKS + 1)}, "field"),
        (A_PAUSE, {"p": 1}, "field"),
        (A_PAUSE, {"t": 2**32}, "field"),
        (A_PAUSE, {"g": -1}, "field"),
        (A_PAUSE, {"s": 8_001}, "time"),
        (Drops(1), {"c": 1.0}, "field"),
    ],
)
def test_a_wrong_field_is_named(message: Message, change: dict[str, Any], reason: str) -> None:
    assert reason_of(msgpack.packb(body_of(message) | change)) == reason


@pytest.mark.parametrize(
    ("message", "key"),
    [(a_request(), "pp"), (a_request(), "d"), (Hello(1, "s", "3", {"host.name": "a"}), "runtime_locks")],
)
def test_what_an_older_client_does_not_say_has_its_default(message: Message, key: str) -> None:
    body = body_of(message)
    del body[key]
    assert decode(msgpack.packb(body)) == message


def test_an_oversized_packet_is_refused_before_it_is_unpacked() -> None:
    assert reason_of(b"\xc1" * (MAX_PACKET + 1)) == "oversized"


def test_bytes_that_are_no_map_are_malformed() -> None:
    assert reason_of(b"") == "malformed"
    assert reason_of(msgpack.packb([1, 2])) == "malformed"
    assert reason_of(encode(Drops(1)) + b"\x00") == "malformed"


@pytest.mark.parametrize("key", ["v", "k", "n", "t", "tr", "x", "b", "pp", "d"])
def test_a_deeply_nested_value_raises_only_message_error(key: str) -> None:
    # GIVEN a value nested as deep as msgpack allows, deeper than Python's repr can follow
    body = msgpack.packb({k: v for k, v in body_of(a_request()).items() if k != key})
    count = body[2]
    nested = b"\x91" * 1000 + b"\x00"
    assert body[:2] == b"\xde\x00"  # map 16: the count is in the third byte
    # THEN it is one more malformed packet
    decoded = body[:2] + bytes([count + 1]) + body[3:] + msgpack.packb(key) + nested
    assert reason_of(decoded) in {"malformed", "version", "kind", "field"}


def test_long_text_is_cut() -> None:
    decoded = decode(encode(a_request(name="x" * 1000, device="y" * 1000, provider="z" * 1000)))
    assert isinstance(decoded, Request)
    assert (decoded.name, decoded.device, decoded.provider) == ("x" * MAX_TEXT, "y" * MAX_TEXT, "z" * MAX_TEXT)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_message_error(packet: bytes) -> None:
    with pytest.raises(MessageError):
        decode(packet)


@given(st.sampled_from(MESSAGES), st.data())
def test_a_packet_with_flipped_bytes_decodes_or_raises_message_error(
    message: Message, data: st.DataObject
) -> None:
    packet = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    _decodes_or_refuses(bytes(packet[: data.draw(st.integers(0, len(packet)))]))
    _decodes_or_refuses(bytes(packet))


any_value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(MESSAGES), st.data())
def test_a_packet_with_one_field_replaced_decodes_or_raises_message_error(
    message: Message, data: st.DataObject
) -> None:
    body = body_of(message)
    body[data.draw(st.sampled_from(sorted(body)))] = data.draw(any_value)
    _decodes_or_refuses(msgpack.packb(body))


def _decodes_or_refuses(packet: bytes) -> None:
    """Whatever passes is fit to be stored: it encodes again."""
    try:
        message = decode(packet)
    except MessageError:
        return
    assert decode(encode(message)) == message
