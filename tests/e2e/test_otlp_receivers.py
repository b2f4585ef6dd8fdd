"""Verdicts through the official exporter to real receivers on loopback, and to backends that are dead."""

from __future__ import annotations

import gzip
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from tailspan import __version__
from tailspan.export import otlp
from tailspan.export.otlp import OtlpExporter
from tests.builders import SPAN_ID, TRACE_ID, WALL_NS, sample_request, sample_verdict

Received = queue.Queue[tuple[trace_service_pb2.ExportTraceServiceRequest, dict[str, str]]]


@contextmanager
def grpc_receiver(received: Received, port: int = 0) -> Iterator[str]:
    class Servicer(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):  # noqa: N802 (the service's own name)
            received.put((request, {str(k): str(v) for k, v in context.invocation_metadata()}))
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def http_receiver(received: Received, port: int = 0) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
            received.put((request, {"path": self.path, **{k.lower(): v for k, v in self.headers.items()}}))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


RECEIVERS = {"grpc": grpc_receiver, "http/protobuf": http_receiver}


@pytest.fixture(params=RECEIVERS)
def protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", request.param)
    name: str = request.param
    return name


@contextmanager
def _running(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpExporter]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    exporter = OtlpExporter("node-1")
    try:
        yield exporter
    finally:
        exporter.close(1.0)


def _one_resource(received: Received) -> ResourceSpans:
    request, _ = received.get(timeout=20)
    (resource_spans,) = request.resource_spans
    return resource_spans


def _attributes(holder: Span | ResourceSpans) -> dict[str, object]:
    pairs = holder.attributes if isinstance(holder, Span) else holder.resource.attributes
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in pairs}


def test_receiver_gets_the_verdict_as_children_of_the_workers_span(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a real receiver
    received: Received = queue.Queue()
    with RECEIVERS[protocol](received) as endpoint, _running(endpoint, monkeypatch) as exporter:
        # WHEN one verdict is submitted
        exporter.submit(sample_verdict(), {"service.name": "triton", "k8s.pod.name": "triton-0"})
        resource_spans = _one_resource(received)

    # THEN its spans lie in the request's trace, below its span and inside its time
    (scope_spans,) = resource_spans.scope_spans
    start = sample_request().start_unix_ns
    assert [span.name for span in scope_spans.spans] == [
        "tailspan.verdict",
        "tailspan.futex",
        "tailspan.run_queue",
        "tailspan.on_cpu",
    ]
    for span in scope_spans.spans:
        assert span.trace_id.hex() == TRACE_ID
        assert span.parent_span_id.hex() == SPAN_ID
        assert span.kind == Span.SPAN_KIND_INTERNAL
        assert start <= span.start_time_unix_nano < span.end_time_unix_nano <= start + WALL_NS

    # AND the resource is the worker's, and only the scope is ours
    assert (scope_spans.scope.name, scope_spans.scope.version) == ("tailspan", __version__)
    assert _attributes(resource_spans) == {
        "service.name": "triton",
        "process.pid": 8100,
        "host.name": "node-1",
        "k8s.pod.name": "triton-0",
    }
    verdict = _attributes(scope_spans.spans[0])
    assert verdict["tailspan.cause"] == "run_queue"
    assert verdict["tailspan.culprit.label"] == "stress-ng[9001]"
    assert verdict["tailspan.ledger.run_queue"] == pytest.approx(0.361)
    assert exporter.stats().exported == 1


def test_request_that_was_not_sampled_arrives_with_a_span_of_its_own(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: Received = queue.Queue()
    with RECEIVERS[protocol](received) as endpoint, _running(endpoint, monkeypatch) as exporter:
        exporter.submit(sample_verdict(request=sample_request(sampled=False)), {})
        (scope_spans,) = _one_resource(received).scope_spans

    own, *children = scope_spans.spans
    assert own.span_id.hex() == SPAN_ID
    assert {child.parent_span_id for child in children} == {own.span_id}


def test_standard_variables_are_honoured(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    received: Received = queue.Queue()
    with RECEIVERS[protocol](received) as endpoint, _running(endpoint, monkeypatch) as exporter:
        exporter.submit(sample_verdict(), {})
        _, headers = received.get(timeout=20)

    assert headers["x-tenant"] == "blue"
    if protocol == "http/protobuf":  # the gRPC library takes compression off before the servicer sees it
        assert headers["content-encoding"] == "gzip"
        assert headers["path"] == "/v1/traces"


@contextmanager
def refusing() -> Iterator[str]:
    """A port that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def silent() -> Iterator[str]:
    """A port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("backend", [refusing, silent])
def test_dead_backend_holds_up_neither_submit_nor_close_and_every_verdict_is_counted(
    protocol: str, backend: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with backend() as endpoint:
        # GIVEN an exporter whose first verdicts are stuck in the official exporter's retries
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        exporter = OtlpExporter("node-1", capacity=10)

        # WHEN 23 are submitted, and it is closed with one second
        before = time.monotonic()
        for _ in range(23):
            exporter.submit(sample_verdict(), {})
        submitted = time.monotonic()
        exporter.close(timeout_s=1.0)
        closed = time.monotonic()

    # THEN neither took long, and all 23 are accounted for
    assert submitted - before < 0.5
    assert closed - submitted < 1.5
    stats = exporter.stats()
    assert stats.exported == stats.queued == 0
    assert stats.dropped.total() == 23
    assert set(stats.dropped) <= {otlp.QUEUE_FULL, otlp.EXPORT_FAILED, otlp.SHUTDOWN}


def test_backend_that_comes_back_gets_verdicts_again(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a backend that went away, and a verdict that could not be delivered
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    received: Received = queue.Queue()
    with RECEIVERS[protocol](received) as endpoint:
        port = int(endpoint.rpartition(":")[2])
    with _running(endpoint, monkeypatch) as exporter:
        exporter.submit(sample_verdict(), {})
        _eventually(lambda: exporter.stats().dropped[otlp.EXPORT_FAILED])

        # WHEN it listens again on the same port, and slow requests keep coming
        with RECEIVERS[protocol](received, port):

            def delivered() -> int:
                if not exporter.stats().queued:
                    exporter.submit(sample_verdict(), {})
                return exporter.stats().exported

            # THEN they arrive: not necessarily the first, since gRPC waits a second before it connects anew
            _eventually(delivered)
            assert len(_one_resource(received).scope_spans[0].spans) == 4


def _eventually(true: Callable[[], object], budget_s: float = 20.0) -> None:
    deadline = time.monotonic() + budget_s
    while not true():
        assert time.monotonic() < deadline, "the condition did not come about"
        time.sleep(0.02)
