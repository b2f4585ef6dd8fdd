from __future__ import annotations

import math
import signal
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tailspan import __version__
from tailspan.attribute import health
from tailspan.attribute.causes import N_CAUSES, Cause
from tailspan.attribute.health import PARTS, Grade, HostHealth, Part, WorkerHealth
from tailspan.attribute.verdict import CulpritKind, Outcome
from tailspan.cost.meter import Reading
from tailspan.export import prometheus, semconv
from tailspan.export.exposition import Exposition
from tailspan.export.otlp.breaker import State
from tailspan.export.otlp.outlet import OutletStats
from tailspan.export.prometheus import Metrics
from tailspan.timeline.evidence import Table
from tailspan.timeline.gpus import GpuProcess, GpuReading
from tailspan.timeline.tables import Join
from tailspan.wire.events import (
    CONNECTION,
    CPU_SLICE,
    GPU_CALL,
    INCIDENT,
    SOCKET_WAIT,
    THREAD_CYCLE,
    GpuCallKind,
    IncidentKind,
    SocketFlags,
    SocketOp,
)
from tailspan.wire.otlp import Origin, Signal
from tests.gpus import TAKEN_MONO_NS, sample_gpu, sample_gpu_host
from tests.unit.export.exposed import series_count
from tests.unit.export.exposed import value as _value

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
ORDINARY = {"outcome": "ordinary", "cause": "none"}


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


OUTLET = OutletStats(
    sent_bytes=1009,
    items=Counter({Origin.OWN: 23, Origin.FORWARDED: 101}),
    dropped=Counter({(Origin.FORWARDED, "refused"): 7}),
    failures=Counter({"unreachable": 3}),
    queued_bytes=47,
    limit_bytes=256 << 20,
    age_s=2.5,
    breaker=State.OPEN,
)


def _slices(count: int, **columns: int) -> Table:
    rows = np.zeros(count, CPU_SLICE)
    for name, value in columns.items():
        (rows["runner"] if name in CPU_SLICE["runner"].names else rows)[name] = value
    return rows


def _health(*services: str, score: float = 63.0) -> HostHealth:
    parts = tuple(Part(name, 0.63, "as it is") for name in PARTS)
    grade = Grade(health.State.WARNING, score, parts, "as it is")
    return HostHealth(grade, tuple(WorkerHealth(service, grade, {8100: grade}) for service in services))


def _fill(metrics: Metrics) -> None:
    """Every metric gets a sample."""
    metrics.request("infer", "resnet50", "3", "ok", 0.4123, TRACE_ID, SPAN_ID, Outcome.NAMED, Cause.RUN_QUEUE)
    metrics.turns(np.zeros(1, THREAD_CYCLE), _slices(1, tid=9001, end_mono_ns=MS), add_up=True)
    metrics.joined(np.array([Join.SAID, Join.SOCKET]))
    metrics.outlets({Signal.TRACES: OUTLET})
    metrics.receiver({Signal.TRACES: 23}, {"malformed": 2}, {"no_parent": 3})
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
    metrics.agent(Reading(0.0, 1.5, 60 << 20, 61 << 20, 3, 143))
    metrics.budget(0.25, 256 << 20)
    metrics.shed({"syscalls": "cpu", "slices": "cpu"}, {"shed": 3, "restored": 1})
    metrics.measured({"p50": (0.001, 0.0005, 0.0015)})
    metrics.bpf_run_time([("on_sched_switch", 0.25)])
    metrics.health(_health("web"))
    metrics.followed({"socket": 2, "peer": 3})
    metrics.reloaded(ok=True)
    metrics.tls({"loaded": 1}, 1.8e9)
    for number in range(prometheus.MAX_ROUTES + 1):
        metrics.request(f"route{number}", "", "", "ok", 0.001)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_a_request_is_observed_in_its_bucket(metrics: Metrics) -> None:
    metrics.request("infer", "resnet50", "3", "ok", 0.004)

    labels = {"name": "infer", "model": "resnet50", "version": "3", "status": "ok"} | ORDINARY
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


def test_routes_beyond_the_limit_are_kept_under_other_and_counted(metrics: Metrics) -> None:
    # WHEN 101 routes come, and the first one again
    parts_ns = [1_000_000_000] * N_CAUSES
    for number in range(101):
        metrics.request(f"route{number}", "m", "1", "ok", 0.001)
        metrics.ledger(f"route{number}", parts_ns)
    metrics.request("route0", "m", "1", "ok", 0.001)

    # THEN the first have their own series, the others share one, and nothing is lost
    count, overflows = "tailspan_request_duration_seconds_count", "tailspan_label_overflows_total"
    other = dict.fromkeys(("name", "model", "version", "status"), "other") | ORDINARY
    assert _value(metrics, count, name="route0", model="m", version="1", status="ok", **ORDINARY) == 2
    assert _value(metrics, count, **other) == 101 - prometheus.MAX_ROUTES
    assert _value(metrics, overflows, metric="tailspan_request_duration_seconds") == 101 - prometheus.MAX_ROUTES
    # AND the cause, which is ours, is kept
    time = "tailspan_request_time_seconds_total"
    assert _value(metrics, time, cause="futex", name="other") == 101 - prometheus.MAX_NAMES
    assert _value(metrics, time, cause="futex", name="route0") == 1
    assert _value(metrics, overflows, metric=time) == 101 - prometheus.MAX_NAMES


def test_slow_requests_of_many_kinds_do_not_take_the_room_of_ordinary_ones(metrics: Metrics) -> None:
    # GIVEN a route whose requests are slow for every cause there is, and with every outcome
    kinds = [(outcome, cause) for outcome in Outcome for cause in Cause]
    for outcome, cause in kinds:
        metrics.request("infer", "m", "1", "ok", 0.4, TRACE_ID, SPAN_ID, outcome, cause)

    # WHEN other routes are seen for the first time
    for number in range(prometheus.MAX_ROUTES - 1):
        metrics.request(f"route{number}", "m", "1", "ok", 0.001)

    # THEN these have series of their own
    count = "tailspan_request_duration_seconds_count"
    for number in range(prometheus.MAX_ROUTES - 1):
        assert _value(metrics, count, name=f"route{number}", model="m", version="1", status="ok", **ORDINARY) == 1
    # AND the slow ones beyond their own limit lost the route first, and the cause at last
    others = dict.fromkeys(("name", "model", "version", "status"), "other")
    outcome, cause = kinds[prometheus.MAX_SLOW]
    assert _value(metrics, count, **others, outcome=str(outcome), cause=semconv.cause_name(cause)) == 1
    rest = len(kinds) - prometheus.MAX_SLOW - prometheus.MAX_SLOW_OTHERS
    assert _value(metrics, count, **others, outcome="other", cause="other") == rest


def test_a_slow_request_is_counted_with_what_its_verdict_came_to(metrics: Metrics) -> None:
    metrics.request("infer", "m", "1", "ok", 0.4, TRACE_ID, SPAN_ID, Outcome.NAMED, Cause.THROTTLED)
    metrics.request("infer", "m", "1", "ok", 0.4, TRACE_ID, SPAN_ID, Outcome.UNJUDGED)

    count, route = (
        "tailspan_request_duration_seconds_count",
        {"name": "infer", "model": "m", "version": "1", "status": "ok"},
    )
    assert _value(metrics, count, **route, outcome="named", cause="throttled") == 1
    assert _value(metrics, count, **route, outcome="unjudged", cause="none") == 1
    assert _value(metrics, count, **route, **ORDINARY) is None


def test_time_lost_is_that_above_what_is_usual_by_cause_and_kind_of_culprit(metrics: Metrics) -> None:
    for _ in range(23):
        metrics.verdict(Cause.RUN_QUEUE, Outcome.NAMED, 0.05, 0.25, CulpritKind.PROCESS)
    metrics.verdict(Cause.RUN_QUEUE, Outcome.NAMED, 0.05, 0.5, CulpritKind.OWN)
    metrics.verdict(None, Outcome.NORMAL, 0.05, -0.001)

    lost = "tailspan_lost_time_seconds_total"
    assert _value(metrics, lost, cause="run_queue", culprit="process") == 23 * 0.25
    assert _value(metrics, lost, cause="run_queue", culprit="own") == 0.5
    assert _value(metrics, lost, cause="none", culprit="none") == 0


def _crowd(metrics: Metrics) -> None:
    """Workers do their worst: more names, slow in more ways, and beside more processes than there is room for."""
    parts_ns = [1_000_000] * N_CAUSES
    for number in range(1000):
        outcome, cause = list(Outcome)[number % len(Outcome)], Cause(number % N_CAUSES)
        metrics.request(f"route{number}", f"model{number}", "1", "ok", 0.001)
        metrics.request(f"route{number}", f"model{number}", "1", "ok", 0.4, TRACE_ID, SPAN_ID, outcome, cause)
        metrics.ledger(f"route{number}", parts_ns)
        slices = _slices(1, tid=number + 1, end_mono_ns=MS)
        slices["runner"]["comm"] = f"job{number}".encode()
        metrics.turns(np.zeros(1, THREAD_CYCLE), slices, add_up=True)
    for cause in Cause:
        for outcome in Outcome:
            for culprit in CulpritKind:
                metrics.verdict(cause, outcome, 0.05, 0.1, culprit)
    metrics.connections(np.concatenate([_connections(1, flags=SocketFlags.ACCEPTED), _connections(1)]))
    metrics.outlets(dict.fromkeys(Signal, OUTLET))
    _fill(metrics)
    metrics.health(_health(*(f"service{number:03}" for number in range(101))))
    for kind in GpuCallKind:
        metrics.gpu_calls(_gpu_calls(kind, 1, MS))


def _gpu_crowd(instances: int) -> list[GpuReading]:
    """Eight GPUs that say everything, shared by more processes than have names of their own."""
    crowd = tuple(GpuProcess(one, f"job{one}", 1, 0.01) for one in range(101))
    gpus = [sample_gpu(uuid=f"GPU-{index}", processes=crowd) for index in range(8)]
    return gpus + [
        sample_gpu(uuid=f"MIG-{gpu.uuid}-{index}", parent=gpu.uuid, processes=crowd)
        for gpu in gpus
        for index in range(instances)
    ]


@pytest.mark.parametrize(("instances", "most"), [(0, 5000), (7, 6000)])
def test_series_are_bounded_whatever_workers_do(metrics: Metrics, instances: int, most: int) -> None:
    _crowd(metrics)
    metrics.gpus(sample_gpu_host(*_gpu_crowd(instances)), TAKEN_MONO_NS)

    assert 4000 < series_count(metrics.registry) < most


def test_a_node_that_is_busy_in_an_ordinary_way_stays_below_5000_series_with_all_gpus_split(
    metrics: Metrics,
) -> None:
    # GIVEN 16 routes, of which some are slow for three causes, and 8 GPUs of 7 instances
    _fill(Metrics())
    for number in range(16):
        metrics.request(f"route{number}", "m", "1", "ok", 0.001)
        metrics.ledger(f"route{number}", [MS if cause < 14 else 0 for cause in range(N_CAUSES)])
    for cause in (Cause.RUN_QUEUE, Cause.THROTTLED, Cause.GPU_SHARED):
        for number in range(8):
            metrics.request(f"route{number}", "m", "1", "ok", 0.4, TRACE_ID, SPAN_ID, Outcome.NAMED, cause)
        metrics.verdict(cause, Outcome.NAMED, 0.05, 0.3, CulpritKind.PROCESS)
    metrics.gpus(sample_gpu_host(*_gpu_crowd(7)), TAKEN_MONO_NS)

    assert 2000 < series_count(metrics.registry) < 4000
    assert _value(metrics, "tailspan_label_overflows_total", metric="tailspan_request_duration_seconds") is None


def test_what_is_shed_and_what_was_measured_last_is_told(metrics: Metrics) -> None:
    metrics.shed({"syscalls": "cpu", "slices": "cpu"}, {"shed": 3, "restored": 1})
    metrics.measured({"p50": (0.001, 0.0005, 0.0015), "cpu": (0.002, 0.001, 0.003)})
    assert _value(metrics, "tailspan_shed_level") == 2
    assert _value(metrics, "tailspan_shed_step", step="slices") == 1
    assert _value(metrics, "tailspan_shed_step", step="verdicts") == 0
    assert _value(metrics, "tailspan_shed_changes_total", direction="shed") == 3
    assert _value(metrics, "tailspan_cost_difference_seconds", quantile="cpu", bound="upper") == 0.003
    # WHEN the next measurement cannot tell one of them, THEN that of before does not stand for it
    metrics.measured({"p50": (0.003, 0.002, 0.004)})
    assert _value(metrics, "tailspan_cost_difference_seconds", quantile="p50", bound="estimate") == 0.003
    told = _value(metrics, "tailspan_cost_difference_seconds", quantile="cpu", bound="upper")
    assert told is not None and math.isnan(told)
    metrics.shed({}, {"shed": 3, "restored": 3})
    assert _value(metrics, "tailspan_shed_level") == 0


def test_a_slow_request_leaves_the_ids_of_its_span_as_an_exemplar(metrics: Metrics) -> None:
    metrics.request("infer", "m", "1", "ok", 0.001)
    metrics.request("infer", "m", "1", "ok", 0.4123, TRACE_ID, SPAN_ID, Outcome.NAMED, Cause.RUN_QUEUE)

    text = Exposition(metrics.registry).render(openmetrics=True).decode()
    exemplars = [
        (sample.labels["le"], sample.exemplar.labels, sample.exemplar.value)
        for family in parse_openmetrics(text)
        for sample in family.samples
        if sample.exemplar
    ]

    assert exemplars == [("0.5", {"trace_id": TRACE_ID, "span_id": SPAN_ID}, 0.4123)]


@pytest.mark.parametrize(
    ("openmetrics", "parse"),
    [(False, parse_text), (True, parse_openmetrics)],
    ids=["text", "openmetrics"],
)
def test_what_is_exposed_parses_back_to_the_declared_metrics(
    metrics: Metrics, openmetrics: bool, parse: Callable[..., object]
) -> None:
    _fill(metrics)

    families = {family.name: family for family in parse(Exposition(metrics.registry).render(openmetrics).decode())}

    declared = {metric.name.removesuffix("_total"): metric for metric in semconv.METRICS}
    assert set(families) == set(declared)
    for name, family in families.items():
        metric = declared[name]
        assert (family.type, family.documentation) == (metric.kind, metric.meaning)
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(metric.labels)
        assert family.samples


def test_records_are_counted_by_class(metrics: Metrics) -> None:
    metrics.records({"cycle": 23, "incident": 0})
    metrics.records({"cycle": 101})

    assert _value(metrics, "tailspan_records_total", **{"class": "cycle"}) == 124
    assert _value(metrics, "tailspan_records_total", **{"class": "incident"}) == 0
    assert _value(metrics, "tailspan_records_total", **{"class": "block"}) is None


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


def test_states_of_threads_and_waits_begin_at_0(metrics: Metrics) -> None:
    states = ("on_cpu", "run_queue", "throttled", "blocked")
    assert [_value(metrics, "tailspan_thread_time_seconds_total", state=state) for state in states] == [None] * 4

    metrics.turns(np.empty(0, THREAD_CYCLE), np.empty(0, CPU_SLICE), add_up=True)

    assert [_value(metrics, "tailspan_thread_time_seconds_total", state=state) for state in states] == [0] * 4
    assert _value(metrics, "tailspan_run_queue_wait_seconds_count") == 0


def test_turns_are_added_up(metrics: Metrics) -> None:
    # GIVEN 23 turns: 10 ms on a CPU, 20 ms asleep, then ready; 3 ms without quota and 4 ms in a queue
    at = {"run": 0, "off": 10, "ready": 30, "on": 37}
    columns = {f"{name}_mono_ns": (1000 + ms) * MS for name, ms in at.items()}
    cycles = _rows(THREAD_CYCLE, 23, **columns, throttled_ns=3 * MS)
    slices = _slices(23, tid=9001, start_mono_ns=1033 * MS, end_mono_ns=1037 * MS)
    slices["runner"]["comm"] = b"stress-ng"

    metrics.turns(cycles[:20], slices[:5], add_up=False)
    metrics.turns(cycles[20:], slices[5:], add_up=True)
    metrics.turns(cycles[:0], slices[:0], add_up=True)

    time = "tailspan_thread_time_seconds_total"
    for state, ms in {"on_cpu": 10, "blocked": 20, "throttled": 3, "run_queue": 4}.items():
        assert _value(metrics, time, state=state) == pytest.approx(23 * ms / 1e3)
    assert _value(metrics, "tailspan_run_queue_wait_seconds_bucket", le="0.002") == 0
    assert _value(metrics, "tailspan_run_queue_wait_seconds_bucket", le="0.005") == 23
    assert _value(metrics, "tailspan_taken_cpu_seconds_total", process="stress-ng") == pytest.approx(23 * 0.004)


def test_requests_are_counted_by_how_their_thread_is_known(metrics: Metrics) -> None:
    joins = [Join.SAID] * 23 + [Join.SOCKET] * 11 + [Join.NONE] * 3
    metrics.joined(np.array(joins, np.uint8))
    metrics.joined(np.empty(0, np.uint8))

    counted = {
        by: _value(metrics, "tailspan_requests_joined_total", by=by)
        for by in ("said", "socket", "process", "none")
    }
    assert counted == {"said": 23, "socket": 11, "process": 0, "none": 3}


def test_outlets_totals_are_followed_and_their_drops_begin_at_0(metrics: Metrics) -> None:
    for _ in range(2):
        metrics.outlets({Signal.TRACES: OUTLET})

    traces = {"signal": "traces"}
    assert _value(metrics, "tailspan_otlp_sent_bytes_total", **traces) == 1009
    assert _value(metrics, "tailspan_otlp_items_total", **traces, origin="forwarded") == 101
    dropped = "tailspan_otlp_dropped_items_total"
    assert _value(metrics, dropped, **traces, origin="forwarded", reason="refused") == 7
    assert _value(metrics, dropped, **traces, origin="own", reason="spool_full") == 0
    assert _value(metrics, "tailspan_otlp_failures_total", **traces, reason="unreachable") == 3
    assert _value(metrics, "tailspan_otlp_queued_bytes", **traces) == 47
    assert _value(metrics, "tailspan_otlp_queue_limit_bytes", **traces) == 256 << 20
    assert _value(metrics, "tailspan_otlp_queue_age_seconds", **traces) == 2.5
    states = {state: _value(metrics, "tailspan_otlp_breaker", **traces, state=state) for state in State}
    assert states == {"closed": 0, "open": 1, "half_open": 0}


def test_a_signal_without_an_endpoint_has_neither_queue_nor_breaker(metrics: Metrics) -> None:
    metrics.outlets({Signal.LOGS: OutletStats(dropped=Counter({(Origin.FORWARDED, "no_endpoint"): 23}))})

    dropped = "tailspan_otlp_dropped_items_total"
    assert _value(metrics, dropped, signal="logs", origin="forwarded", reason="no_endpoint") == 23
    assert _value(metrics, "tailspan_otlp_sent_bytes_total", signal="logs") == 0
    assert _value(metrics, "tailspan_otlp_queue_limit_bytes", signal="logs") is None
    assert _value(metrics, "tailspan_otlp_breaker", signal="logs", state="closed") is None


def test_what_the_receiver_counts_begins_at_0(metrics: Metrics) -> None:
    metrics.receiver({}, {}, {})
    for signal_name in ("traces", "metrics", "logs"):
        assert _value(metrics, "tailspan_otlp_received_items_total", signal=signal_name) == 0
    assert _value(metrics, "tailspan_otlp_refused_total", reason="malformed") == 0
    for reason in prometheus._BREAKS:
        assert _value(metrics, "tailspan_otlp_broken_spans_total", reason=reason) == 0
        assert reason in semconv.OTLP_BROKEN_SPANS.meaning

    metrics.receiver({Signal.TRACES: 23}, {"malformed": 2, "new_reason": 1}, {"no_root": 3})
    assert _value(metrics, "tailspan_otlp_received_items_total", signal="traces") == 23
    assert _value(metrics, "tailspan_otlp_refused_total", reason="new_reason") == 1
    assert _value(metrics, "tailspan_otlp_broken_spans_total", reason="no_root") == 3


def test_turns_are_added_up_at_the_latest_when_they_are_many(metrics: Metrics) -> None:
    turns = np.zeros(prometheus.MANY_TURNS // 2, THREAD_CYCLE)
    turns["off_mono_ns"] = turns["ready_mono_ns"] = turns["on_mono_ns"] = MS
    no_slices = np.empty(0, CPU_SLICE)

    metrics.turns(turns, no_slices, add_up=False)
    assert _value(metrics, "tailspan_thread_time_seconds_total", state="on_cpu") is None
    metrics.turns(turns, no_slices, add_up=False)
    assert _value(metrics, "tailspan_thread_time_seconds_total", state="on_cpu") == pytest.approx(16.384)


def test_health_of_a_service_is_its_score_its_state_and_its_parts(metrics: Metrics) -> None:
    assert _value(metrics, "tailspan_host_health_score") is None
    metrics.health(_health("web"))

    assert _value(metrics, "tailspan_worker_health_score", service="web") == 63.0
    assert _value(metrics, "tailspan_worker_health_part_ratio", service="web", part="latency") == 0.63
    states = {
        each: _value(metrics, "tailspan_worker_health_state", service="web", state=each) for each in health.State
    }
    assert states == {each: float(each is health.State.WARNING) for each in health.State}
    assert _value(metrics, "tailspan_host_health_score") == 63.0
    assert _value(metrics, "tailspan_host_health_state", state="warning") == 1
    # AND a service that is gone has no series
    metrics.health(_health("chat"))
    assert _value(metrics, "tailspan_worker_health_score", service="web") is None
    assert _value(metrics, "tailspan_worker_health_score", service="chat") == 63.0


def test_a_score_that_is_not_known_is_absent_and_its_state_unknown(metrics: Metrics) -> None:
    metrics.health(HostHealth(Grade(), (WorkerHealth("web", Grade()),)))
    assert _value(metrics, "tailspan_worker_health_score", service="web") is None
    assert _value(metrics, "tailspan_host_health_score") is None
    assert _value(metrics, "tailspan_worker_health_state", service="web", state="unknown") == 1
    assert _value(metrics, "tailspan_host_health_state", state="unknown") == 1


def test_services_beyond_the_limit_have_the_score_of_the_worst_of_them(metrics: Metrics) -> None:
    limit = semconv.WORKER_HEALTH_SCORE.limit
    names = [f"service{number:03}" for number in range(limit)]
    first, ill, unknown = _health(*names), _health("zz", score=7.0), WorkerHealth("zzz", Grade())
    metrics.health(HostHealth(first.host, (*first.workers, *_health("z").workers, *ill.workers, unknown)))

    score = "tailspan_worker_health_score"
    assert _value(metrics, score, service=names[-1]) == 63.0
    assert _value(metrics, score, service="zz") is None
    assert _value(metrics, score, service="other") == 7.0
    assert _value(metrics, "tailspan_label_overflows_total", metric=score) == 1


def test_reloads_are_counted_from_0_and_the_time_of_the_last_good_one_is_kept(metrics: Metrics) -> None:
    reloads, at = "tailspan_config_reloads_total", "tailspan_config_last_reload_timestamp_seconds"
    assert _value(metrics, reloads, outcome="applied") == _value(metrics, reloads, outcome="failed") == 0
    started = _value(metrics, at)
    assert started is not None
    assert time.time() - 60 < started <= time.time()

    metrics.reloaded(ok=False)
    assert (_value(metrics, reloads, outcome="failed"), _value(metrics, at)) == (1, started)
    metrics.reloaded(ok=True)
    assert _value(metrics, reloads, outcome="applied") == 1
    assert (_value(metrics, at) or 0) > started


def test_a_reason_to_follow_that_holds_for_none_reads_0(metrics: Metrics) -> None:
    metrics.followed({"unit": 23})
    metrics.followed({"socket": 2})
    assert _value(metrics, "tailspan_followed_processes", reason="socket") == 2
    assert _value(metrics, "tailspan_followed_processes", reason="unit") == 0
