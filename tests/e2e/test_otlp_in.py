"""Workers that know nothing of tailspan, but trace with the OpenTelemetry SDK and its official exporters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tailspan.collect.bpf.source import BpfSource
from tailspan.collect.otlp.server import OtlpReceiver
from tailspan.export.otlp.outlets import Outlets
from tailspan.timeline.inbox import Received
from tailspan.wire.otlp import Origin, Signal
from tailspan.wire.spans import Hello, Request, SpanKind
from tests.conftest import eventually
from tests.e2e.backends import BACKENDS, Backend

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

REQUESTS = 23
#: Sends to argv[2], and the same to argv[3]; serves argv[4] requests, each with a child on a thread of its own.
WORKER = """
import json, os, sys, threading, time
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.trace import SpanKind, Status, StatusCode
from tailspan.client.otel import ThreadIdSpanProcessor

protocol, *endpoints = sys.argv[1:4]
if protocol == "grpc":
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    spans = [OTLPSpanExporter(endpoint=endpoint, insecure=True) for endpoint in endpoints]
    metrics = [OTLPMetricExporter(endpoint=endpoint, insecure=True) for endpoint in endpoints[:1]]
else:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    spans = [OTLPSpanExporter(endpoint=endpoint + "/v1/traces") for endpoint in endpoints]
    metrics = [OTLPMetricExporter(endpoint=endpoint + "/v1/metrics") for endpoint in endpoints[:1]]

resource = Resource({"service.name": "resnet", "service.version": "3"})
provider = TracerProvider(resource=resource, shutdown_on_exit=False)
provider.add_span_processor(ThreadIdSpanProcessor())
for exporter in spans:
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=600_000))
tracer = provider.get_tracer("worker")
meters = MeterProvider([PeriodicExportingMetricReader(one) for one in metrics], resource, shutdown_on_exit=False)
counter = meters.get_meter("worker").create_counter("served")
caller = trace.SpanContext(0xABC, 0xDEF, True, trace.TraceFlags(1))
remote = trace.set_span_in_context(trace.NonRecordingSpan(caller))
told = []

def model(parent):
    with tracer.start_as_current_span("model", context=trace.set_span_in_context(parent)) as span:
        span.set_attribute("gen_ai.request.model", "resnet50")
        told[-1]["model"] = threading.get_native_id()
        time.sleep(0.001)

for number in range(int(sys.argv[4])):
    attributes = {"http.request.header.x-request-id": [f"r{number}"], "network.peer.port": 40000 + number}
    before = time.monotonic_ns()
    with tracer.start_as_current_span("POST /infer", remote, SpanKind.SERVER, attributes) as root:
        told.append({"span": root.get_span_context().span_id, "tid": threading.get_native_id()})
        thread = threading.Thread(target=model, args=(root,))
        thread.start()
        thread.join()
        counter.add(1)
        if number == 7:
            root.set_status(Status(StatusCode.ERROR))
    told[-1] |= {"before": before, "after": time.monotonic_ns()}
provider.shutdown()
meters.shutdown()
print(json.dumps(told))
"""


@pytest.mark.parametrize("compression", ["", "gzip"])
@pytest.mark.parametrize("protocol", BACKENDS)
def test_what_the_sdk_exports_is_forwarded_unchanged_and_joined(
    source: BpfSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str, compression: str
) -> None:
    forwarded, direct = Backend(), Backend()
    with BACKENDS[protocol](forwarded) as backend, BACKENDS[protocol](direct) as beside:
        # GIVEN a receiver whose messages go on to a backend
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", backend)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        outlets = Outlets(os.environ, tmp_path, 1 << 20)

        def forward(signal: Signal, body: bytes, items: int, is_json: bool) -> None:
            outlets.put(signal, body, items, Origin.FORWARDED, is_json=is_json)

        receiver = OtlpReceiver("127.0.0.1:0", "127.0.0.1:0", forward, source)
        port = receiver.grpc_port if protocol == "grpc" else receiver.http_port
        try:
            # WHEN a worker serves, and exports to the receiver, and to another backend directly
            command = [sys.executable, "-c", WORKER, protocol, f"http://127.0.0.1:{port}", beside, str(REQUESTS)]
            given = {**os.environ, **({"OTEL_EXPORTER_OTLP_COMPRESSION": compression} if compression else {})}
            worker = subprocess.Popen(
                command, env=given, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            said, errors = worker.communicate(timeout=60)
            assert (worker.returncode, errors) == (0, b"")
            received = receiver.read()
            eventually(
                lambda: forwarded.payloads(Signal.TRACES) and forwarded.payloads(Signal.METRICS),
                "all is forwarded",
            )
        finally:
            receiver.close()
            outlets.close(1.0)

    # THEN both backends have the same bytes
    assert forwarded.payloads(Signal.TRACES) == direct.payloads(Signal.TRACES) != []
    assert receiver.received[Signal.TRACES] == 2 * REQUESTS
    assert receiver.received[Signal.METRICS] >= 1
    assert receiver.refused == receiver.broken == {}
    assert receiver.connected() == [worker.pid]

    # AND the requests are those that were served, on the kernel's clock
    check(received, worker.pid, json.loads(said))


def check(received: list[Received], pid: int, told: list[dict[str, int]]) -> None:
    assert {one.tgid for one in received} == {pid}
    (hello,) = (one.message for one in received if isinstance(one.message, Hello))
    assert (hello.service, hello.service_version) == ("resnet", "3")
    requests = sorted(
        (one.message for one in received if isinstance(one.message, Request)), key=lambda one: one.start_mono_ns
    )
    assert len(requests) == len(told) == REQUESTS
    for number, (request, truth) in enumerate(zip(requests, told, strict=True)):
        assert int.from_bytes(request.trace_id, "big") == 0xABC
        assert int.from_bytes(request.parent_id, "big") == 0xDEF
        assert int.from_bytes(request.span_id, "big") == truth["span"]
        assert (request.name, request.request_id, request.model) == ("POST /infer", f"r{number}", "resnet50")
        assert (request.peer_port, request.tid) == (40_000 + number, truth["tid"])
        assert request.status == ("error" if number == 7 else "ok")
        (span,) = request.spans
        assert (span.name, span.kind, span.tid) == ("model", SpanKind.SYNC, truth["model"])
        # a microsecond: the SDK's clock is converted
        assert truth["before"] - 1000 <= request.start_mono_ns <= span.start_mono_ns
        assert span.end_mono_ns <= request.end_mono_ns <= truth["after"] + 1000
