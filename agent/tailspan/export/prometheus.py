"""The node's metrics. Few, low in cardinality: what one request spent leaves as spans, linked by exemplars.

:class:`Metrics` is updated by the daemon; ``scrape`` and ``otlp_metrics`` read its registry.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tailspan import __version__
from tailspan.attribute.causes import Cause
from tailspan.attribute.health import HostHealth
from tailspan.attribute.shedding import STEPS
from tailspan.attribute.verdict import CulpritKind, Outcome
from tailspan.export import semconv
from tailspan.export.families import Histogram, LabelSets, Number, Numbers, Registry, Snapshot
from tailspan.export.gpus import GpuSource
from tailspan.export.health import HealthSource
from tailspan.export.otlp.breaker import State
from tailspan.export.otlp.outlet import REFUSED, REJECTED, OutletStats
from tailspan.export.otlp.spool import SPOOL_FULL
from tailspan.export.semconv import OTHER, Metric
from tailspan.export.turns import run_queue_waits, taken_ns, thread_time_ns
from tailspan.timeline.evidence import Table
from tailspan.timeline.gpus import GpuHost
from tailspan.timeline.tables import Join, join
from tailspan.wire.events import (
    CPU_SLICE,
    SOCKET_WAIT,
    THREAD_CYCLE,
    GpuCallKind,
    IncidentKind,
    SocketFlags,
    SocketOp,
)
from tailspan.wire.otlp import Origin, Signal

#: Of REQUEST_DURATION, at 19 series each: combinations of name, model, version and status; those of them with the
#: outcome and cause of a slow request; and outcomes with causes of all further ones.
MAX_ROUTES, MAX_SLOW, MAX_SLOW_OTHERS = 40, 40, 10
#: Names in REQUEST_TIME, at up to one series a cause each.
MAX_NAMES = 32
#: Processes by name, of GPU and name together.
MAX_GPU_PROCESSES = semconv.GPU_PROCESS_MEMORY.limit
#: Turns and slices that are kept at most before they are added up: some 4 MB.
MANY_TURNS = 16_384
#: Outcome of a request that was not slow.
ORDINARY = "ordinary"
#: Reasons that begin at 0, so that rate() sees the first.
_DROPS = (SPOOL_FULL, REFUSED, REJECTED)
_REFUSALS = ("malformed", "oversized", "foreign_uid", "unknown_sender", "backlog")
_RELOADS = ("applied", "failed")
_REASONS = ("socket", "otlp", "pid", "unit", "cgroup", "container", "executable", "port", "peer")
_DIRECTIONS = ("shed", "restored")
_COMPARED, _BOUNDS = ("p50", "p99", "mean", "cpu"), ("estimate", "lower", "upper")
_BREAKS = ("no_parent", "no_root", "trace_changed", "late", "unended", "backwards", "bad_id")


class Reading(Protocol):
    """What the agent costs: tailspan.cost.meter.Reading."""

    @property
    def cpu_s(self) -> float: ...  #: in total
    @property
    def rss(self) -> int: ...  #: bytes
    @property
    def peak_rss(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def files(self) -> int: ...


class _RequestLabels:
    """Bounds what routes, outcomes and causes multiply to. A route's ordinary requests never lack room because
    others were slow in many ways.
    """

    def __init__(self) -> None:
        self._routes, self._slow = LabelSets(MAX_ROUTES), LabelSets(MAX_SLOW)
        self._others = LabelSets(MAX_SLOW_OTHERS)

    def of(self, route: tuple[str, ...], outcome: str, cause: str) -> tuple[str, ...]:
        """The labels of a request; those that have no room left are ``other``."""
        if not self._routes.admits(route):
            route = (OTHER,) * len(route)
        if outcome == ORDINARY or self._slow.admits((*route, outcome, cause)):
            return (*route, outcome, cause)
        if not self._others.admits((outcome, cause)):
            outcome, cause = OTHER, OTHER
        return (*(OTHER,) * len(route), outcome, cause)


class _HostTotals:
    """Totals that the kernel keeps, exposed as they are; one that it does not keep is absent."""

    def __init__(self) -> None:
        self.totals: Mapping[str, int] = {}

    def collect(self) -> Iterator[Snapshot]:
        totals = self.totals
        for metric, parts in semconv.HOST_TCP.items():
            kept = [totals[part] for part in parts if part in totals]
            if kept:
                yield Snapshot(metric, [Number((), sum(kept))], since_start=False)


#: CUDA calls by kind, as labels have it.
_GPU_CALL_KINDS = {int(kind): kind.name.lower() for kind in GpuCallKind if kind is not GpuCallKind.COUNT}
#: Signal -> its kind among the incidents.
_SIGNALS = {
    **dict.fromkeys((signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU), "stop"),
    signal.SIGCONT: "continue",
    **dict.fromkeys((signal.SIGTERM, signal.SIGKILL), "terminate"),
}


class Metrics:
    """Updated from the daemon's thread, read from others."""

    def __init__(self) -> None:
        self.registry = Registry()
        self._host, self._gpus = _HostTotals(), GpuSource(self._admits_gpu_process)
        self._gpu_processes = LabelSets(MAX_GPU_PROCESSES)
        self._request_labels = _RequestLabels()
        self._names = LabelSets(MAX_NAMES)
        self._turns: list[tuple[Table, Table]] = []  # not added up yet
        self._n_turns = 0  # rows of them
        self._socket_waits: list[Table] = []
        self._n_socket_waits = 0
        self._numbers: dict[str, Numbers] = {}
        self._histograms: dict[str, Histogram] = {}
        self._health = HealthSource(self._overflow)
        for metric in semconv.METRICS:
            if not any(metric in made for made in (semconv.HOST_TCP, semconv.GPU_HOST, semconv.HEALTH)):
                self._make(metric)
        self.registry.add(self._host)
        self.registry.add(self._gpus)
        self.registry.add(self._health)
        self._of(semconv.BUILD_INFO).set(__version__, to=1)
        self._histogram(semconv.VERDICT_LATENCY).begin()
        for outcome in _RELOADS:
            self._of(semconv.CONFIG_RELOADS).inc(outcome, by=0)
        self._of(semconv.CONFIG_LAST_RELOAD).set(to=time.time())

    def request(
        self,
        name: str,
        model: str,
        version: str,
        status: str,
        duration_s: float,
        trace_id: str = "",
        span_id: str = "",
        outcome: Outcome | None = None,
        cause: Cause | None = None,
    ) -> None:
        """One finished request. A slow one brings the hex ids of its span, which become the exemplar, and what its
        verdict came to; None: it was not slow.
        """
        route = (name, model, version, status)
        labels = self._request_labels.of(route, str(outcome or ORDINARY), semconv.cause_name(cause))
        if labels[: len(route)] != route:
            self._overflow(semconv.REQUEST_DURATION.name)
        exemplar = tuple((key, each) for key, each in (("trace_id", trace_id), ("span_id", span_id)) if each)
        self._histogram(semconv.REQUEST_DURATION).observe(*labels, value=duration_s, exemplar=exemplar)

    def ledger(self, name: str, parts_ns: Sequence[int]) -> None:
        """Requests' ledger: ns by :class:`Cause` position."""
        if not self._names.admits((name,)):
            self._overflow(semconv.REQUEST_TIME.name)
            name = OTHER
        family = self._of(semconv.REQUEST_TIME)
        for cause in Cause:
            if parts_ns[cause] > 0:
                family.inc(semconv.cause_name(cause), name, by=parts_ns[cause] * 1e-9)

    def verdict(
        self,
        cause: Cause | None,
        outcome: Outcome,
        latency_s: float,
        excess_s: float = 0.0,
        culprit: CulpritKind = CulpritKind.NONE,
    ) -> None:
        """One slow request judged, ``latency_s`` after it ended; it took ``excess_s`` longer than its like."""
        name = semconv.cause_name(cause)
        self._of(semconv.SLOW_REQUESTS).inc(name, str(outcome))
        self._of(semconv.LOST_TIME).inc(name, str(culprit), by=max(excess_s, 0.0))
        self._histogram(semconv.VERDICT_LATENCY).observe(value=latency_s)

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

    def turns(self, cycles: Table, slices: Table, add_up: bool = True) -> None:
        """wire.events.THREAD_CYCLE and CPU_SLICE of one drain: what followed threads did, and who had their CPUs.

        Few rows cost as much as a thousand: they are kept until they are to be added up, or are many. A turn that
        is not over is not counted yet.
        """
        if len(cycles) or len(slices):
            self._turns.append((cycles, slices))
            self._n_turns += len(cycles) + len(slices)
        if add_up or self._n_turns >= MANY_TURNS:
            of_cycles, of_slices = zip(*self._turns, strict=True) if self._turns else ((), ())
            self._add_up(join(of_cycles, THREAD_CYCLE), join(of_slices, CPU_SLICE))
            self._turns.clear()
            self._n_turns = 0

    def _add_up(self, cycles: Table, slices: Table) -> None:
        """No rows make the series, so that rate() sees the first."""
        waits = self._histogram(semconv.RUN_QUEUE_WAIT)
        waits.begin()
        for durations_ns, times in run_queue_waits(cycles):
            waits.observe_all(durations_ns=durations_ns, times=times)
        for state, ns in thread_time_ns(cycles).items():
            self._of(semconv.THREAD_TIME).inc(state, by=ns / 1e9)
        for process, ns in taken_ns(cycles, slices).items():
            self._of(semconv.TAKEN_TIME).inc(process, by=ns / 1e9)

    def joined(self, joins: npt.NDArray[np.integer]) -> None:
        """timeline.tables.Join of requests: how the thread that served each is known."""
        counts = np.bincount(joins, minlength=len(Join)).tolist()
        for by in Join:
            self._of(semconv.REQUESTS_JOINED).inc(by.name.lower(), by=counts[by])

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
        self._histogram(semconv.TCP_CONNECT_DURATION).observe_all(durations_ns=(established - opened)[connected])
        self._histogram(semconv.TCP_FIRST_BYTE).observe_all(durations_ns=(first_byte - first_sent)[answered])
        for role, which in roles.items():
            of_role = rows[which]
            self._of(semconv.TCP_CONNECTIONS).inc(role, by=len(of_role))
            self._of(semconv.TCP_MESSAGES).inc(role, by=int(of_role["messages"].sum()))
            self._of(semconv.TCP_RETRANSMITS).inc(role, by=int(of_role["retransmits"].sum()))
            self._of(semconv.TCP_RESETS).inc(role, by=int((of_role["flags"] & SocketFlags.RESET != 0).sum()))
            self._of(semconv.TCP_ZERO_WINDOWS).inc(role, by=int(of_role["zero_windows"].sum()))
            if role != "unseen":
                lifetimes_ns = of_role["closed_mono_ns"] - of_role["opened_mono_ns"]
                self._histogram(semconv.TCP_CONNECTION_DURATION).observe_all(role, durations_ns=lifetimes_ns)

    def socket_waits(self, rows: Table, add_up: bool = True) -> None:
        """wire.events.SOCKET_WAIT: TCP sockets of followed threads between two operations. As :meth:`turns`."""
        if len(rows):
            self._socket_waits.append(rows)
            self._n_socket_waits += len(rows)
        if self._socket_waits and (add_up or self._n_socket_waits >= MANY_TURNS):
            self._add_up_socket_waits(join(self._socket_waits, SOCKET_WAIT))
            self._socket_waits.clear()
            self._n_socket_waits = 0

    def _add_up_socket_waits(self, rows: Table) -> None:
        since, arrived, until = rows["from_mono_ns"], rows["arrived_mono_ns"], rows["to_mono_ns"]
        flags = rows["flags"]
        accepted = flags & SocketFlags.ACCEPTED != 0
        # A connection that was accepted before anything came on it has waited for its peer to say something.
        queued_ns = np.where(flags & SocketFlags.UNACCEPTED != 0, until - since, 0)
        begins = (rows["op"] == SocketOp.RECEIVE) & (flags & SocketFlags.MESSAGE != 0) & (arrived > 0)
        # Without its beginning, who of the two asks and who answers is not known.
        upstream = ~accepted & (rows["established_mono_ns"] > 0)
        self._histogram(semconv.TCP_ACCEPT_WAIT).observe_all(
            durations_ns=queued_ns[accepted & (flags & SocketFlags.FIRST != 0)]
        )
        self._histogram(semconv.TCP_UNREAD_WAIT).observe_all(durations_ns=(until - arrived)[accepted & begins])
        self._histogram(semconv.TCP_UPSTREAM_ANSWER).observe_all(durations_ns=(arrived - since)[upstream & begins])

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

    def health(self, health: HostHealth) -> None:
        """What attribute.watch.Watch has found."""
        self._health.take(health)

    def reloaded(self, ok: bool) -> None:
        """The configuration was read again, and applied; not ``ok``: what it says cannot be."""
        self._of(semconv.CONFIG_RELOADS).inc(_RELOADS[not ok])
        if ok:
            self._of(semconv.CONFIG_LAST_RELOAD).set(to=time.time())

    def tls(self, reloads: Mapping[str, int], expires_unix_s: float) -> None:
        """``reloads`` by outcome: loaded, refused."""
        for outcome in ("loaded", "refused"):
            self._of(semconv.TLS_RELOADS).advance(outcome, total=reloads.get(outcome, 0))
        self._of(semconv.TLS_EXPIRES).set(to=expires_unix_s)

    def followed(self, processes: Mapping[str, int]) -> None:
        """Processes that are followed now, by reason; one that has none reads 0."""
        for reason in {*_REASONS, *processes}:
            self._of(semconv.FOLLOWED_PROCESSES).set(reason, to=processes.get(reason, 0))

    def gpu_calls(self, rows: Table) -> None:
        """wire.events.GPU_CALL: CUDA calls of followed threads that have returned."""
        if not len(rows):
            return
        durations_ns = rows["exit_mono_ns"] - rows["enter_mono_ns"]
        for number, kind in _GPU_CALL_KINDS.items():
            self._histogram(semconv.GPU_CALL_DURATION).observe_all(
                kind, durations_ns=durations_ns[rows["kind"] == number]
            )

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

    def outlets(self, stats: Mapping[Signal, OutletStats]) -> None:
        """What has become of each signal. One that has no endpoint has neither queue nor breaker."""
        for name, one in stats.items():
            self._of(semconv.OTLP_SENT).advance(name, total=one.sent_bytes)
            for origin in Origin:
                self._of(semconv.OTLP_ITEMS).advance(name, origin, total=one.items[origin])
                for reason in _DROPS:
                    self._of(semconv.OTLP_DROPPED).inc(name, origin, reason, by=0)
            for (origin, reason), count in one.dropped.items():
                self._of(semconv.OTLP_DROPPED).advance(name, origin, reason, total=count)
            for reason, count in one.failures.items():
                self._of(semconv.OTLP_FAILURES).advance(name, reason, total=count)
            if one.limit_bytes:
                self._queue(name, one)

    def _queue(self, name: Signal, stats: OutletStats) -> None:
        self._of(semconv.OTLP_QUEUED).set(name, to=stats.queued_bytes)
        self._of(semconv.OTLP_QUEUE_LIMIT).set(name, to=stats.limit_bytes)
        self._of(semconv.OTLP_QUEUE_AGE).set(name, to=stats.age_s)
        for state in State:
            self._of(semconv.OTLP_BREAKER).set(name, state, to=float(state is stats.breaker))

    def receiver(
        self, received: Mapping[Signal, int], refused: Mapping[str, int], broken: Mapping[str, int]
    ) -> None:
        """What collect.otlp has counted since it began: items by signal, messages and spans by reason."""
        for name in Signal:
            self._of(semconv.OTLP_RECEIVED).advance(name, total=received.get(name, 0))
        for reason in {*_REFUSALS, *refused}:
            self._of(semconv.OTLP_REFUSED).advance(reason, total=refused.get(reason, 0))
        for reason in {*_BREAKS, *broken}:
            self._of(semconv.OTLP_BROKEN_SPANS).advance(reason, total=broken.get(reason, 0))

    def agent(self, reading: Reading) -> None:
        """What the agent itself costs."""
        self._of(semconv.AGENT_CPU).advance(total=reading.cpu_s)
        self._of(semconv.AGENT_MEMORY).set(to=reading.rss)
        self._of(semconv.AGENT_PEAK_MEMORY).set(to=reading.peak_rss)
        self._of(semconv.AGENT_THREADS).set(to=reading.threads)
        self._of(semconv.AGENT_FILES).set(to=reading.files)

    def budget(self, cpu: float, rss_bytes: int) -> None:
        """CPUs and bytes that the agent may take; 0: no bound."""
        self._of(semconv.BUDGET_CPU).set(to=cpu)
        self._of(semconv.BUDGET_MEMORY).set(to=rss_bytes)

    def shed(self, steps: Collection[str], changes: Mapping[str, int]) -> None:
        """Steps of attribute.shedding that are shed now; ``changes`` in total, by direction."""
        self._of(semconv.SHED_LEVEL).set(to=len(steps))
        for step in STEPS:
            self._of(semconv.SHED_STEP).set(step.name, to=float(step.name in steps))
        for direction in _DIRECTIONS:
            self._of(semconv.SHED_CHANGES).advance(direction, total=changes.get(direction, 0))

    def measured(self, differences: Mapping[str, tuple[float, float, float]]) -> None:
        """What probes add to a request: p50, p99, ... -> seconds, and the bounds of the 95 % interval.

        One that could not be told this time is not that of the time before.
        """
        family = self._of(semconv.COST_DIFFERENCE)
        for name in _COMPARED:
            for bound, value in zip(_BOUNDS, differences.get(name, (math.nan,) * len(_BOUNDS)), strict=True):
                family.set(name, bound, to=value)
        self._of(semconv.COST_MEASURED).set(to=time.time())

    def bpf_run_time(self, programs: Iterable[tuple[str, float]]) -> None:
        """(program, run time in seconds, in total); not called where the kernel keeps none."""
        for program, seconds in programs:
            self._of(semconv.BPF_RUN_TIME).advance(program, total=seconds)

    def _admits_gpu_process(self, gpu_and_name: tuple[str, ...]) -> bool:
        admitted = self._gpu_processes.admits(gpu_and_name)
        if not admitted:
            self._overflow(semconv.GPU_PROCESS_MEMORY.name)
        return admitted

    def _make(self, metric: Metric) -> None:
        if metric.kind == "histogram":
            self._histograms[metric.name] = histogram = Histogram(metric, self._overflow)
            self.registry.add(histogram)
        else:
            self._numbers[metric.name] = numbers = Numbers(metric, self._overflow)
            self.registry.add(numbers)

    def _overflow(self, metric_name: str) -> None:
        self._of(semconv.LABEL_OVERFLOWS).inc(metric_name)

    def _of(self, metric: Metric) -> Numbers:
        return self._numbers[metric.name]

    def _histogram(self, metric: Metric) -> Histogram:
        return self._histograms[metric.name]
