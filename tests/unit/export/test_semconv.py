from __future__ import annotations

import inspect
import re
from functools import partialmethod

import pytest
from opentelemetry.semconv._incubating.attributes import hw_attributes
from opentelemetry.semconv._incubating.metrics import hw_metrics

from tailspan.attribute.causes import Cause
from tailspan.export import semconv

#: Names that OpenTelemetry defines and that mean the same here; all others carry our prefix.
OTEL_NAMES = {"service.name", "process.pid", "host.name", "error.type", "hw.id"}
UNIT_SUFFIXES = {"s": "_seconds", "By": "_bytes", "Hz": "_hertz", "W": "_watts", "J": "_joules", "Cel": "_celsius"}


def test_every_attribute_has_our_prefix_or_is_opentelemetrys_own() -> None:
    ours = {attribute.name for attribute in semconv.ATTRIBUTES} - OTEL_NAMES
    assert all(re.fullmatch(r"tailspan(\.[a-z0-9_]+)+", name) for name in ours)


def test_no_name_is_defined_twice() -> None:
    for names in (
        [attribute.name for attribute in semconv.ATTRIBUTES],
        [metric.name for metric in semconv.METRICS],
        [semconv.VERDICT_SPAN.name, *(span.name for span in semconv.STEP_SPANS.values())],
    ):
        assert len(names) == len(set(names))


def test_no_attribute_is_also_the_namespace_of_another() -> None:
    # OpenTelemetry forbids it: a backend that nests attributes could keep only one of the two.
    names = {attribute.name for attribute in semconv.ATTRIBUTES}
    prefixes = {name[: dot.start()] for name in names for dot in re.finditer(r"\.", name)}
    assert not names & prefixes


def test_every_cause_has_a_span_a_ledger_attribute_and_an_attribute_for_what_is_below_the_floor() -> None:
    for names in (semconv.STEP_SPANS, semconv.LEDGER, semconv.BELOW_FLOOR):
        assert set(names) == set(Cause)


def test_everything_has_a_meaning_in_words() -> None:
    everything = [*semconv.ATTRIBUTES, *semconv.METRICS, semconv.VERDICT_SPAN, *semconv.STEP_SPANS.values()]
    assert all(thing.meaning.strip() for thing in everything)


@pytest.mark.parametrize("metric", semconv.METRICS, ids=lambda metric: metric.name)
def test_metric_follows_the_naming_conventions(metric: semconv.Metric) -> None:
    stem = metric.name.removesuffix("_total")

    assert re.fullmatch(r"(tailspan|hw)_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert stem.endswith(UNIT_SUFFIXES.get(metric.unit, ""))
    assert not set(metric.labels) & {"pid", "tid", "tgid", "trace_id", "span_id", "request_id", "comm", "le"}


class PrometheusMeter:
    """What instruments of OpenTelemetry are called in Prometheus: name -> kind, unit."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[str, str]] = {}

    def _make(self, kind: str, share: str, *, name: str, unit: str, **_: object) -> None:
        suffix = share if unit == "1" else UNIT_SUFFIXES.get(unit, "")
        total = "_total" if kind == "counter" else ""
        self.made[name.replace(".", "_") + suffix + total] = kind, unit

    create_counter = partialmethod(_make, "counter", "")
    create_up_down_counter = partialmethod(_make, "gauge", "")
    create_observable_gauge = partialmethod(_make, "gauge", "_ratio")


def test_hardware_metrics_are_opentelemetrys_as_prometheus_has_them() -> None:
    meter = PrometheusMeter()
    for name, create in inspect.getmembers(hw_metrics, inspect.isfunction):
        if name.startswith("create_hw_"):
            create(*[meter, None][: len(inspect.signature(create).parameters)])
    attributes = {value for name, value in vars(hw_attributes).items() if name.startswith("HW_")}
    known = {name.replace(".", "_") for name in (*attributes, "error.type", "network.io.direction")}

    ours = [metric for metric in semconv.METRICS if not metric.name.startswith("tailspan_")]
    assert len(ours) == 10
    for metric in ours:
        assert meter.made[metric.name] == (metric.kind, metric.unit)
        assert set(metric.labels) <= known


def test_duration_buckets_are_1_2_5_from_100_microseconds_to_10_seconds() -> None:
    bounds = semconv.DURATION_BUCKETS
    assert [f"{bound:g}" for bound in bounds[:4]] == ["0.0001", "0.0002", "0.0005", "0.001"]
    assert (len(bounds), bounds[-1]) == (16, 10.0)
    assert list(bounds) == sorted(set(bounds))


def test_every_host_total_has_its_parts_in_the_kernels_words() -> None:
    host = {metric for metric in semconv.METRICS if metric.name.startswith("tailspan_host_tcp_")}
    assert set(semconv.HOST_TCP) == host
    for parts in semconv.HOST_TCP.values():
        assert parts
        assert all(re.fullmatch(r"(Tcp|TcpExt|TCP|TCP6):\w+", part) for part in parts)


def test_histograms_of_connections_reach_from_milliseconds_to_hours() -> None:
    bounds = semconv.LIFETIME_BUCKETS
    assert (bounds[0], bounds[-1]) == (0.001, 6 * 3600.0)
    assert list(bounds) == sorted(set(bounds))
