"""The node's metrics. Few, low in cardinality: what one request spent leaves as spans, linked by exemplars.

:class:`Metrics` is updated by the daemon; ``scrape`` serves its registry.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tailspan import __version__
from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import Outcome
from tailspan.export import semconv
from tailspan.export.gpus import GpuCollector
from tailspan.export.semconv import OPEN_LABELS, OTHER, Metric
from tailspan.timeline.evidence import Table
from tailspan.timeline.gpus import GpuHost
from tailspan.wire.events import GpuCallKind, IncidentKind, SocketFlags, SocketOp

#: Combinations of open labels that one family keeps. A histogram has 19 series a combination and the time by
#: cause one a cause: about 3,600 series in all when both are full.
MAX_LABEL_SETS = 64

Child = Counter | Gauge | Histogram


class _LabelSets:
    """The first ``limit`` combinations of open labels."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[tuple[str, ...]] = set()

    def admits(self, combination: tuple[str, ...]) -> bool:
        if combination not in self._seen:
            if len(self._seen) >= self._limit:
                return False
            self._seen.add(combination)
        return True


class _Family:
    """One metric. Its open labels take at most ``limit`` combinations; later ones are kept as ``other``."""

    def __init__(
        self, metric: Metric, registry: CollectorRegistry, limit: int, overflow: Callable[[str], None]
    ) -> None:
        self._metric = metric
        self._parent = _build(metric, registry)
        self._open = [i for i, label in enumerate(metric.labels) if label in OPEN_LABELS]
        self._sets = _LabelSets(limit)
        self._overflow = overflow
        self._children: dict[tuple[str, ...], Child] = {}
        self._totals: dict[tuple[str, ...], float] = {}

    def inc(self, *labels: str, by: float = 1.0) -> None:
        cast(Counter, self._child(labels)).inc(by)

    def set(self, *labels: str, to: float) -> None:
        cast(Gauge, self._child(labels)).set(to)

    def observe(self, *labels: str, value: float, exemplar: dict[str, str] | None = None) -> None:
        cast(Histogram, self._child(labels)).observe(value, exemplar)

    def advance(self, *labels: str, total: float) -> None:
        """Bring a counter up to a total that another keeps; one that went back has started over."""
        before = self._totals.get(labels, 0.0)
        self._totals[labels] = total
        self.inc(*labels, by=total - before if total >= before else total)

    def _child(self, labels: tuple[str, ...]) -> Child:
        child = self._children.get(labels)
        if child is not None:
            return child
        if not labels:
            return self._parent
        if self._open and not self._sets.admits(tuple(labels[i] for i in self._open)):
            self._overflow(self._metric.name)
            labels = tuple(OTHER if i in self._open else label for i, label in enumerate(labels))
            return self._parent.labels(*labels)
        child = self._children[labels] = self._parent.labels(*labels)
        return child


def _build(metric: Metric, registry: CollectorRegistry) -> Child:
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.meaning, metric.labels, registry=registry, buckets=metric.buckets)
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.name, metric.meaning, metric.labels, registry=registry)


class _ArrayHistogram(Collector):
    """A histogram fed with arrays: one pass of numpy a call, not a call a value. Absent until the first value."""

    def __init__(self, metric: Metric, registry: CollectorRegistry) -> None:
        self._metric = metric
        self._bounds = np.array(metric.buckets)
        bounds = (*metric.buckets, float("inf"))
        self._names = [floatToGoString(bound) for bound in bounds]  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()  # count and sum of a scrape belong together
        self._counts: dict[tuple[str, ...], npt.NDArray[np.int64]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        registry.register(self)

    def observe(self, *labels: str, durations_ns: npt.NDArray[np.int64]) -> None:
        """Durations below 0, two stamps that crossed, count as 0."""
        if not len(durations_ns):
            return
        seconds = np.maximum(durations_ns, 0) / 1e9
        counts = np.bincount(np.searchsorted(self._bounds, seconds), minlength=len(self._names))
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + counts
            self._sums[labels] = self._sums.get(labels, 0.0) + float(seconds.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        metric = self._metric
        family = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        with self._lock:
            for labels, counts in self._counts.items():
                buckets = list(zip(self._names, np.cumsum(counts).tolist(), strict=True))
                family.add_metric(labels, buckets, self._sums[labels])
        yield family


class _HostTotals(Collector):
    """Totals that the kernel keeps, exposed as they are; one that it does not keep is absent."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.totals: Mapping[str, int] = {}
        registry.register(self)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        totals = self.totals
        for metric, parts in semconv.HOST_TCP.items():
            kept = [totals[part] for part in parts if part in totals]
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            if kept:
                yield family(metric.name, metric.meaning, value=sum(kept))


#: Histograms that take rows by the thousand.
_ARRAY_HISTOGRAMS = (
    semconv.TCP_CONNECT_DURATION,
    semconv.TCP_FIRST_BYTE,
    semconv.TCP_CONNECTION_DURATION,
    semconv.TCP_ACCEPT_WAIT,
    semconv.TCP_UNREAD_WAIT,
    semconv.TCP_UPSTREAM_ANSWER,
    semconv.GPU_CALL_DURATION,
)
#: CUDA calls by kind, as labels have it.
_GPU_CALL_KINDS = {int(kind): kind.name.lower() for kind in GpuCallKind if kind is not GpuCallKind.COUNT}
#: Signal -> its kind among the incidents.
_SIGNALS = {
    **dict.fromkeys((signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU), "stop"),
    signal.SIGCONT: "continue",
    **dict.fromkeys((signal.SIGTERM, signal.SIGKILL), "terminate"),
}


class Metrics:
    """Updated from the daemon's thread, scraped from another."""

    def __init__(self, max_label_sets: int = MAX_LABEL_SETS) -> None:
        # A *_created series beside every counter and histogram would cost as much as they do and tell nothing
        # that the process start time does not.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._limit = max_label_sets
        self._histograms = {metric.name: _ArrayHistogram(metric, self.registry) for metric in _ARRAY_HISTOGRAMS}
        self._host = _HostTotals(self.registry)
        self._gpu_processes = _LabelSets(max_label_sets)
        self._gpus = GpuCollector(self.registry, self._admits_gpu_process)
        collected = {*_ARRAY_HISTOGRAMS, *semconv.HOST_TCP, *semconv.GPU_HOST}
        self._families = {
            metric.name: self._family(metric) for metric in semconv.METRICS if metric not in collected
        }
        self._of(semconv.BUILD_INFO).set(__version__, to=1)

    def request(
        self, name: str, model: str, version: str, status: str, duration_s: float, slow_trace_id: str = ""
    ) -> None:
        """One finished request; a slow one brings its trace id (hex), which becomes the exemplar."""
        exemplar = {"trace_id": slow_trace_id} if slow_trace_id else None
        self._of(semconv.REQUEST_DURATION).observe(
            name, model, version, status, value=duration_s, exemplar=exemplar
        )

    def ledger(self, name: str, parts_ns: Sequence[int]) -> None:
        """One request's ledger: ns by :class:`Cause` position."""
        family = self._of(semconv.REQUEST_TIME)
        for cause in Cause:
            if parts_ns[cause] > 0:
                family.inc(semconv.cause_name(cause), name, by=parts_ns[cause] * 1e-9)

    def verdict(self, cause: Cause | None, outcome: Outcome, latency_s: float) -> None:
        """One slow request judged, ``latency_s`` after it ended."""
        self._of(semconv.SLOW_REQUESTS).inc(semconv.cause_name(cause), str(outcome))
        self._of(semconv.VERDICT_LATENCY).observe(value=latency_s)

    def unjudged(self) -> None:
        """One slow request stored without a verdict."""
        self._of(semconv.SLOW_REQUESTS).inc(semconv.cause_name(None), str(Outcome.UNJUDGED))

    def forgotten(self, total: int) -> None:
        """Slow requests whose evidence was not kept, in total."""
        self._of(semconv.FORGOTTEN_REQUESTS).advance(total=total)

    def records(self, counts: Mapping[str, int]) -> None:
        """Kernel records that came with one drain, by class: ``cycle``, ``slice``, ``socket``, ..."""
        for record_class, count in counts.items():
            self._of(semconv.RECORDS).inc(record_class, by=count)

    def connections(self, rows: Table) -> None:
        """wire.events.CONNECTION: TCP connections of followed processes that are over."""
        if not len(rows):
            return
        opened, established = rows["opened_mono_ns"], rows["established_mono_ns"]
        first_sent, first_byte = rows["first_sent_mono_ns"], rows["first_byte_mono_ns"]
        accepted = rows["flags"] & SocketFlags.ACCEPTED != 0
        tried = ~accepted & (opened > 0)
        roles = {
            "accepted": accepted,
            "connected": tried & (established > 0),
            "failed": tried & (established == 0),
            "unseen": ~accepted & ~tried,
        }
        connected = roles["connected"]
        answered = connected & (first_sent > 0) & (first_byte > first_sent)
        self._array(semconv.TCP_CONNECT_DURATION).observe(durations_ns=(established - opened)[connected])
        self._array(semconv.TCP_FIRST_BYTE).observe(durations_ns=(first_byte - first_sent)[answered])
        for role, which in roles.items():
            of_role = rows[which]
            self._of(semconv.TCP_CONNECTIONS).inc(role, by=len(of_role))
            self._of(semconv.TCP_MESSAGES).inc(role, by=int(of_role["messages"].sum()))
            self._of(semconv.TCP_RETRANSMITS).inc(role, by=int(of_role["retransmits"].sum()))
            self._of(semconv.TCP_RESETS).inc(role, by=int((of_role["flags"] & SocketFlags.RESET != 0).sum()))
            self._of(semconv.TCP_ZERO_WINDOWS).inc(role, by=int(of_role["zero_windows"].sum()))
            if role != "unseen":
                lifetimes_ns = of_role["closed_mono_ns"] - of_role["opened_mono_ns"]
                self._array(semconv.TCP_CONNECTION_DURATION).observe(role, durations_ns=lifetimes_ns)

    def socket_waits(self, rows: Table) -> None:
        """wire.events.SOCKET_WAIT: TCP sockets of followed threads between two operations."""
        if not len(rows):
            return
        since, arrived, until = rows["from_mono_ns"], rows["arrived_mono_ns"], rows["to_mono_ns"]
        flags = rows["flags"]
        accepted = flags & SocketFlags.ACCEPTED != 0
        # A connection that was accepted before anything came on it has waited for its peer to say something.
        queued_ns = np.where(flags & SocketFlags.UNACCEPTED != 0, until - since, 0)
        begins = (rows["op"] == SocketOp.RECEIVE) & (flags & SocketFlags.MESSAGE != 0) & (arrived > 0)
        # Without its beginning, who of the two asks and who answers is not known.
        upstream = ~accepted & (rows["established_mono_ns"] > 0)
        self._array(semconv.TCP_ACCEPT_WAIT).observe(
            durations_ns=queued_ns[accepted & (flags & SocketFlags.FIRST != 0)]
        )
        self._array(semconv.TCP_UNREAD_WAIT).observe(durations_ns=(until - arrived)[accepted & begins])
        self._array(semconv.TCP_UPSTREAM_ANSWER).observe(durations_ns=(arrived - since)[upstream & begins])

    def incidents(self, rows: Table) -> None:
        """wire.events.INCIDENT. No rows make the series, so that rate() sees the first; not called without the
        probe, since then none is not known to have happened.
        """
        counts = dict.fromkeys(("oom_kill", *_SIGNALS.values()), 0)
        for kind, number in zip(rows["kind"].tolist(), rows["signal"].tolist(), strict=True):
            name = "oom_kill" if kind == IncidentKind.OOM_KILL else _SIGNALS.get(number)
            if name:
                counts[name] += 1
        for name, count in counts.items():
            self._of(semconv.INCIDENTS).inc(name, by=count)

    def host_tcp(self, totals: Mapping[str, int]) -> None:
        """What collect.samples.NetTotals has read."""
        self._host.totals = totals

    def gpus(self, host: GpuHost, now_mono_ns: int) -> None:
        """What NVML has said, and the time now."""
        self._gpus.take(host, now_mono_ns)

    def gpu_calls(self, rows: Table) -> None:
        """wire.events.GPU_CALL: CUDA calls of followed threads that have returned."""
        if not len(rows):
            return
        durations_ns = rows["exit_mono_ns"] - rows["enter_mono_ns"]
        for number, kind in _GPU_CALL_KINDS.items():
            self._array(semconv.GPU_CALL_DURATION).observe(kind, durations_ns=durations_ns[rows["kind"] == number])

    def gpu_probes(self, hits: Mapping[str, int], attached: int, off: Mapping[str, int]) -> None:
        """``hits``: CUDA calls in total, by kind; ``attached``: functions with a probe now; ``off``: by kind, the
        processes where it is switched off for its rate. A kind that is in neither has 0, so that rate() sees its
        first call; not called without the probe, since then none is not known to have happened.
        """
        for kind in _GPU_CALL_KINDS.values():
            self._of(semconv.GPU_CALLS).advance(kind, total=hits.get(kind, 0))
            self._of(semconv.GPU_PROBE_OFF).set(kind, to=off.get(kind, 0))
        self._of(semconv.GPU_PROBES).set(to=attached)

    def lost(self, record_class: str, count: int) -> None:
        """``count`` more records of a class are lost; 0 makes its series, so that rate() sees the first."""
        self._of(semconv.LOST_RECORDS).inc(record_class, by=count)

    def dropped_messages(self, reason: str, count: int) -> None:
        """``count`` more worker messages are dropped, by clients or by the agent."""
        self._of(semconv.DROPPED_MESSAGES).inc(reason, by=count)

    def probes(self, attached: Mapping[str, bool]) -> None:
        for probe, there in attached.items():
            self._of(semconv.PROBE_ATTACHED).set(probe, to=float(there))

    def window(self, rows: Mapping[str, int]) -> None:
        """Rows now held, by table."""
        for table, count in rows.items():
            self._of(semconv.WINDOW_ROWS).set(table, to=count)

    def exporter(self, exporter: str, exported: int, dropped: Mapping[str, int]) -> None:
        """An exporter's totals; ``dropped`` by reason."""
        self._of(semconv.EXPORTED).advance(exporter, total=exported)
        for reason, count in dropped.items():
            self._of(semconv.EXPORT_DROPPED).advance(exporter, reason, total=count)

    def agent(self, cpu_seconds: float, resident_bytes: int) -> None:
        """What the agent itself costs: CPU seconds in total, memory now."""
        self._of(semconv.AGENT_CPU).advance(total=cpu_seconds)
        self._of(semconv.AGENT_MEMORY).set(to=resident_bytes)

    def bpf_run_time(self, programs: Iterable[tuple[str, float]]) -> None:
        """(program, run time in seconds, in total); not called where the kernel keeps none."""
        for program, seconds in programs:
            self._of(semconv.BPF_RUN_TIME).advance(program, total=seconds)

    def _admits_gpu_process(self, gpu_and_name: tuple[str, ...]) -> bool:
        admitted = self._gpu_processes.admits(gpu_and_name)
        if not admitted:
            self._of(semconv.LABEL_OVERFLOWS).inc(semconv.GPU_PROCESS_MEMORY.name)
        return admitted

    def _family(self, metric: Metric) -> _Family:
        return _Family(
            metric, self.registry, self._limit, lambda name: self._of(semconv.LABEL_OVERFLOWS).inc(name)
        )

    def _of(self, metric: Metric) -> _Family:
        return self._families[metric.name]

    def _array(self, metric: Metric) -> _ArrayHistogram:
        return self._histograms[metric.name]
