from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tailspan import __version__
from tailspan.attribute.causes import N_CAUSES, Cause
from tailspan.attribute.verdict import Outcome
from tailspan.export import semconv
from tailspan.export.prometheus import Metrics

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def _value(metrics: Metrics, sample: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(sample, labels)


def _fill(metrics: Metrics) -> None:
    """Every metric gets a sample."""
    metrics.request("infer", "resnet50", "3", "ok", 0.4123, TRACE_ID)
    metrics.ledger("infer", [1_000_000] * N_CAUSES)
    metrics.verdict(Cause.RUN_QUEUE, Outcome.NAMED, 0.05)
    metrics.records(1009, 101)
    metrics.forgotten(3)
    metrics.unjudged()
    metrics.lost("cycle", 23)
    metrics.dropped_messages("malformed", 2)
    metrics.probes({"sched": True, "irq": False})
    metrics.window({"cycles": 1000})
    metrics.exporter("otlp", 5, {"queue_full": 2})
    metrics.agent(1.5, 60 << 20)
    metrics.bpf_run_time([("on_sched_switch", 0.25)])
    for number in range(70):
        metrics.request(f"route{number}", "", "", "ok", 0.001)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_a_request_is_observed_in_its_bucket(metrics: Metrics) -> None:
    metrics.request("infer", "resnet50", "3", "ok", 0.004)

    labels = {"name": "infer", "model": "resnet50", "version": "3", "status": "ok"}
    assert _value(metrics, "tailspan_request_duration_seconds_bucket", le="0.002", **labels) == 0
    assert _value(metrics, "tailspan_request_duration_seconds_bucket", le="0.005", **labels) == 1
    assert _value(metrics, "tailspan_request_duration_seconds_sum", **labels) == 0.004


def test_ledger_time_adds_up_by_cause_over_requests(metrics: Metrics) -> None:
    parts_ns = [0] * N_CAUSES
    parts_ns[Cause.RUN_QUEUE], parts_ns[Cause.ON_CPU] = 361_000_000, 39_000_000

    for _ in range(23):
        metrics.ledger("infer", parts_ns)

    total = "tailspan_request_time_seconds_total"
    assert _value(metrics, total, cause="run_queue", name="infer") == pytest.approx(23 * 0.361)
    assert _value(metrics, total, cause="on_cpu", name="infer") == pytest.approx(23 * 0.039)
    assert _value(metrics, total, cause="futex", name="infer") is None


def test_slow_requests_are_counted_by_cause_and_outcome(metrics: Metrics) -> None:
    metrics.verdict(Cause.RUN_QUEUE, Outcome.NAMED, 0.05)
    metrics.verdict(None, Outcome.INCONCLUSIVE, 0.3)

    assert _value(metrics, "tailspan_slow_requests_total", cause="run_queue", outcome="named") == 1
    assert _value(metrics, "tailspan_slow_requests_total", cause="none", outcome="inconclusive") == 1
    assert _value(metrics, "tailspan_verdict_latency_seconds_count") == 2


def test_probe_that_is_not_attached_reads_0_and_not_nothing(metrics: Metrics) -> None:
    metrics.probes({"sched": True, "irq": False})
    assert _value(metrics, "tailspan_probe_attached", probe="sched") == 1
    assert _value(metrics, "tailspan_probe_attached", probe="irq") == 0


def test_totals_kept_elsewhere_are_not_counted_twice_and_may_start_over(
    metrics: Metrics,
) -> None:
    for total in (5, 5, 8, 2):  # 2: it has started over
        metrics.exporter("otlp", total, {})
    assert _value(metrics, "tailspan_exported_total", exporter="otlp") == 10


def test_build_info_carries_the_version(metrics: Metrics) -> None:
    assert _value(metrics, "tailspan_build_info", version=__version__) == 1


def test_label_sets_beyond_the_limit_are_kept_under_other_and_counted() -> None:
    # GIVEN room for three label sets
    metrics = Metrics(max_label_sets=3)

    # WHEN 23 routes come
    parts_ns = [1_000_000_000] * N_CAUSES
    for number in range(23):
        metrics.request(f"route{number}", "m", "1", "ok", 0.001)
        metrics.ledger(f"route{number}", parts_ns)
    metrics.request("route0", "m", "1", "ok", 0.001)

    # THEN the first three have their own series, the other 20 share one, and nothing is lost
    other = dict.fromkeys(("name", "model", "version", "status"), "other")
    count = "tailspan_request_duration_seconds_count"
    assert _value(metrics, count, name="route0", model="m", version="1", status="ok") == 2
    assert _value(metrics, count, **other) == 20
    assert _value(metrics, "tailspan_label_overflows_total", metric="tailspan_request_duration_seconds") == 20
    # AND the cause, which is ours, is kept
    assert _value(metrics, "tailspan_request_time_seconds_total", cause="futex", name="other") == 20


def test_worst_case_stays_below_5000_series() -> None:
    metrics = Metrics()
    parts_ns = [1_000_000] * N_CAUSES
    for number in range(1000):
        metrics.request(f"route{number}", f"model{number}", "1", "ok", 0.001)
        metrics.ledger(f"route{number}", parts_ns)
    _fill(metrics)

    series = sum(len(family.samples) for family in metrics.registry.collect())

    assert 2000 < series < 5000


def test_a_slow_request_leaves_its_trace_id_as_an_exemplar(metrics: Metrics) -> None:
    metrics.request("infer", "m", "1", "ok", 0.001)
    metrics.request("infer", "m", "1", "ok", 0.4123, TRACE_ID)

    text = generate_openmetrics(metrics.registry).decode()
    exemplars = [
        (sample.labels["le"], sample.exemplar.labels, sample.exemplar.value)
        for family in parse_openmetrics(text)
        for sample in family.samples
        if sample.exemplar
    ]

    assert exemplars == [("0.5", {"trace_id": TRACE_ID}, 0.4123)]


@pytest.mark.parametrize(
    ("generate", "parse"),
    [(generate_latest, parse_text), (generate_openmetrics, parse_openmetrics)],
    ids=["text", "openmetrics"],
)
def test_what_is_exposed_parses_back_to_the_declared_metrics(
    metrics: Metrics, generate: Callable[..., bytes], parse: Callable[..., object]
) -> None:
    _fill(metrics)

    families = {family.name: family for family in parse(generate(metrics.registry).decode())}

    declared = {metric.name.removesuffix("_total"): metric for metric in semconv.METRICS}
    assert set(families) == set(declared)
    for name, family in families.items():
        metric = declared[name]
        assert (family.type, family.documentation) == (metric.kind, metric.meaning)
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(metric.labels)
        assert family.samples


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (package prometheus) is not installed")
def test_promtool_has_no_complaint(metrics: Metrics) -> None:
    _fill(metrics)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(metrics.registry), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
