from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable

import numpy as np
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
from tailspan.timeline.evidence import Table
from tailspan.timeline.gpus import GpuProcess
from tailspan.wire.events import (
    CONNECTION,
    GPU_CALL,
    INCIDENT,
    SOCKET_WAIT,
    GpuCallKind,
    IncidentKind,
    SocketFlags,
    SocketOp,
)
from tests.gpus import TAKEN_MONO_NS, sample_gpu, sample_gpu_host

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def _value(metrics: Metrics, sample: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(sample, labels)


MS = 1_000_000


def _rows(dtype: np.dtype[np.void], count: int, **columns: int) -> Table:
    rows = np.zeros(count, dtype)
    for name, value in columns.items():
        rows[name] = value
    return rows


def _connections(count: int, **columns: int) -> Table:
    """Opened by this side, established after 3 ms, answered 40 ms after the first byte, closed after 2 s."""
    times = {"opened": 1000, "established": 1003, "first_sent": 1004, "first_byte": 1044, "closed": 3000}
    given = {f"{name}_mono_ns": at * MS for name, at in times.items()}
    return _rows(CONNECTION, count, **{**given, "messages": 7, **columns})


def _waits(count: int, **columns: int) -> Table:
    """Accepted connections whose first bytes came 2 ms after the handshake and were read 30 ms after it."""
    given = {
        "from_mono_ns": 1000 * MS,
        "arrived_mono_ns": 1002 * MS,
        "to_mono_ns": 1030 * MS,
        "established_mono_ns": 1000 * MS,
        "op": SocketOp.RECEIVE,
        "flags": SocketFlags.ACCEPTED | SocketFlags.FIRST | SocketFlags.MESSAGE | SocketFlags.UNACCEPTED,
    }
    rows = _rows(SOCKET_WAIT, count, **{**given, **columns})
    if not columns:  # every other one is an upstream's
        rows["flags"][::2] = SocketFlags.MESSAGE
    return rows


def _gpu_calls(kind: GpuCallKind, count: int, duration_ns: int) -> Table:
    return _rows(GPU_CALL, count, kind=kind, enter_mono_ns=1000 * MS, exit_mono_ns=1000 * MS + duration_ns)


def _fill(metrics: Metrics) -> None:
    """Every metric gets a sample."""
    metrics.request("infer", "resnet50", "3", "ok", 0.4123, TRACE_ID)
    metrics.ledger("infer", [1_000_000] * N_CAUSES)
    metrics.verdict(Cause.RUN_QUEUE, Outcome.NAMED, 0.05)
    metrics.records({"cycle": 1009, "slice": 101})
    metrics.connections(_connections(23))
    metrics.socket_waits(_waits(23))
    metrics.incidents(np.zeros(3, INCIDENT))
    metrics.host_tcp({part: 23 for parts in semconv.HOST_TCP.values() for part in parts})
    metrics.gpus(sample_gpu_host(sample_gpu()), TAKEN_MONO_NS)
    metrics.gpu_calls(_gpu_calls(GpuCallKind.SYNC, 23, 40 * MS))
    metrics.gpu_probes({"sync": 23, "launch": 100_003}, 47, {"launch": 1})
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
    # AND eight GPUs that say everything, shared by more processes than have names of their own
    gpus = [
        sample_gpu(
            uuid=f"GPU-{index}", processes=tuple(GpuProcess(one, f"job{one}", 1, 0.01) for one in range(101))
        )
        for index in range(8)
    ]
    metrics.gpus(sample_gpu_host(*gpus), TAKEN_MONO_NS)
    for kind in GpuCallKind:
        metrics.gpu_calls(_gpu_calls(kind, 1, MS))

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


def test_records_are_counted_by_class(metrics: Metrics) -> None:
    metrics.records({"cycle": 23, "incident": 0})
    metrics.records({"cycle": 101})

    assert _value(metrics, "tailspan_records_total", **{"class": "cycle"}) == 124
    assert _value(metrics, "tailspan_records_total", **{"class": "incident"}) == 0
    assert _value(metrics, "tailspan_records_total", **{"class": "block"}) is None


def test_array_histogram_agrees_with_prometheus_clients_own(metrics: Metrics) -> None:
    # GIVEN durations on bounds, beside them, beyond them and backwards
    durations_ns = [
        -5000 * MS,
        0,
        100_000,
        100_001,
        199_999,
        5 * MS,
        9_999 * MS,
        10_000 * MS,
        10_001 * MS,
        3600_000 * MS,
    ]
    rows = _waits(len(durations_ns), arrived_mono_ns=1000 * MS)
    rows["to_mono_ns"] = np.array(durations_ns) + 1000 * MS

    # WHEN they are observed at once, in two calls, and one by one
    metrics.socket_waits(rows[:3])
    metrics.socket_waits(rows[3:])
    for duration_ns in durations_ns:
        metrics.verdict(None, Outcome.NORMAL, max(duration_ns, 0) / 1e9)

    # THEN both have the same buckets, count and sum
    names = [f"{bound}" for bound in (*semconv.DURATION_BUCKETS, "+Inf")]
    for name in names:
        ours = _value(metrics, "tailspan_tcp_unread_wait_seconds_bucket", le=name)
        assert ours == _value(metrics, "tailspan_verdict_latency_seconds_bucket", le=name) is not None
    for part in ("count", "sum"):
        assert _value(metrics, f"tailspan_tcp_unread_wait_seconds_{part}") == pytest.approx(
            _value(metrics, f"tailspan_verdict_latency_seconds_{part}")
        )


def test_connections_are_counted_by_role(metrics: Metrics) -> None:
    # GIVEN 23 accepted connections of 7 requests each, 11 that were opened, 5 refused, 3 older than the agent
    accepted = _connections(23, flags=SocketFlags.ACCEPTED | SocketFlags.RESET, zero_windows=2)
    refused = _connections(5, established_mono_ns=0, first_byte_mono_ns=0, messages=0)
    unseen = _connections(3, opened_mono_ns=0, established_mono_ns=0)
    for rows in (accepted, _connections(11, retransmits=13), refused, unseen):
        metrics.connections(rows)

    def counted(what: str) -> list[float | None]:
        roles = ("accepted", "connected", "failed", "unseen")
        return [_value(metrics, f"tailspan_tcp_{what}_total", role=role) for role in roles]

    # THEN each is counted once, and so is what happened on it
    assert counted("connections") == [23, 11, 5, 3]
    assert counted("messages") == [23 * 7, 11 * 7, 0, 3 * 7]
    assert counted("retransmits") == [0, 11 * 13, 0, 0]
    assert counted("resets") == [23, 0, 0, 0]
    assert counted("zero_windows") == [46, 0, 0, 0]


def test_only_connections_that_were_seen_and_opened_here_are_timed(metrics: Metrics) -> None:
    metrics.connections(_connections(7))
    metrics.connections(_connections(5, flags=SocketFlags.ACCEPTED))
    metrics.connections(_connections(3, opened_mono_ns=0, established_mono_ns=0))
    metrics.connections(_connections(2, first_byte_mono_ns=1001 * MS))  # the peer speaks first: no answer to time

    assert _value(metrics, "tailspan_tcp_connect_duration_seconds_count") == 9
    assert _value(metrics, "tailspan_tcp_connect_duration_seconds_sum") == pytest.approx(9 * 0.003)
    assert _value(metrics, "tailspan_tcp_time_to_first_byte_seconds_count") == 7
    assert _value(metrics, "tailspan_tcp_time_to_first_byte_seconds_sum") == pytest.approx(7 * 0.040)
    lifetimes = "tailspan_tcp_connection_duration_seconds_bucket"
    assert _value(metrics, lifetimes, role="connected", le="1.0") == 0
    assert _value(metrics, lifetimes, role="connected", le="10.0") == 9
    assert _value(metrics, lifetimes, role="accepted", le="+Inf") == 5
    assert _value(metrics, lifetimes, role="unseen", le="+Inf") is None


def test_a_peer_that_says_nothing_is_not_an_accept_queue_that_is_full(metrics: Metrics) -> None:
    # GIVEN connections that lay in the queue for 30 ms, and such that were accepted and then idle for as long
    in_time = SocketFlags.ACCEPTED | SocketFlags.FIRST | SocketFlags.MESSAGE
    metrics.socket_waits(_waits(7, flags=in_time | SocketFlags.UNACCEPTED))
    metrics.socket_waits(_waits(11, flags=in_time))
    metrics.socket_waits(_waits(13, flags=SocketFlags.ACCEPTED | SocketFlags.MESSAGE))  # their second requests

    assert _value(metrics, "tailspan_tcp_accept_wait_seconds_bucket", le="0.0001") == 11
    assert _value(metrics, "tailspan_tcp_accept_wait_seconds_bucket", le="0.02") == 11
    assert _value(metrics, "tailspan_tcp_accept_wait_seconds_bucket", le="0.05") == 18
    assert _value(metrics, "tailspan_tcp_accept_wait_seconds_count") == 18
    # AND what was unread was so from its arrival on
    assert _value(metrics, "tailspan_tcp_unread_wait_seconds_sum") == pytest.approx(31 * 0.028)


def test_an_upstreams_answer_is_timed_only_where_it_is_an_answer(metrics: Metrics) -> None:
    metrics.socket_waits(_waits(7, flags=SocketFlags.MESSAGE, arrived_mono_ns=1020 * MS))
    metrics.socket_waits(_waits(2, flags=SocketFlags.MESSAGE, op=SocketOp.SEND))
    metrics.socket_waits(_waits(3, flags=SocketFlags.ZERO_WINDOW))  # more of the same answer
    metrics.socket_waits(_waits(5, flags=SocketFlags.MESSAGE, arrived_mono_ns=0))
    metrics.socket_waits(_waits(11, flags=SocketFlags.MESSAGE, established_mono_ns=0))  # perhaps a request

    assert _value(metrics, "tailspan_tcp_upstream_answer_seconds_count") == 7
    assert _value(metrics, "tailspan_tcp_upstream_answer_seconds_sum") == pytest.approx(7 * 0.020)
    assert _value(metrics, "tailspan_tcp_unread_wait_seconds_count") is None


def test_incidents_are_counted_by_kind_and_begin_at_0(metrics: Metrics) -> None:
    kinds = ("oom_kill", "stop", "continue", "terminate")

    def counted() -> list[float | None]:
        return [_value(metrics, "tailspan_incidents_total", kind=kind) for kind in kinds]

    assert counted() == [None] * 4
    metrics.incidents(np.empty(0, INCIDENT))
    assert counted() == [0] * 4

    killed = _rows(INCIDENT, 2, kind=IncidentKind.OOM_KILL, signal=signal.SIGKILL)
    numbers = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGCONT, signal.SIGTERM)
    for rows in (killed, *(_rows(INCIDENT, 1, kind=IncidentKind.SIGNAL, signal=number) for number in numbers)):
        metrics.incidents(rows)
    assert counted() == [2, 3, 1, 1]


def test_a_total_that_the_kernel_does_not_keep_is_absent_and_not_0(metrics: Metrics) -> None:
    metrics.host_tcp({"Tcp:RetransSegs": 3037, "TCP:inuse": 11, "TCP6:inuse": 2, "TCP:tw": 0})
    assert _value(metrics, "tailspan_host_tcp_retransmitted_segments_total") == 3037
    assert _value(metrics, "tailspan_host_tcp_sockets") == 13
    assert _value(metrics, "tailspan_host_tcp_time_wait_sockets") == 0
    assert _value(metrics, "tailspan_host_tcp_timeouts_total") is None

    metrics.host_tcp({"TCP:inuse": 11})
    assert _value(metrics, "tailspan_host_tcp_sockets") == 11
    assert _value(metrics, "tailspan_host_tcp_retransmitted_segments_total") is None


def test_gpu_calls_are_timed_by_kind(metrics: Metrics) -> None:
    metrics.gpu_calls(np.empty(0, GPU_CALL))
    assert _value(metrics, "tailspan_gpu_call_duration_seconds_count", kind="sync") is None

    metrics.gpu_calls(
        np.concatenate([_gpu_calls(GpuCallKind.SYNC, 23, 40 * MS), _gpu_calls(GpuCallKind.ALLOC, 7, 3 * MS)])
    )
    metrics.gpu_calls(_gpu_calls(GpuCallKind.SYNC, 2, 400 * MS))

    assert _value(metrics, "tailspan_gpu_call_duration_seconds_bucket", kind="sync", le="0.05") == 23
    assert _value(metrics, "tailspan_gpu_call_duration_seconds_count", kind="sync") == 25
    assert _value(metrics, "tailspan_gpu_call_duration_seconds_sum", kind="sync") == pytest.approx(1.72)
    assert _value(metrics, "tailspan_gpu_call_duration_seconds_sum", kind="alloc") == pytest.approx(0.021)
    assert _value(metrics, "tailspan_gpu_call_duration_seconds_count", kind="copy") is None


def test_every_kind_of_gpu_call_begins_at_0_and_follows_its_total(metrics: Metrics) -> None:
    kinds = ("sync", "copy", "alloc", "free", "load", "launch")

    def counted(name: str) -> list[float | None]:
        return [_value(metrics, name, kind=kind) for kind in kinds]

    assert counted("tailspan_gpu_calls_total") == [None] * 6
    metrics.gpu_probes({}, 0, {})
    assert counted("tailspan_gpu_calls_total") == [0] * 6
    assert counted("tailspan_gpu_probe_off") == [0] * 6

    for launches in (101, 100_003):
        metrics.gpu_probes({"sync": 23, "launch": launches}, 47, {"launch": 2})
    assert counted("tailspan_gpu_calls_total") == [23, 0, 0, 0, 0, 100_003]
    assert counted("tailspan_gpu_probe_off") == [0, 0, 0, 0, 0, 2]
    assert _value(metrics, "tailspan_gpu_probes_attached") == 47

    # AND a kind that is tried again, in processes that have gone, is off no longer
    metrics.gpu_probes({"sync": 23, "launch": 100_003}, 0, {})
    assert counted("tailspan_gpu_probe_off") == [0] * 6
    assert counted("tailspan_gpu_calls_total") == [23, 0, 0, 0, 0, 100_003]
