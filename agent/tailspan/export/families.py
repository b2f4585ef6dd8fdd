"""The metrics' values: what the daemon counts, and what others read of it at their own time.

A family is one metric with all its label sets. Memory is bounded: a metric keeps :attr:`Metric.limit` of them,
then a quarter more in which labels that others choose have become ``other``, and one for the rest.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tailspan.export.semconv import OPEN_LABELS, OTHER, Metric

Labels = tuple[str, ...]
#: (label, value) pairs.
ExemplarLabels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Exemplar:
    labels: ExemplarLabels
    value: float
    unix_s: float


class Number(NamedTuple):
    """A counter's or gauge's value."""

    labels: Labels
    value: float


class Distribution(NamedTuple):
    """A histogram's values; one count a bucket, not accumulated, the last one beyond all bounds."""

    labels: Labels
    counts: tuple[int, ...]
    total: float
    exemplars: dict[int, Exemplar]  #: the last one by bucket


Series = Number | Distribution


class Snapshot(NamedTuple):
    """One metric at one time. All series are Numbers, or Distributions where the metric is a histogram."""

    metric: Metric
    series: list[Series]
    since_start: bool = True  #: counted by the agent, from its start; else a total that another keeps


class Source(Protocol):
    def collect(self) -> Iterable[Snapshot]: ...


class Registry:
    """All metrics of this agent. Read from any thread, one series at a time consistent."""

    def __init__(self) -> None:
        self.start_unix_ns = time.time_ns()
        self._sources: list[Source] = []

    def add(self, source: Source) -> None:
        self._sources.append(source)

    def collect(self) -> Iterator[Snapshot]:
        """Only what has series now."""
        for source in self._sources:
            for snapshot in source.collect():
                if snapshot.series:
                    yield snapshot


class LabelSets:
    """The first ``limit`` combinations of labels that were asked for."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[Labels] = set()

    def admits(self, combination: Labels) -> bool:
        if combination not in self._seen:
            if len(self._seen) >= self._limit:
                return False
            self._seen.add(combination)
        return True


class _Sets:
    """Which of a metric's label sets a combination is counted under."""

    def __init__(self, metric: Metric, overflow: Callable[[str], None]) -> None:
        self._metric = metric
        self._own, self._shared = LabelSets(metric.limit), LabelSets(metric.limit // 4)
        self._overflow = overflow
        self._known: dict[Labels, Labels] = {}

    def of(self, labels: Labels) -> Labels:
        known = self._known.get(labels)
        if known is not None:
            return known
        if self._own.admits(labels):
            known = self._known[labels] = tuple(encodable(label) for label in labels)
            return known
        self._overflow(self._metric.name)
        shared = tuple(
            OTHER if name in OPEN_LABELS else label
            for name, label in zip(self._metric.labels, labels, strict=True)
        )
        return shared if self._shared.admits(shared) else (OTHER,) * len(labels)


def encodable(text: str) -> str:
    """Half of a surrogate pair has no bytes in UTF-8: one such label would fail every scrape from then on."""
    return text.encode("utf-8", "replace").decode()


class Numbers:
    """A counter or gauge. One without labels that counts begins at 0, so that rate() sees the first."""

    def __init__(self, metric: Metric, overflow: Callable[[str], None]) -> None:
        self._metric = metric
        self._sets = _Sets(metric, overflow)
        self._lock = threading.Lock()
        self._values: dict[Labels, float] = {}
        self._totals: dict[Labels, float] = {}
        if metric.kind == "counter" and not metric.labels:
            self.inc(by=0)

    def inc(self, *labels: str, by: float = 1.0) -> None:
        key = self._sets.of(labels)
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + by

    def set(self, *labels: str, to: float) -> None:
        key = self._sets.of(labels)
        with self._lock:
            self._values[key] = to

    def advance(self, *labels: str, total: float) -> None:
        """Bring a counter up to a total that another keeps; one that went back has started over."""
        before = self._totals.get(labels, 0.0)
        self._totals[labels] = total
        self.inc(*labels, by=total - before if total >= before else total)

    def collect(self) -> Iterator[Snapshot]:
        with self._lock:
            items = list(self._values.items())
        yield Snapshot(self._metric, [Number(*item) for item in items])


class _Buckets:
    __slots__ = ("counts", "exemplars", "total")

    def __init__(self, count: int) -> None:
        self.counts = [0] * count
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}


class Histogram:
    """Durations in seconds by bucket."""

    def __init__(self, metric: Metric, overflow: Callable[[str], None]) -> None:
        self._metric = metric
        self._bounds = np.array(metric.buckets)
        self._sets = _Sets(metric, overflow)
        self._lock = threading.Lock()  # counts and total of a scrape belong together
        self._children: dict[Labels, _Buckets] = {}

    def begin(self, *labels: str) -> None:
        """Make a series, so that rate() sees its first value."""
        with self._lock:
            self._child(labels)

    def observe(self, *labels: str, value: float, exemplar: ExemplarLabels = ()) -> None:
        place = bisect_left(self._metric.buckets, value)
        with self._lock:
            child = self._child(labels)
            child.counts[place] += 1
            child.total += value
            if exemplar:
                child.exemplars[place] = Exemplar(exemplar, value, time.time())

    def observe_all(
        self, *labels: str, durations_ns: npt.NDArray[np.int64], times: npt.NDArray[np.int64] | None = None
    ) -> None:
        """Each of many, one pass of numpy; ``times``: how often each. No value makes no series. Durations below 0,
        two stamps that crossed, count as 0.
        """
        if not len(durations_ns):
            return
        seconds = np.maximum(durations_ns, 0) / 1e9
        weights = np.ones(len(seconds)) if times is None else times.astype(np.float64)
        places = np.searchsorted(self._bounds, seconds)
        added = np.bincount(places, weights, minlength=len(self._bounds) + 1).astype(np.int64).tolist()
        total = float(seconds @ weights)
        with self._lock:
            child = self._child(labels)
            child.counts = [before + more for before, more in zip(child.counts, added, strict=True)]
            child.total += total

    def collect(self) -> Iterator[Snapshot]:
        with self._lock:
            series: list[Series] = [
                Distribution(labels, tuple(child.counts), child.total, dict(child.exemplars))
                for labels, child in self._children.items()
            ]
        yield Snapshot(self._metric, series)

    def _child(self, labels: Labels) -> _Buckets:
        key = self._sets.of(labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = _Buckets(len(self._bounds) + 1)
        return child
