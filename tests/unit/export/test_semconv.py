from __future__ import annotations

import inspect
import re
from functools import partialmethod

import pytest
from opentelemetry.semconv._incubating.attributes import container_attributes, hw_attributes, k8s_attributes
from opentelemetry.semconv._incubating.metrics import hw_metrics

from tailspan.attribute.causes import Cause
from tailspan.export import semconv

#: Names that OpenTelemetry defines and that mean the same here; all others carry our prefix.
OTEL_NAMES = {"service.name", "process.pid", "host.name", "error.type", "hw.id"}
OTEL_NAMES |= {
    value
    for module in (container_attributes, k8s_attributes)
    for name, value in vars(module).items()
    if name.startswith(("CONTAINER_", "K8S_")) and isinstance(value, str)
}
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


#: As scraped. Dashboards, alerts and rules of others are written with these.
OURS = """
agent_cpu_seconds_total agent_resident_memory_bytes agent_peak_memory_bytes agent_threads agent_open_files
budget_cpu budget_memory_bytes shed_level shed_step shed_changes_total cost_difference_seconds
cost_measured_timestamp_seconds bpf_run_seconds_total build_info dropped_messages_total
export_dropped_total exported_total forgotten_requests_total gpu_call_duration_seconds gpu_calls_total
gpu_clock_event_seconds_total gpu_clock_hertz gpu_clock_limit_hertz gpu_dram_utilization_ratio gpu_info
gpu_memory_busy_ratio gpu_memory_reserved_bytes gpu_nvlink_io_bytes_total gpu_nvml_attempts_total
gpu_nvml_call_seconds_total gpu_nvml_calls_total gpu_nvml_failures_total gpu_nvml_state gpu_pcie_generation
gpu_pcie_generation_limit gpu_pcie_width_lanes gpu_pcie_width_limit_lanes gpu_performance_state
gpu_power_limit_watts gpu_probe_off gpu_probes_attached gpu_process_memory_bytes gpu_process_utilization_ratio
gpu_remapped_rows_total gpu_row_remap_failed gpu_row_remap_pending gpu_sample_age_seconds gpu_sm_occupancy_ratio
gpu_sm_utilization_ratio gpu_tensor_utilization_ratio gpu_xids_total host_tcp_active_opens_total
host_tcp_established_connections host_tcp_established_resets_total host_tcp_listen_drops_total
host_tcp_listen_overflows_total host_tcp_passive_opens_total host_tcp_receive_queue_drops_total
host_tcp_resets_sent_total host_tcp_retransmitted_segments_total host_tcp_sent_segments_total host_tcp_sockets
host_tcp_syn_retransmits_total host_tcp_time_wait_sockets host_tcp_timeouts_total host_tcp_windows_closed_total
host_tcp_windows_reopened_total incidents_total label_overflows_total lost_records_total lost_time_seconds_total
otlp_breaker otlp_broken_spans_total otlp_dropped_items_total otlp_failures_total otlp_items_total
otlp_queue_age_seconds otlp_queue_limit_bytes otlp_queued_bytes otlp_received_items_total otlp_refused_total
otlp_sent_bytes_total probe_attached records_total request_duration_seconds request_time_seconds_total
requests_joined_total run_queue_wait_seconds slow_requests_total taken_cpu_seconds_total tcp_accept_wait_seconds
tcp_connect_duration_seconds tcp_connection_duration_seconds tcp_connections_total tcp_messages_total
tcp_resets_total tcp_retransmits_total tcp_time_to_first_byte_seconds tcp_unread_wait_seconds
tcp_upstream_answer_seconds tcp_zero_windows_total thread_time_seconds_total verdict_latency_seconds window_rows
config_last_reload_timestamp_seconds config_reloads_total followed_processes host_health_score host_health_state
tls_certificate_expires_timestamp_seconds tls_reloads_total worker_health_part_ratio worker_health_score
worker_health_state
"""
OPENTELEMETRYS = """
hw_energy_joules_total hw_errors_total hw_gpu_io_bytes_total hw_gpu_memory_limit_bytes hw_gpu_memory_usage_bytes
hw_gpu_memory_utilization_ratio hw_gpu_utilization_ratio hw_power_watts hw_status hw_temperature_celsius
"""


def test_no_metric_has_another_name_than_it_had() -> None:
    expected = {*(f"tailspan_{name}" for name in OURS.split()), *OPENTELEMETRYS.split()}
    assert {metric.name for metric in semconv.METRICS} == expected


def test_every_metric_is_in_one_topic() -> None:
    defined = [thing for thing in vars(semconv).values() if isinstance(thing, semconv.Metric)]
    assert sorted(metric.name for metric in semconv.METRICS) == sorted(metric.name for metric in defined)


def test_a_metric_that_is_new_or_as_opentelemetry_has_it_is_in_development() -> None:
    everything = [*semconv.ATTRIBUTES, *semconv.METRICS]
    assert {each.stability for each in everything} == {semconv.STABLE, semconv.DEVELOPMENT}
    assert all(each.source for each in everything)
    hardware = [metric for metric in semconv.METRICS if metric.otel.startswith(("hw.", "tailspan.gpu."))]
    assert {metric.stability for metric in hardware} == {semconv.DEVELOPMENT}


@pytest.mark.parametrize(
    ("otel", "instrument", "unit", "expected"),
    [
        ("http.server.request.duration", "histogram", "s", "http_server_request_duration_seconds"),
        ("hw.gpu.utilization", "gauge", "1", "hw_gpu_utilization_ratio"),
        ("hw.status", "updowncounter", "1", "hw_status"),
        ("hw.gpu.io", "counter", "By", "hw_gpu_io_bytes_total"),
        ("hw.errors", "counter", "{error}", "hw_errors_total"),
        ("hw.gpu.memory.usage", "updowncounter", "By", "hw_gpu_memory_usage_bytes"),
        ("tailspan.gpu.clock", "gauge", "Hz", "tailspan_gpu_clock_hertz"),
    ],
)
def test_prometheus_name_follows_from_opentelemetrys(otel: str, instrument: str, unit: str, expected: str) -> None:
    metric = semconv.Metric(otel, instrument, unit, ("hw.id", "cause"), "Things", "test")
    assert (metric.name, metric.labels) == (expected, ("hw_id", "cause"))
    assert metric.kind == ("gauge" if instrument == "updowncounter" else instrument)


def test_no_metric_is_also_the_namespace_of_another() -> None:
    names = {metric.otel for metric in semconv.METRICS}
    prefixes = {name[: dot.start()] for name in names for dot in re.finditer(r"\.", name)}
    assert not names & prefixes


@pytest.mark.parametrize("metric", semconv.METRICS, ids=lambda metric: metric.name)
def test_metric_follows_the_naming_conventions(metric: semconv.Metric) -> None:
    stem = metric.name.removesuffix("_total")

    assert re.fullmatch(r"(tailspan|hw)_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert stem.endswith(UNIT_SUFFIXES.get(metric.unit, ""))
    assert not set(metric.labels) & {"pid", "tid", "tgid", "trace_id", "span_id", "request_id", "comm", "le"}


class PrometheusMeter:
    """What instruments of OpenTelemetry are called in Prometheus: name -> their own name, kind and unit."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[str, str, str]] = {}

    def _make(self, kind: str, share: str, *, name: str, unit: str, **_: object) -> None:
        suffix = share if unit == "1" else UNIT_SUFFIXES.get(unit, "")
        total = "_total" if kind == "counter" else ""
        self.made[name.replace(".", "_") + suffix + total] = name, kind, unit

    create_counter = partialmethod(_make, "counter", "")
    create_up_down_counter = partialmethod(_make, "updowncounter", "")
    create_observable_gauge = partialmethod(_make, "gauge", "_ratio")


def test_hardware_metrics_are_opentelemetrys_as_prometheus_has_them() -> None:
    meter = PrometheusMeter()
    for name, create in inspect.getmembers(hw_metrics, inspect.isfunction):
        if name.startswith("create_hw_"):
            create(*[meter, None][: len(inspect.signature(create).parameters)])
    attributes = {value for name, value in vars(hw_attributes).items() if name.startswith("HW_")}
    known = {*attributes, "error.type", "network.io.direction"}

    ours = [metric for metric in semconv.METRICS if not metric.name.startswith("tailspan_")]
    assert len(ours) == 10
    for metric in ours:
        assert meter.made[metric.name] == (metric.otel, metric.instrument, metric.unit)
        assert set(metric.attributes) <= known


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
