from __future__ import annotations

import pytest

from tailspan.export import semconv
from tailspan.export.exposition import Exposition
from tailspan.export.prometheus import MAX_GPU_PROCESSES, Metrics
from tailspan.timeline.gpus import GAUGES, TOTALS, GpuHost, GpuProcess, NvmlState
from tests.gpus import HELD_DOWN_S, MIG_UUID, TAKEN_MONO_NS, UUID, VALUES, S, sample_gpu, sample_gpu_host
from tests.unit.export.exposed import exposed, value

DEVICE = {"hw_id": UUID, "hw_name": "NVIDIA H200", "hw_parent": "", "hw_type": "gpu"}
INSTANCE = {**DEVICE, "hw_id": MIG_UUID, "hw_parent": UUID}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def series(metrics: Metrics, hw_id: str = UUID) -> dict[str, list[dict[str, str]]]:
    """What there is of a device: name -> the labels of each series."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in exposed(metrics.registry).collect():
        for sample in family.samples:
            if sample.labels.get("hw_id") == hw_id:
                found.setdefault(sample.name, []).append(sample.labels)
    return found


def state(metrics: Metrics, device: dict[str, str] = DEVICE) -> dict[str, float | None]:
    states = ("ok", "degraded", "predicted_failure", "failed")
    return {each: value(metrics, "hw_status", **device, hw_state=each) for each in states}


def test_every_value_of_a_reading_has_exactly_one_series() -> None:
    held = [name for parts in semconv.GPU_VALUES.values() for name in parts]
    assert sorted(held) == sorted((*GAUGES, *TOTALS))


@pytest.mark.parametrize("metric", semconv.GPU_VALUES, ids=lambda metric: metric.name)
def test_a_value_is_exposed_as_it_is(metrics: Metrics, metric: semconv.Metric) -> None:
    metrics.gpus(sample_gpu_host(sample_gpu()), TAKEN_MONO_NS)

    for name, own in semconv.GPU_VALUES[metric].items():
        given = {**DEVICE, **dict(zip(metric.labels[-len(own) :], own, strict=True))} if own else DEVICE
        labels = {label: given[label] for label in metric.labels}
        assert value(metrics, metric.name, **labels) == VALUES[name]
    # AND it is a total where the reading's only grows
    assert {name in TOTALS for name in semconv.GPU_VALUES[metric]} == {metric.kind == "counter"}


def test_names_and_labels_are_those_that_dashboards_and_other_exporters_use(metrics: Metrics) -> None:
    metrics.gpus(sample_gpu_host(sample_gpu()), TAKEN_MONO_NS)

    assert value(metrics, "hw_gpu_utilization_ratio", **DEVICE, hw_gpu_task="general") == VALUES["utilization"]
    assert (
        value(metrics, "hw_gpu_io_bytes_total", **DEVICE, network_io_direction="receive")
        == VALUES["pcie_received"]
    )
    assert value(metrics, "hw_errors_total", **DEVICE, error_type="uncorrected") == VALUES["ecc_uncorrected"]
    assert (
        value(metrics, "hw_temperature_celsius", **DEVICE, hw_sensor_location="memory")
        == (VALUES["memory_temperature"])
    )
    assert value(metrics, "tailspan_gpu_clock_hertz", hw_id=UUID, domain="sm") == VALUES["sm_clock"]
    for reason, seconds in HELD_DOWN_S.items():
        assert value(metrics, "tailspan_gpu_clock_event_seconds_total", hw_id=UUID, reason=reason) == seconds
    info = {name: DEVICE[name] for name in ("hw_id", "hw_name", "hw_parent")}
    assert value(metrics, "tailspan_gpu_info", **info, hw_driver_version="580.95.05", index="3") == 1


def test_nothing_is_exposed_before_nvml_was_asked(metrics: Metrics) -> None:
    names = {family.name for family in exposed(metrics.registry).collect()}
    assert not {name for name in names if name.startswith("hw_") or "nvml" in name}


def test_an_absent_value_is_an_absent_series(metrics: Metrics) -> None:
    # GIVEN a GPU of which only its temperature is known
    metrics.gpus(
        sample_gpu_host(sample_gpu(values={"temperature": 61.0}, clock_events={}, processes=())), TAKEN_MONO_NS
    )

    assert set(series(metrics)) == {
        *("hw_temperature_celsius", "hw_status", "hw_errors_total"),
        *("tailspan_gpu_info", "tailspan_gpu_sample_age_seconds", "tailspan_gpu_xids_total"),
    }
    assert series(metrics)["hw_temperature_celsius"] == [{**DEVICE, "hw_sensor_location": "gpu"}]
    assert {labels["error_type"] for labels in series(metrics)["hw_errors_total"]} == {"xid-79", "xid-31"}


def test_a_value_of_0_is_a_series(metrics: Metrics) -> None:
    metrics.gpus(sample_gpu_host(sample_gpu(values=dict.fromkeys(VALUES, 0.0))), TAKEN_MONO_NS)
    assert value(metrics, "hw_gpu_utilization_ratio", **DEVICE, hw_gpu_task="general") == 0
    assert value(metrics, "hw_errors_total", **DEVICE, error_type="corrected") == 0
    # AND a share of no memory is none
    assert value(metrics, "hw_gpu_memory_utilization_ratio", **DEVICE) is None


def test_the_share_of_memory_used_is_of_all_there_is(metrics: Metrics) -> None:
    metrics.gpus(sample_gpu_host(sample_gpu(values={"memory_used": 23.0, "memory_total": 92.0})), TAKEN_MONO_NS)
    assert value(metrics, "hw_gpu_memory_utilization_ratio", **DEVICE) == 0.25

    metrics.gpus(sample_gpu_host(sample_gpu(values={"memory_used": 23.0})), TAKEN_MONO_NS)
    assert value(metrics, "hw_gpu_memory_utilization_ratio", **DEVICE) is None


def test_a_lost_gpu_keeps_its_state_and_what_the_agent_itself_has_counted(metrics: Metrics) -> None:
    metrics.gpus(sample_gpu_host(sample_gpu()), TAKEN_MONO_NS)
    assert state(metrics)["failed"] == 0

    # WHEN it falls off the bus, with XID 79
    metrics.gpus(sample_gpu_host(sample_gpu(lost="GPU is lost", xids={79: 1})), TAKEN_MONO_NS + 7 * S)

    assert state(metrics) == {"ok": 0, "degraded": 0, "predicted_failure": 0, "failed": 1}
    assert set(series(metrics)) == {
        *("hw_status", "hw_errors_total", "tailspan_gpu_info"),
        *("tailspan_gpu_sample_age_seconds", "tailspan_gpu_xids_total"),
    }
    assert series(metrics)["hw_errors_total"] == [{**DEVICE, "error_type": "xid-79"}]
    assert value(metrics, "tailspan_gpu_sample_age_seconds", hw_id=UUID) == 7

    # AND all is there again when it answers, and nothing when NVML no longer lists it
    metrics.gpus(sample_gpu_host(sample_gpu()), TAKEN_MONO_NS + 8 * S)
    assert state(metrics)["ok"] == 0  # VALUES has rows that could not be remapped
    assert value(metrics, "hw_power_watts", **DEVICE) == VALUES["power"]
    metrics.gpus(sample_gpu_host(), TAKEN_MONO_NS + 9 * S)
    assert series(metrics) == {}


@pytest.mark.parametrize(
    ("failed", "pending", "expected"),
    [(0.0, 0.0, "ok"), (0.0, 1.0, "degraded"), (1.0, 0.0, "predicted_failure"), (1.0, 1.0, "predicted_failure")],
)
def test_a_gpu_is_in_one_state(metrics: Metrics, failed: float, pending: float, expected: str) -> None:
    values = {"remapped_rows_failed": failed, "remapped_rows_pending": pending}
    metrics.gpus(sample_gpu_host(sample_gpu(values=values)), TAKEN_MONO_NS)
    assert [name for name, is_it in state(metrics).items() if is_it] == [expected]
    assert None not in state(metrics).values()


def test_a_gpu_that_says_nothing_of_its_rows_is_ok(metrics: Metrics) -> None:
    metrics.gpus(sample_gpu_host(sample_gpu(values={})), TAKEN_MONO_NS)
    assert state(metrics)["ok"] == 1


def test_age_is_that_of_the_reading_and_never_below_0(metrics: Metrics) -> None:
    metrics.gpus(sample_gpu_host(sample_gpu()), TAKEN_MONO_NS + 250_000_000)
    assert value(metrics, "tailspan_gpu_sample_age_seconds", hw_id=UUID) == 0.25

    metrics.gpus(sample_gpu_host(sample_gpu()), TAKEN_MONO_NS - 1)
    assert value(metrics, "tailspan_gpu_sample_age_seconds", hw_id=UUID) == 0

    metrics.gpus(sample_gpu_host(sample_gpu(taken_mono_ns=0)), TAKEN_MONO_NS)
    assert value(metrics, "tailspan_gpu_sample_age_seconds", hw_id=UUID) is None


def test_xids_begin_at_0_where_they_would_be_heard_of(metrics: Metrics) -> None:
    metrics.gpus(sample_gpu_host(sample_gpu(xids={})), TAKEN_MONO_NS)
    assert value(metrics, "tailspan_gpu_xids_total", hw_id=UUID) == 0

    metrics.gpus(sample_gpu_host(sample_gpu(xids={79: 2, 31: 5})), TAKEN_MONO_NS)
    assert value(metrics, "tailspan_gpu_xids_total", hw_id=UUID) == 7
    assert value(metrics, "hw_errors_total", **DEVICE, error_type="xid-31") == 5

    unheard = {"nvmlDeviceRegisterEvents": "Not Supported"}
    metrics.gpus(sample_gpu_host(sample_gpu(xids={}, unreadable=unheard)), TAKEN_MONO_NS)
    assert value(metrics, "tailspan_gpu_xids_total", hw_id=UUID) is None

    other = {"nvmlDeviceGetCurrentClocksEventReasons": "Not Supported"}
    metrics.gpus(sample_gpu_host(sample_gpu(xids={}, unreadable=other)), TAKEN_MONO_NS)
    assert value(metrics, "tailspan_gpu_xids_total", hw_id=UUID) == 0


def test_what_a_mig_instance_shares_with_its_gpu_is_there_once(metrics: Metrics) -> None:
    # GIVEN a GPU in MIG mode and an instance of it, whose reading has everything
    instance = sample_gpu(uuid=MIG_UUID, parent=UUID, index=0)
    metrics.gpus(sample_gpu_host(sample_gpu(), instance), TAKEN_MONO_NS)

    # THEN the instance has its memory and its processes, and knows its GPU
    assert value(metrics, "hw_gpu_memory_usage_bytes", **INSTANCE) == VALUES["memory_used"]
    assert value(metrics, "tailspan_gpu_process_memory_bytes", hw_id=MIG_UUID, process="worker") == 23 << 20
    assert state(metrics, INSTANCE)["failed"] == 0
    # AND a sum over devices has each total once
    counters = {
        f"{family.name}_total" for family in exposed(metrics.registry).collect() if family.type == "counter"
    }
    assert not counters & set(series(metrics, MIG_UUID))
    assert counters & set(series(metrics, UUID))
    assert not {"hw_power_watts", "tailspan_gpu_clock_hertz"} & set(series(metrics, MIG_UUID))


def _processes(*known: tuple[str, int | None, float | None]) -> tuple[GpuProcess, ...]:
    return tuple(GpuProcess(9000 + i, *one) for i, one in enumerate(known))


def test_processes_of_one_name_are_summed(metrics: Metrics) -> None:
    processes = _processes(("worker", 23, 0.25), ("other-one", 101, 0.5), ("worker", 29, 0.125))
    metrics.gpus(sample_gpu_host(sample_gpu(processes=processes)), TAKEN_MONO_NS)

    assert value(metrics, "tailspan_gpu_process_memory_bytes", hw_id=UUID, process="worker") == 52
    assert value(metrics, "tailspan_gpu_process_utilization_ratio", hw_id=UUID, process="worker") == 0.375
    assert value(metrics, "tailspan_gpu_process_memory_bytes", hw_id=UUID, process="other-one") == 101

    # AND one that has gone leaves nothing
    metrics.gpus(sample_gpu_host(sample_gpu(processes=processes[1:2])), TAKEN_MONO_NS)
    assert value(metrics, "tailspan_gpu_process_memory_bytes", hw_id=UUID, process="worker") is None


def test_a_sum_without_one_of_its_parts_is_not_known(metrics: Metrics) -> None:
    processes = _processes(("worker", 23, None), ("worker", None, None), ("hog", 0, 0.0))
    metrics.gpus(sample_gpu_host(sample_gpu(processes=processes)), TAKEN_MONO_NS)

    assert value(metrics, "tailspan_gpu_process_memory_bytes", hw_id=UUID, process="worker") is None
    assert value(metrics, "tailspan_gpu_process_utilization_ratio", hw_id=UUID, process="worker") is None
    assert value(metrics, "tailspan_gpu_process_memory_bytes", hw_id=UUID, process="hog") == 0
    assert value(metrics, "tailspan_gpu_process_utilization_ratio", hw_id=UUID, process="hog") == 0


def test_names_beyond_the_limit_are_kept_under_other_and_counted(metrics: Metrics) -> None:
    # WHEN 101 processes come, and the first again
    names = _processes(*((f"job{number}", 1, 0.01) for number in range(101)))
    metrics.gpus(sample_gpu_host(sample_gpu(processes=names)), TAKEN_MONO_NS)
    for _ in range(2):  # a scrape counts nothing
        found = series(metrics)["tailspan_gpu_process_memory_bytes"]

    # THEN the first have their own series and nothing is lost
    beyond = 101 - MAX_GPU_PROCESSES
    assert [labels["process"] for labels in found] == [*(f"job{n}" for n in range(MAX_GPU_PROCESSES)), "other"]
    assert value(metrics, "tailspan_gpu_process_memory_bytes", hw_id=UUID, process="other") == beyond
    overflows = "tailspan_label_overflows_total"
    assert value(metrics, overflows, metric="tailspan_gpu_process_memory_bytes") == beyond

    metrics.gpus(sample_gpu_host(sample_gpu(processes=names[:1])), TAKEN_MONO_NS)
    assert value(metrics, "tailspan_gpu_process_memory_bytes", hw_id=UUID, process="job0") == 1
    assert value(metrics, overflows, metric="tailspan_gpu_process_memory_bytes") == beyond


def test_a_name_that_has_no_bytes_does_not_break_scrapes(metrics: Metrics) -> None:
    metrics.gpus(sample_gpu_host(sample_gpu(processes=_processes(("job\udcff", 23, 0.5)))), TAKEN_MONO_NS)
    assert value(metrics, "tailspan_gpu_process_memory_bytes", hw_id=UUID, process="job?") == 23
    assert b'process="job?"' in Exposition(metrics.registry).render()


def test_the_docs_say_how_many_series_a_device_has(metrics: Metrics) -> None:
    def count(**changes: object) -> int:
        metrics.gpus(sample_gpu_host(sample_gpu(processes=(), xids={}, **changes)), TAKEN_MONO_NS)
        return sum(map(len, series(metrics).values()))

    assert count() == 54
    assert count(parent=MIG_UUID) == 15


@pytest.mark.parametrize("nvml", NvmlState)
def test_nvml_is_in_one_state(metrics: Metrics, nvml: NvmlState) -> None:
    metrics.gpus(GpuHost(state=nvml), TAKEN_MONO_NS)

    names = [each.replace(" ", "_") for each in NvmlState]
    states = {name: value(metrics, "tailspan_gpu_nvml_state", state=name) for name in names}
    assert [name for name, is_it in states.items() if is_it] == [nvml.replace(" ", "_")]
    assert None not in states.values()
    assert all(name in semconv.NVML_STATE.meaning for name in names)


def test_what_nvml_costs_is_counted(metrics: Metrics) -> None:
    metrics.gpus(sample_gpu_host(), TAKEN_MONO_NS)

    assert value(metrics, "tailspan_gpu_nvml_calls_total") == 1009
    assert value(metrics, "tailspan_gpu_nvml_call_seconds_total") == 0.101
    assert value(metrics, "tailspan_gpu_nvml_attempts_total") == 3
    assert value(metrics, "tailspan_gpu_nvml_failures_total", error="Not Supported") == 7
