"""What a worker says of its requests is what the agent is told; what it says wrongly is counted."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from tailspan.client import Client
from tailspan.wire.spans import MAX_SPANS, Activation, ActivationKind, Drops, Request, SpanKind

from .listener import Peer

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


def test_a_request_tells_its_name_thread_trace_and_times(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    before = time.monotonic_ns()
    with client.request(
        "POST /v1/infer",
        traceparent=f"00-{TRACE}-{PARENT}-01",
        request_id="r-1",
        model="resnet50",
        model_version="3",
    ) as request:
        header = request.traceparent()
    message = peer.expect(Request)
    assert (message.name, message.request_id, message.status) == ("POST /v1/infer", "r-1", "ok")
    assert (message.model, message.model_version) == ("resnet50", "3")
    assert message.tid == threading.get_native_id()
    assert before <= message.start_mono_ns <= message.end_mono_ns <= time.monotonic_ns()
    assert message.sampled
    assert not message.asynchronous
    # AND its own span is a child of the caller's, and the parent of what is called downstream
    assert (message.trace_id.hex(), message.parent_id.hex()) == (TRACE, PARENT)
    assert header == f"00-{TRACE}-{message.span_id.hex()}-01"


def test_the_callers_decision_not_to_sample_is_kept(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    with client.request("GET /", traceparent=f"00-{TRACE}-{PARENT}-00") as request:
        assert request.traceparent().endswith("-00")
    assert not peer.expect(Request).sampled


def test_the_trace_goes_on_by_whatever_header_it_came_with(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    for headers in ({"Traceparent": f"00-{TRACE}-{PARENT}-00"}, {"B3": f"{TRACE}-{PARENT}-0"}):
        with client.request("GET /", headers=headers):
            pass
        message = peer.expect(Request)
        assert (message.trace_id.hex(), message.parent_id.hex(), message.sampled) == (TRACE, PARENT, False)


def test_a_header_that_is_named_goes_before_the_others_if_it_is_valid(
    client_and_peer: tuple[Client, Peer],
) -> None:
    client, peer = client_and_peer
    b3 = {"b3": f"{TRACE}-{PARENT}"}
    for traceparent, expected in ((f"00-{'a' * 32}-{PARENT}-01", "a" * 32), ("none", TRACE), (None, TRACE)):
        with client.request("GET /", traceparent=traceparent, headers=b3):
            pass
        assert peer.expect(Request).trace_id.hex() == expected


@pytest.mark.parametrize("headers", [7, "b3", [1, 2], object()])
def test_what_are_no_headers_costs_the_trace_and_not_the_request(
    headers: Any, client_and_peer: tuple[Client, Peer]
) -> None:
    client, peer = client_and_peer
    with client.request("GET /", headers=headers) as request:
        assert request.traceparent().startswith("00-")
    assert peer.expect(Request).parent_id == bytes(8)
    assert client.dropped == 1


def test_spans_carry_the_thread_that_did_the_work(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    executor_tid = 0

    def execute() -> None:
        nonlocal executor_tid
        executor_tid = threading.get_native_id()
        with request.span("run"):
            pass

    with client.request("r") as request:
        with request.span("outer"), request.span("inner"):
            pass
        executor = threading.Thread(target=execute)
        executor.start()
        executor.join()
        request.queued(10, 20, tid=executor_tid)
        request.add_span("run", executor_tid, 20, 30)
    spans = peer.expect(Request).spans
    own = threading.get_native_id()
    assert own != executor_tid
    assert [(s.name, s.kind, s.tid) for s in spans] == [
        ("inner", SpanKind.SYNC, own),
        ("outer", SpanKind.SYNC, own),
        ("run", SpanKind.SYNC, executor_tid),
        ("queue", SpanKind.QUEUED, executor_tid),
        ("run", SpanKind.SYNC, executor_tid),
    ]
    inner, outer = spans[:2]
    assert outer.start_mono_ns <= inner.start_mono_ns <= inner.end_mono_ns <= outer.end_mono_ns
    assert [(s.start_mono_ns, s.end_mono_ns) for s in spans[3:]] == [(10, 20), (20, 30)]


def test_a_batch_is_told_by_its_requests_and_by_its_thread(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    with client.request("r") as request:
        with client.batch(5512, 5, 8, "resnet50"):
            pass
        request.batch(np.uint64(5512), 5, 8)
    activation, message = peer.expect(Activation), peer.expect(Request)
    assert (activation.kind, activation.owner, activation.name) == (ActivationKind.BATCH, 5512, "resnet50")
    assert (activation.size, activation.capacity) == (5, 8)
    assert activation.tid == threading.get_native_id()
    assert message.start_mono_ns <= activation.start_mono_ns <= activation.end_mono_ns <= message.end_mono_ns
    assert (message.batch_id, message.batch_size, message.batch_capacity) == (5512, 5, 8)


def test_the_device_and_what_ran_there_are_told(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    with client.request("r") as request:
        request.device("GPU-00000000-0000-4000-8000-000000000000", "CUDAExecutionProvider")
    with client.request("r") as request:
        request.device("MIG-00000000-0000-4000-8000-000000000001")
    with client.request("r"):
        pass
    assert [(m.device, m.provider) for m in (peer.expect(Request) for _ in range(3))] == [
        ("GPU-00000000-0000-4000-8000-000000000000", "CUDAExecutionProvider"),
        ("MIG-00000000-0000-4000-8000-000000000001", ""),
        ("", ""),
    ]
    assert client.dropped == 0


def test_a_device_that_cannot_be_read_leaves_the_one_before(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    with client.request("r") as request:
        request.device("GPU-a", "p")
        request.device("GPU-b", Unprintable())  # type: ignore[arg-type]
    message = peer.expect(Request)
    assert (message.device, message.provider) == ("GPU-a", "p")
    assert peer.expect(Drops).count == 1


@pytest.mark.parametrize(
    ("peer", "port"),
    [
        (("10.0.0.7", 41234), 41234),
        (("::1", 41234, 0, 0), 41234),
        (("10.0.0.7", np.uint16(41234)), 41234),
        ("", 0),  # what getpeername() gives for a unix socket
        (None, 0),
    ],
)
def test_the_port_of_the_other_end_is_told(client_and_peer: tuple[Client, Peer], peer: Any, port: int) -> None:
    client, ear = client_and_peer
    with client.request("r", peer=peer):
        pass
    assert ear.expect(Request).peer_port == port
    assert client.dropped == 0


@pytest.mark.parametrize("peer", ["10.0.0.7:41234", ("10.0.0.7", 65536), ("10.0.0.7",), 41234, ("a", None)])
def test_a_wrong_peer_costs_only_itself(client_and_peer: tuple[Client, Peer], peer: Any) -> None:
    client, ear = client_and_peer
    with client.request("r", peer=peer) as request, request.span("s"):
        pass
    message = ear.expect(Request)
    assert (message.peer_port, len(message.spans)) == (0, 1)
    assert ear.expect(Drops).count == 1


def test_an_exception_passes_through_and_makes_the_request_an_error(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    with (
        pytest.raises(ZeroDivisionError),
        client.request("r") as request,
        request.span("s"),
        client.batch(1, 1, 1),
    ):
        _ = 1 // 0
    assert isinstance(peer.receive(), Activation)
    message = peer.expect(Request)
    assert message.status == "error"
    assert [s.name for s in message.spans] == ["s"]


def test_a_status_that_was_set_stays(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    with pytest.raises(ValueError, match="no"), client.request("r") as request:
        request.status = "rejected"
        raise ValueError("no")
    assert peer.expect(Request).status == "rejected"


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no words")


WRONG: list[Any] = [
    lambda client, request: request.add_span("s", 1, "noon", 2),
    lambda client, request: request.add_span("s", 1, 20, 10),
    lambda client, request: request.add_span("s", -1, 10, 20),
    lambda client, request: request.add_span("s", None, 10, 20),
    lambda client, request: request.add_span(Unprintable(), 1, 10, 20),
    lambda client, request: request.queued(1.5, 2),
    lambda client, request: request.queued(1, 1 << 63),
    lambda client, request: request.batch("a", "b", "c"),
    lambda client, request: request.batch(1, 1 << 32, 1),
    lambda client, request: request.device(Unprintable()),
    lambda client, request: (
        request.span(Unprintable()).__enter__() or request.span(Unprintable()).__exit__(None, None, None)
    ),
    lambda client, request: client.batch(None, 1, 1).__exit__(None, None, None),
    lambda client, request: client.watch_asyncio(floor_ns="long"),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_value_costs_only_the_part_it_belongs_to(client_and_peer: tuple[Client, Peer], wrong: Any) -> None:
    client, peer = client_and_peer
    with client.request("r") as request:
        wrong(client, request)
    assert client.dropped == 1
    message = peer.expect(Request)
    assert message.spans == []
    assert message.batch_id == 0
    assert peer.expect(Drops).count == 1


def test_a_request_whose_name_cannot_be_read_is_one_drop(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    with client.request(Unprintable()) as request, request.span("s"):  # type: ignore[arg-type]
        served = True
    assert served
    assert client.dropped >= 1
    assert peer.waiting() == []


@pytest.mark.parametrize("name", [None, 7, b"bytes", "\ud800 lone surrogate", "x" * 100_000, "größe"])
def test_any_name_makes_a_message_that_the_agent_accepts(client_and_peer: tuple[Client, Peer], name: Any) -> None:
    client, peer = client_and_peer
    with client.request(name, traceparent=name, request_id=name, model=name, model_version=name) as request:
        request.status = name
        request.device(name, name)
        with request.span(name):
            pass
    assert isinstance(peer.receive(), Request)
    assert client.dropped == 0


def test_spans_beyond_the_bound_are_counted(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    with client.request("r") as request:
        for _ in range(MAX_SPANS + 23):
            with request.span("s"):
                pass
    assert len(peer.expect(Request).spans) == MAX_SPANS
    assert peer.expect(Drops).count == 23


def test_a_request_too_long_for_a_packet_is_counted(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    with client.request("long") as request:
        for _ in range(MAX_SPANS):
            request.add_span("x" * 256, 1, 2, 3)
    with client.request("short"):
        pass
    assert peer.expect(Request).name == "short"
    assert peer.expect(Drops).count == 1


def test_a_span_told_after_the_end_is_counted(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    with client.request("r") as request:
        late = request.span("late")
        late.__enter__()
    late.__exit__(None, None, None)
    request.add_span("later", 1, 2, 3)
    assert peer.expect(Request).spans == []
    assert client.dropped == 2
