"""A worker that traces with the OpenTelemetry SDK and knows nothing of tailspan: verdicts in its own traces."""

from __future__ import annotations

import http.client
import queue
from collections.abc import Callable

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.conftest import eventually
from tests.e2e.conftest import AgentProcess, free_port, metric
from tests.e2e.test_otlp_receivers import RECEIVERS, Received
from tests.workloads import LAST_CPU, cpu_hog, program

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

#: An HTTP server of threads; its instrumentation is what everybody's is, its spans are sent to argv[2].
SERVE = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
if sys.argv[1] == "grpc":
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    exporter = OTLPSpanExporter(endpoint=sys.argv[2], insecure=True)
else:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    exporter = OTLPSpanExporter(endpoint=sys.argv[2] + "/v1/traces")

provider = TracerProvider(resource=Resource({"service.name": "sdk-worker"}))
provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=300))
tracer = provider.get_tracer("worker")

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        with tracer.start_as_current_span(
            "POST /toy",
            context=TraceContextTextMapPropagator().extract(dict(self.headers)),
            kind=SpanKind.SERVER,
            attributes={"network.peer.port": self.client_address[1]},
        ):
            with tracer.start_as_current_span("run"):
                until = time.thread_time() + 0.008
                while time.thread_time() < until: pass
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
    def log_message(self, *args): pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.readline()
provider.shutdown()
"""


def ask(port: int, trace: int, number: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/", headers={"traceparent": f"00-{trace:032x}-{number:016x}-01"})
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize("protocol", RECEIVERS)
def test_a_worker_with_only_the_sdk_gets_verdicts_in_its_own_traces(
    run_agent: Callable[..., AgentProcess], protocol: str
) -> None:
    received: Received = queue.Queue()
    receiver, metrics = free_port(), free_port()
    with RECEIVERS[protocol](received) as backend:
        # GIVEN an agent that takes OTLP and forwards it, and a worker that sends it there
        agent = run_agent(
            f"otlp.{protocol.partition('/')[0]}=127.0.0.1:{receiver}",
            f"export.prometheus=127.0.0.1:{metrics}",
            environment={"OTEL_EXPORTER_OTLP_ENDPOINT": backend, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol},
        )
        with program(SERVE, protocol, f"http://127.0.0.1:{receiver}", cpu=LAST_CPU) as worker:
            worker.go()
            port = int(worker.line())
            for number in range(1, 62):
                ask(port, 0xABC, number)
            eventually(
                lambda: metric(metrics, 'tailspan_requests_joined_total{by="socket"}') >= 20, "they are joined"
            )
            # WHEN its CPU is taken by others
            with cpu_hog(LAST_CPU) as a, cpu_hog(LAST_CPU) as b:
                for number in range(1, 32):
                    ask(port, 0xDEF, number)
            worker.go()
            worker.finish()
        eventually(
            lambda: metric(metrics, 'tailspan_otlp_received_items_total{signal="traces"}') == 2 * 92, "all come"
        )
        agent.stop()

    # THEN every span of its own was forwarded
    own, ours = [], []
    while not received.empty():
        for resource in received.get()[0].resource_spans:
            for scope in resource.scope_spans:
                (ours if scope.scope.name == "tailspan" else own).extend(scope.spans)
    assert len(own) == 2 * 92
    # AND its slow requests have verdicts in their own traces, below their own spans, that name who had the CPU
    servers = {span.span_id: span for span in own if span.kind == Span.SPAN_KIND_SERVER}
    slow = {id_ for id_, span in servers.items() if span.trace_id.hex() == f"{0xDEF:032x}"}
    verdicts = {span.parent_span_id: span for span in ours if span.name == "tailspan.verdict"}
    assert all(span.trace_id == servers[parent].trace_id for parent, span in verdicts.items())
    named = [_attributes(verdicts[id_]) for id_ in slow & verdicts.keys()]
    assert len(named) >= 7
    assert {each["tailspan.thread.join"] for each in named} == {"socket"}
    right = [each for each in named if each.get("tailspan.culprit.pid") in (a, b)]
    assert len(right) >= 0.8 * len(named)


def _attributes(span: Span) -> dict[str, object]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in span.attributes}
