"""The node's metrics. Few, low in cardinality: what one request spent leaves as spans, linked by exemplars.

:class:`Metrics` is updated by the daemon; ``scrape`` serves its registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tailspan import __version__
from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import Outcome
from tailspan.export import semconv
from tailspan.export.semconv import OPEN_LABELS, OTHER, Metric

#: Combinations of open labels that one family keeps. A histogram has 19 series a combination and the time by
#: cause one a cause: about 2,200 series in all when both are full.
MAX_LABEL_SETS = 64

Child = Counter | Gauge | Histogram


class _Family:
    """One metric. Its open labels take at most ``limit`` combinations; later ones are kept as ``other``."""

    def __init__(
        self, metric: Metric, registry: CollectorRegistry, limit: int, overflow: Callable[[str], None]
    ) -> None:
        self._metric = metric
        self._parent = _build(metric, registry)
        self._open = [i for i, label in enumerate(metric.labels) if label in OPEN_LABELS]
        self._seen: set[tuple[str, ...]] = set()
        self._limit = limit
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
        if self._open and not self._admits(labels):
            self._overflow(self._metric.name)
            labels = tuple(OTHER if i in self._open else label for i, label in enumerate(labels))
            return self._parent.labels(*labels)
        child = self._children[labels] = self._parent.labels(*labels)
        return child

    def _admits(self, labels: tuple[str, ...]) -> bool:
        combination = tuple(labels[i] for i in self._open)
        if combination not in self._seen:
            if len(self._seen) >= self._limit:
                return False
            self._seen.add(combination)
        return True


def _build(metric: Metric, registry: CollectorRegistry) -> Child:
    if metric.kind == "histogram":
        return Histogram(
            metric.name, metric.meaning, metric.labels, registry=registry, buckets=semconv.DURATION_BUCKETS
        )
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.name, metric.meaning, metric.labels, registry=registry)


class Metrics:
    """Updated from the daemon's thread, scraped from another."""

    def __init__(self, max_label_sets: int = MAX_LABEL_SETS) -> None:
        # A *_created series beside every counter and histogram would cost as much as they do and tell nothing
        # that the process start time does not.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._limit = max_label_sets
        self._families = {metric.name: self._family(metric) for metric in semconv.METRICS}
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

    def records(self, cycles: int, slices: int) -> None:
        """Kernel records that came with one drain."""
        self._of(semconv.RECORDS).inc("cycle", by=cycles)
        self._of(semconv.RECORDS).inc("slice", by=slices)

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

    def _family(self, metric: Metric) -> _Family:
        return _Family(
            metric, self.registry, self._limit, lambda name: self._of(semconv.LABEL_OVERFLOWS).inc(name)
        )

    def _of(self, metric: Metric) -> _Family:
        return self._families[metric.name]
