"""A worker that traces with the OpenTelemetry SDK tells the same facts by one line more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags, Tracer
from opentelemetry.trace import SpanKind as OtelSpanKind

from tailspan.client import Client, otel
from tailspan.wire.spans import MAX_SPANS, Activation, Drops, Request, SpanKind

from .listener import Peer

TRACE = 0x0AF7651916CD43DD8448EB211C80319C
CALLER = 0xB7AD6B7169203331


@pytest.fixture
def processor(client_and_peer: tuple[Client, Peer]) -> otel.TailspanSpanProcessor:
    return otel.TailspanSpanProcessor(client_and_peer[0], max_open=4)


@pytest.fixture
def tracer(processor: otel.TailspanSpanProcessor) -> Iterator[Tracer]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    yield provider.get_tracer("test")
    provider.shutdown()


def called_remotely() -> Context:
    caller = SpanContext(TRACE, CALLER, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return trace.set_span_in_context(NonRecordingSpan(caller))


def test_a_local_root_with_its_children_is_one_request(
    client_and_peer: tuple[Client, Peer], tracer: Tracer
) -> None:
    _, peer = client_and_peer
    before = time.monotonic_ns()
    with tracer.start_as_current_span("POST", context=called_remotely()) as root:
        with tracer.start_as_current_span("model") as model, tracer.start_as_current_span("preprocess"):
            pass
        model.set_attribute("ignored", 1)
        root.update_name("POST /v1/infer")
    request = peer.expect(Request)
    assert peer.waiting() == []
    context = root.get_span_context()
    assert int.from_bytes(request.trace_id, "big") == context.trace_id == TRACE
    assert int.from_bytes(request.span_id, "big") == context.span_id
    assert int.from_bytes(request.parent_id, "big") == CALLER
    assert (request.name, request.status, request.sampled) == ("POST /v1/infer", "ok", True)
    # AND its times are the kernel's, whatever the SDK's wall clock says
    assert before <= request.start_mono_ns < request.end_mono_ns <= time.monotonic_ns()
    own = threading.get_native_id()
    assert request.tid == own
    assert [(s.name, s.kind, s.tid) for s in request.spans] == [
        ("preprocess", SpanKind.SYNC, own),
        ("model", SpanKind.SYNC, own),
    ]
    assert all(
        request.start_mono_ns <= s.start_mono_ns <= s.end_mono_ns <= request.end_mono_ns for s in request.spans
    )


def test_a_root_without_a_parent_has_a_parent_of_zeros(
    client_and_peer: tuple[Client, Peer], tracer: Tracer
) -> None:
    with tracer.start_as_current_span("r"):
        pass
    assert client_and_peer[1].expect(Request).parent_id == bytes(8)


def test_batch_and_model_are_read_from_any_span(client_and_peer: tuple[Client, Peer], tracer: Tracer) -> None:
    with tracer.start_as_current_span("r") as root:
        root.set_attribute(otel.MODEL_NAME, "resnet50")
        root.set_attribute(otel.MODEL_VERSION, "3")
        with tracer.start_as_current_span("run") as run:
            run.set_attributes({otel.BATCH_ID: 5512, otel.BATCH_SIZE: 5, otel.BATCH_CAPACITY: 8})
    request = client_and_peer[1].expect(Request)
    assert (request.model, request.model_version) == ("resnet50", "3")
    assert (request.batch_id, request.batch_size, request.batch_capacity) == (5512, 5, 8)


def test_an_attribute_of_the_wrong_type_costs_only_itself(
    client_and_peer: tuple[Client, Peer], tracer: Tracer
) -> None:
    client, peer = client_and_peer
    with tracer.start_as_current_span("r"), tracer.start_as_current_span("run") as run:
        run.set_attribute(otel.BATCH_ID, "not a number")
    request = peer.expect(Request)
    assert request.batch_id == 0
    assert [s.name for s in request.spans] == ["run"]
    assert client.dropped == 1


@pytest.mark.parametrize(
    ("attributes", "port"),
    [
        ({"client.port": 41234}, 41234),
        ({"net.peer.port": 41234}, 41234),
        ({"client.port": 443, "network.peer.port": 41234}, 41234),
        ({}, 0),
    ],
)
def test_the_port_of_the_other_end_is_read_from_the_requests_own_span(
    client_and_peer: tuple[Client, Peer], tracer: Tracer, attributes: dict[str, int], port: int
) -> None:
    with (
        tracer.start_as_current_span("r", kind=OtelSpanKind.SERVER, attributes=attributes),
        tracer.start_as_current_span("upstream", kind=OtelSpanKind.CLIENT, attributes={"network.peer.port": 443}),
    ):
        pass
    assert client_and_peer[1].expect(Request).peer_port == port


def test_a_root_that_calls_names_its_server_and_no_caller(
    client_and_peer: tuple[Client, Peer], tracer: Tracer
) -> None:
    with tracer.start_as_current_span("r", kind=OtelSpanKind.CLIENT, attributes={"network.peer.port": 443}):
        pass
    assert client_and_peer[1].expect(Request).peer_port == 0


def test_a_port_that_is_none_costs_only_itself(client_and_peer: tuple[Client, Peer], tracer: Tracer) -> None:
    client, peer = client_and_peer
    with tracer.start_as_current_span("r", attributes={"client.port": "http"}):
        pass
    assert peer.expect(Request).peer_port == 0
    assert client.dropped == 1


def test_a_failed_span_is_an_error(client_and_peer: tuple[Client, Peer], tracer: Tracer) -> None:
    with tracer.start_as_current_span("r") as root:
        root.set_status(Status(StatusCode.ERROR))
    assert client_and_peer[1].expect(Request).status == "error"


def test_a_span_on_another_thread_has_that_threads_tid(
    client_and_peer: tuple[Client, Peer], tracer: Tracer
) -> None:
    tids = {}

    def execute(parent: trace.Span) -> None:
        tids["run"] = threading.get_native_id()
        with tracer.start_as_current_span("run", context=trace.set_span_in_context(parent)):
            pass

    with tracer.start_as_current_span("r") as root:
        crosses = tracer.start_span("crosses")
        thread = threading.Thread(target=lambda: (execute(root), crosses.end()))
        thread.start()
        thread.join()
    spans = {s.name: s for s in client_and_peer[1].expect(Request).spans}
    assert spans["run"].tid == tids["run"]
    # AND of a span that one thread began and another ended, neither is accused
    assert spans["crosses"].tid == 0


def test_two_requests_of_one_trace_are_two_requests(client_and_peer: tuple[Client, Peer], tracer: Tracer) -> None:
    _, peer = client_and_peer
    with (
        tracer.start_as_current_span("a", context=called_remotely()),
        tracer.start_as_current_span("in a"),
        tracer.start_as_current_span("b", context=called_remotely()),
        tracer.start_as_current_span("in b"),
    ):
        pass
    inner, outer = peer.expect(Request), peer.expect(Request)
    assert (inner.name, [s.name for s in inner.spans]) == ("b", ["in b"])
    assert (outer.name, [s.name for s in outer.spans]) == ("a", ["in a"])
    assert inner.trace_id == outer.trace_id


def test_spans_of_one_request_are_bounded_and_counted(
    client_and_peer: tuple[Client, Peer], tracer: Tracer
) -> None:
    client, peer = client_and_peer
    with tracer.start_as_current_span("r"):
        for _ in range(MAX_SPANS + 23):
            with tracer.start_as_current_span("s"):
                pass
    assert len(peer.expect(Request).spans) == MAX_SPANS
    assert client.dropped == 23


def test_requests_that_never_end_are_forgotten_and_counted(
    client_and_peer: tuple[Client, Peer], tracer: Tracer, processor: otel.TailspanSpanProcessor
) -> None:
    client, peer = client_and_peer
    # GIVEN room for 4, WHEN 4 + 23 begin, each with a child
    roots = [tracer.start_span("r") for _ in range(4 + 23)]
    children = [tracer.start_span("c", context=trace.set_span_in_context(root)) for root in roots]
    # THEN the oldest are forgotten, as are the children that come too late for them
    assert client.dropped == 23 + 23
    assert len(processor._by_span) == 4 + 4
    # AND a forgotten one that ends after all is not told twice
    for span in children + roots:
        span.end()
    assert [type(m) for m in peer.waiting()] == [Request, Drops, Request, Request, Request]
    assert processor._by_span == processor._open == {}


def test_a_child_that_outlives_its_request_is_counted(
    client_and_peer: tuple[Client, Peer], tracer: Tracer
) -> None:
    client, peer = client_and_peer
    with tracer.start_as_current_span("r"):
        late = tracer.start_span("late")
    late.end()
    assert peer.expect(Request).spans == []
    assert client.dropped == 1


def test_a_span_that_its_sampler_dropped_is_not_seen(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(otel.TailspanSpanProcessor(client))
    with provider.get_tracer("test").start_as_current_span("r"):
        pass
    assert peer.waiting() == []
    assert client.dropped == 0


def test_on_a_loop_the_root_owns_its_steps(client_and_peer: tuple[Client, Peer], tracer: Tracer) -> None:
    client, peer = client_and_peer
    floor_ns = 20_000_000
    client.watch_asyncio(floor_ns)

    async def main() -> None:
        with tracer.start_as_current_span("r"):
            with tracer.start_as_current_span("awaits"):
                await asyncio.sleep(0)
            with tracer.start_as_current_span("works"):
                end = time.monotonic_ns() + floor_ns + 1_000_000
                while time.monotonic_ns() < end:
                    pass

    asyncio.run(main())
    step, request = peer.expect(Activation), peer.expect(Request)
    assert request.asynchronous
    assert step.owner == int.from_bytes(request.span_id, "big")
    assert [(s.name, s.kind) for s in request.spans] == [("awaits", SpanKind.AWAIT), ("works", SpanKind.SYNC)]


def test_spans_that_are_exported_say_which_thread_began_them() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(otel.ThreadIdSpanProcessor())
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    tids = {"root": threading.get_native_id()}

    def work() -> None:
        tids["work"] = threading.get_native_id()
        with tracer.start_as_current_span("work"):
            pass

    with tracer.start_as_current_span("root"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    provider.shutdown()

    said = {span.name: dict(span.attributes or {}) for span in exporter.get_finished_spans()}
    assert said == {name: {otel.THREAD_TID: tid} for name, tid in tids.items()}
