"""Verdicts by the official exporter's encoding and connections to real receivers on loopback."""

from __future__ import annotations

import gzip
import os
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from tailspan import __version__
from tailspan.export.otlp import Outlets, VerdictExporter, breaker
from tailspan.export.otlp.breaker import State
from tailspan.export.tally import Tally
from tailspan.wire.otlp import Origin, Signal
from tests.builders import SPAN_ID, TRACE_ID, WALL_NS, sample_request, sample_verdict
from tests.conftest import eventually
from tests.e2e.backends import Backend, grpc_backend, http_backend, traces

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
def _running(endpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VerdictExporter]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    with (
        closing(Outlets(os.environ, folder / "otlp", 1 << 24)) as outlets,
        closing(Tally(folder / "tally")) as tally,
        closing(VerdictExporter(outlets, "node-1", tally)) as exporter,
    ):
        yield exporter


def _one_resource(received: Received) -> ResourceSpans:
    request, _ = received.get(timeout=20)
    (resource_spans,) = request.resource_spans
    return resource_spans


def _attributes(holder: Span | ResourceSpans) -> dict[str, object]:
    pairs = holder.attributes if isinstance(holder, Span) else holder.resource.attributes
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in pairs}


def test_receiver_gets_the_verdict_as_children_of_the_workers_span(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a real receiver
    received: Received = queue.Queue()
    with RECEIVERS[protocol](received) as endpoint, _running(endpoint, tmp_path, monkeypatch) as exporter:
        # WHEN one verdict is submitted
        exporter.submit(sample_verdict(), {"service.name": "triton", "k8s.pod.name": "triton-0"})
        resource_spans = _one_resource(received)
        eventually(lambda: exporter.stats().exported == 1, "it is counted")

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


def test_request_that_was_not_sampled_arrives_with_a_span_of_its_own(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: Received = queue.Queue()
    with RECEIVERS[protocol](received) as endpoint, _running(endpoint, tmp_path, monkeypatch) as exporter:
        exporter.submit(sample_verdict(request=sample_request(sampled=False)), {})
        (scope_spans,) = _one_resource(received).scope_spans

    own, *children = scope_spans.spans
    assert own.span_id.hex() == SPAN_ID
    assert {child.parent_span_id for child in children} == {own.span_id}


def test_standard_variables_are_honoured(protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    received: Received = queue.Queue()
    with RECEIVERS[protocol](received) as endpoint, _running(endpoint, tmp_path, monkeypatch) as exporter:
        exporter.submit(sample_verdict(), {})
        _, headers = received.get(timeout=20)

    assert headers["x-tenant"] == "blue"
    if protocol == "http/protobuf":  # the gRPC library takes compression off before the servicer sees it
        assert headers["content-encoding"] == "gzip"
        assert headers["path"] == "/v1/traces"


def test_an_outage_of_twenty_seconds_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces by gRPC and logs by HTTP at once, as each needs the same twenty seconds."""
    # GIVEN backends that have taken something, and have gone, and are tried again without much patience
    monkeypatch.setattr(breaker, "MOST_S", 5.0)
    backends = {Signal.TRACES: Backend(), Signal.LOGS: Backend()}
    receivers = {Signal.TRACES: grpc_backend, Signal.LOGS: http_backend}
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/protobuf")
    sent = [traces(0)]
    with grpc_backend(backends[Signal.TRACES]) as over_grpc, http_backend(backends[Signal.LOGS]) as over_http:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", over_grpc)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", f"{over_http}/v1/logs")
        ports = {Signal.TRACES: int(over_grpc.rpartition(":")[2]), Signal.LOGS: int(over_http.rpartition(":")[2])}
        outlets = Outlets(os.environ, tmp_path / "otlp", 1 << 26)
        for name in backends:
            outlets.put(name, sent[0], 1, Origin.OWN)
        eventually(lambda: all(outlets.stats()[name].items for name in backends), "all is well at first")

    with closing(outlets):
        # WHEN batches come for twenty seconds
        until_s = time.monotonic() + 20
        while time.monotonic() < until_s:
            sent.append(traces(len(sent)))
            for name in backends:
                outlets.put(name, sent[-1], 1, Origin.OWN)
            time.sleep(0.05)
        for name in backends:
            stats = outlets.stats()[name]
            assert stats.items.total() + stats.queued_items == len(sent)
            assert 19 < stats.age_s < 60
            assert set(stats.failures) == {"unreachable"}
            assert stats.failures.total() < 30

        # AND the backends come back
        with (
            receivers[Signal.TRACES](backends[Signal.TRACES], ports[Signal.TRACES]),
            receivers[Signal.LOGS](backends[Signal.LOGS], ports[Signal.LOGS]),
        ):
            # THEN all arrive, once and in order
            eventually(lambda: all(b.taken[-1:] == sent[-1:] for b in backends.values()), "the last arrives", 90)
            for name, backend in backends.items():
                assert backend.taken == sent
                eventually(lambda: outlets.stats()[name].breaker is State.CLOSED, "the breaker closes")  # noqa: B023
                assert not outlets.stats()[name].dropped
