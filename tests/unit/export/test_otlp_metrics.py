from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tailspan import __version__
from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import Outcome
from tailspan.errors import UsageError
from tailspan.export import semconv
from tailspan.export.otlp_metrics import (
    MetricsPusher,
    agent_resource,
    encode,
    interval_s,
    metrics_configured,
)
from tailspan.export.prometheus import Metrics
from tailspan.timeline.tables import Join
from tests.conftest import eventually
from tests.gpus import TAKEN_MONO_NS, sample_gpu, sample_gpu_host
from tests.unit.export.exposed import exposed

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NOW_UNIX_NS = 1_763_000_000_000_000_023
BY_OTEL = {metric.otel: metric for metric in semconv.METRICS}
CUMULATIVE = 2
Key = tuple[str, frozenset[tuple[str, str]]]


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.request("infer", "resnet50", "3", "ok", 0.001)
    metrics.request("infer", "resnet50", "3", "ok", 0.4123, TRACE_ID, SPAN_ID, Outcome.NAMED, Cause.RUN_QUEUE)
    metrics.verdict(Cause.RUN_QUEUE, Outcome.NAMED, 0.05, 0.31)
    metrics.gpus(sample_gpu_host(sample_gpu()), TAKEN_MONO_NS)
    metrics.host_tcp({"Tcp:RetransSegs": 3037})
    metrics.joined(np.array([Join.SAID] * 23))
    return metrics


def _decoded(metrics: Metrics) -> Any:
    payload, _ = encode(metrics.registry, agent_resource("node-7", {}), NOW_UNIX_NS)
    request = ExportMetricsServiceRequest.FromString(payload)
    (of_resource,) = request.resource_metrics
    return of_resource


def _points(metrics: Metrics) -> Iterator[tuple[semconv.Metric, Any, Any]]:
    (of_scope,) = _decoded(metrics).scope_metrics
    for one in of_scope.metrics:
        data = getattr(one, one.WhichOneof("data"))
        for point in data.data_points:
            yield BY_OTEL[one.name], one, point


def _scraped(metrics: Metrics) -> dict[Key, float]:
    """An empty label is an absent one, in Prometheus too."""
    return {
        (sample.name, frozenset((name, value) for name, value in sample.labels.items() if value)): sample.value
        for family in exposed(metrics.registry).collect()
        for sample in family.samples
    }


def _pushed(metrics: Metrics) -> dict[Key, float]:
    """What a backend makes of it by OpenTelemetry's rules."""
    found: dict[Key, float] = {}
    for metric, _, point in _points(metrics):
        labels = {each.key.replace(".", "_"): each.value.string_value for each in point.attributes}
        if metric.instrument == "histogram":
            cumulated = np.cumsum(point.bucket_counts).tolist()
            for bound, count in zip((*point.explicit_bounds, "+Inf"), cumulated, strict=True):
                found[f"{metric.name}_bucket", frozenset((labels | {"le": str(bound)}).items())] = count
            found[f"{metric.name}_count", frozenset(labels.items())] = point.count
            found[f"{metric.name}_sum", frozenset(labels.items())] = point.sum
        else:
            found[metric.name, frozenset(labels.items())] = point.as_double
    return found


def test_what_is_pushed_is_what_is_scraped(metrics: Metrics) -> None:
    assert _pushed(metrics) == _scraped(metrics)
    _, points = encode(metrics.registry, {}, NOW_UNIX_NS)
    assert points == sum(1 for _ in _points(metrics))


def test_each_metric_has_opentelemetrys_name_kind_and_unit(metrics: Metrics) -> None:
    kinds = {"counter": "sum", "updowncounter": "sum", "gauge": "gauge", "histogram": "histogram"}
    for metric, one, _ in _points(metrics):
        assert (one.unit, one.description) == (metric.unit, metric.meaning)
        assert one.WhichOneof("data") == kinds[metric.instrument]
        if metric.instrument != "gauge":
            assert getattr(one, kinds[metric.instrument]).aggregation_temporality == CUMULATIVE
        assert one.sum.is_monotonic == (metric.instrument == "counter")
    assert {"hw.gpu.utilization", "hw.status", "tailspan.request.duration"} <= {
        one.name for _, one, _ in _points(metrics)
    }


def test_totals_begin_with_the_agent_unless_another_keeps_them(metrics: Metrics) -> None:
    for metric, _, point in _points(metrics):
        assert point.time_unix_nano == NOW_UNIX_NS
        theirs = metric in semconv.HOST_TCP or metric in semconv.GPU_HOST
        begun = 0 if theirs or metric.instrument == "gauge" else metrics.registry.start_unix_ns
        assert point.start_time_unix_nano == begun


def test_a_slow_request_leaves_its_ids_as_an_exemplar(metrics: Metrics) -> None:
    exemplars = [
        one for metric, _, point in _points(metrics) if metric.kind == "histogram" for one in point.exemplars
    ]
    (found,) = exemplars
    assert (found.trace_id.hex(), found.span_id.hex(), found.as_double) == (TRACE_ID, SPAN_ID, 0.4123)
    assert abs(found.time_unix_nano - time.time_ns()) < 60e9


@pytest.mark.parametrize("trace_id", ["no hex", "abcd", "00" * 17])
def test_an_id_that_is_none_is_left_out(trace_id: str) -> None:
    metrics = Metrics()
    metrics.request("infer", "m", "1", "ok", 0.4, trace_id, SPAN_ID, Outcome.NORMAL)
    (found,) = (
        one for metric, _, point in _points(metrics) if metric.kind == "histogram" for one in point.exemplars
    )
    assert (found.trace_id, found.span_id.hex()) == (b"", SPAN_ID)


def test_the_resource_is_the_agents_and_the_scope_ours(metrics: Metrics) -> None:
    decoded = _decoded(metrics)
    attributes = {each.key: each.value.string_value for each in decoded.resource.attributes}
    assert attributes == {
        "service.name": "tailspan",
        "service.version": __version__,
        "service.instance.id": "node-7",
        "host.name": "node-7",
    }
    (of_scope,) = decoded.scope_metrics
    assert (of_scope.scope.name, of_scope.scope.version) == (semconv.SCOPE, __version__)


def test_resource_attributes_of_the_environment_win() -> None:
    environ = {
        "OTEL_RESOURCE_ATTRIBUTES": " deployment.environment.name = prod%2Ceu ,host.name=other,,nonsense,empty=",
        "OTEL_SERVICE_NAME": "kernel-agent",
    }
    found = agent_resource("node-7", environ)
    assert found["deployment.environment.name"] == "prod,eu"
    assert (found["host.name"], found["service.name"], found["service.instance.id"]) == (
        "other",
        "kernel-agent",
        "node-7",
    )
    assert not {"nonsense", "empty", ""} & set(found)


@given(st.text(max_size=40))
def test_any_resource_attributes_are_taken_or_left(text: str) -> None:
    payload, _ = encode(
        Metrics().registry, agent_resource("node-7", {"OTEL_RESOURCE_ATTRIBUTES": text}), NOW_UNIX_NS
    )
    assert ExportMetricsServiceRequest.FromString(payload).resource_metrics


ENDPOINT, OF_METRICS = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({ENDPOINT: "http://backend:4317"}, False),
        ({OF_METRICS: "http://backend:4317"}, True),
        ({ENDPOINT: "http://backend:4317", "OTEL_METRICS_EXPORTER": "otlp"}, True),
        ({ENDPOINT: "http://backend:4317", "OTEL_METRICS_EXPORTER": "prometheus, otlp"}, True),
        ({ENDPOINT: "http://backend:4317", "OTEL_METRICS_EXPORTER": "prometheus"}, False),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, False),
        ({OF_METRICS: "http://backend:4317", "OTEL_METRICS_EXPORTER": "none"}, False),
    ],
)
def test_metrics_are_pushed_where_somebody_asks_for_it(environ: dict[str, str], expected: bool) -> None:
    assert metrics_configured(environ) is expected


@pytest.mark.parametrize(("text", "expected"), [(None, 60), ("", 60), ("15000", 15), ("500", 0.5)])
def test_the_interval_is_the_standard_variables(text: str | None, expected: float) -> None:
    assert interval_s({} if text is None else {"OTEL_METRIC_EXPORT_INTERVAL": text}) == expected


@pytest.mark.parametrize("text", ["soon", "0", "-1", "499", "nan", "inf", "1e300"])
def test_an_interval_that_is_none_is_a_clear_error(text: str) -> None:
    with pytest.raises(UsageError, match=f"OTEL_METRIC_EXPORT_INTERVAL={text}: milliseconds, at least 500"):
        interval_s({"OTEL_METRIC_EXPORT_INTERVAL": text})


def test_metrics_are_pushed_at_intervals_and_at_the_end(metrics: Metrics) -> None:
    pushed: list[tuple[bytes, int]] = []
    pusher = MetricsPusher(metrics.registry, {}, 0.01, lambda *push: pushed.append(push))
    eventually(lambda: len(pushed) >= 3, "three pushes")
    metrics.unjudged()
    pusher.close()

    assert b"unjudged" in pushed[-1][0]
    assert len({points for _, points in pushed[:3]}) == 1
    assert "tailspan-metrics-push" not in {thread.name for thread in threading.enumerate()}


def test_a_push_that_fails_is_not_the_last(metrics: Metrics) -> None:
    attempts: list[int] = []

    def put(payload: bytes, points: int) -> None:
        attempts.append(points)
        raise OSError("no")

    pusher = MetricsPusher(metrics.registry, {}, 0.01, put)
    eventually(lambda: len(attempts) >= 3, "three attempts")
    pusher.close()
    assert len(attempts) > 3
