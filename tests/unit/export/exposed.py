"""What the registry holds, as prometheus_client has it: the reference that our own text is compared with."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tailspan.export.families import Distribution, Number, Registry, Snapshot
from tailspan.export.prometheus import Metrics


class _Exposed(Collector):
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for snapshot in self._registry.collect():
            yield _family(snapshot)


def exposed(registry: Registry) -> CollectorRegistry:
    """The same metrics, now and later."""
    reference = CollectorRegistry()
    reference.register(_Exposed(registry))
    return reference


def value(metrics: Metrics, sample: str, /, **labels: str) -> float | None:
    return exposed(metrics.registry).get_sample_value(sample, labels)


def series_count(registry: Registry) -> int:
    return sum(len(family.samples) for family in exposed(registry).collect())


def _family(snapshot: Snapshot) -> Metric:
    metric = snapshot.metric
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        for series in snapshot.series:
            assert isinstance(series, Distribution)
            histogram.add_metric(series.labels, _buckets(series, metric.buckets), series.total)
        return histogram
    family = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(
        metric.name, metric.meaning, labels=metric.labels
    )
    for series in snapshot.series:
        assert isinstance(series, Number)
        family.add_metric(series.labels, series.value)
    return family


def _buckets(series: Distribution, bounds: tuple[float, ...]) -> list[tuple[str, int, Exemplar | None]]:
    found: list[tuple[str, int, Exemplar | None]] = []
    for place, bound in enumerate((*bounds, float("inf"))):
        one = series.exemplars.get(place)
        exemplar = Exemplar(dict(one.labels), one.value, one.unix_s) if one else None
        found.append((floatToGoString(bound), sum(series.counts[: place + 1]), exemplar))
    return found
