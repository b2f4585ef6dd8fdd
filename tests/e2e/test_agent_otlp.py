"""The running agent, a slow request, and a real receiver: it arrives in the worker's own trace."""

from __future__ import annotations

import queue
from collections.abc import Callable

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tailspan.wire.otlp import Signal
from tests.e2e.backends import Backend, grpc_backend
from tests.e2e.conftest import AgentProcess
from tests.e2e.test_otlp_receivers import RECEIVERS, Received
from tests.workloads import LAST_CPU, cpu_hog, program

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

TRACED = """
import tailspan.client
client = tailspan.client.connect(service="toy", service_version="7", path=sys.argv[1])

def burn(ms):
    until = time.thread_time() + ms / 1000
    while time.thread_time() < until: pass

def serve(count, trace_id, gap=0.012):
    for i in range(count):
        parent = f"00-{trace_id:032x}-{i + 1:016x}-01"
        with client.request("POST /toy", traceparent=parent) as request:
            burn(8)
        time.sleep(gap)

serve(60, 0xabc)
print("warm", flush=True)
sys.stdin.readline()
serve(15, 0xdef, 0.06)  # fewer at a time than the agent would rather store than judge
"""


@pytest.mark.parametrize("protocol", RECEIVERS)
def test_slow_requests_arrive_in_their_own_trace_inside_their_own_time(
    run_agent: Callable[..., AgentProcess], protocol: str
) -> None:
    received: Received = queue.Queue()
    with RECEIVERS[protocol](received) as endpoint:
        agent = run_agent(
            environment={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        )
        with program(TRACED, agent.socket, cpu=LAST_CPU) as worker:
            worker.go()
            assert worker.line() == "warm"
            with cpu_hog(LAST_CPU) as a, cpu_hog(LAST_CPU) as b, cpu_hog(LAST_CPU) as c:
                worker.go()
                worker.finish()
        agent.stop()  # delivers what is queued

    expected = {v.request.span_id: v for v in agent.verdicts() if v.request.trace_id == f"{0xDEF:032x}"}
    assert len(expected) >= 10
    seen = set()
    while not received.empty():
        request, _ = received.get()
        for resource in request.resource_spans:
            attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            assert attributes["service.name"] == "toy"
            for scope in resource.scope_spans:
                assert scope.scope.name == "tailspan"
                for span in scope.spans:
                    verdict = expected.get(span.parent_span_id.hex())
                    if verdict is None:
                        continue
                    seen.add(verdict.request.span_id)
                    begin = verdict.request.start_unix_ns
                    assert span.trace_id.hex() == verdict.request.trace_id
                    assert begin <= span.start_time_unix_nano <= span.end_time_unix_nano
                    assert span.end_time_unix_nano <= begin + verdict.request.wall_ns
    assert seen == set(expected)
    right = [v for v in expected.values() if v.culprit and v.culprit.pid in (a, b, c)]
    assert len(right) >= 0.9 * len(expected)


def test_the_agents_own_metrics_leave_by_otlp_too(run_agent: Callable[..., AgentProcess]) -> None:
    backend = Backend()
    with grpc_backend(backend) as endpoint:
        agent = run_agent(
            environment={
                "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
                "OTEL_METRICS_EXPORTER": "otlp",
                "OTEL_METRIC_EXPORT_INTERVAL": "500",
            }
        )
        with program(TRACED, agent.socket, cpu=LAST_CPU) as worker:
            worker.go()
            assert worker.line() == "warm"
            worker.go()
            worker.finish()
        agent.stop()  # and pushes once more
    pushed = backend.payloads(Signal.METRICS)
    assert len(pushed) >= 2
    (of_agent,) = ExportMetricsServiceRequest.FromString(pushed[-1]).resource_metrics
    assert "tailspan" in {pair.value.string_value for pair in of_agent.resource.attributes}
    durations = next(m for m in of_agent.scope_metrics[0].metrics if m.name == "tailspan.request.duration")
    assert sum(point.count for point in durations.histogram.data_points) == 75
