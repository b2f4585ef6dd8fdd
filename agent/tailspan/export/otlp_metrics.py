"""The registry as OTLP: the same metrics as a scrape has, under their OpenTelemetry names, pushed by the agent.

Counters and histograms are cumulative, whatever ``OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`` says: what a
lost push has counted is in the next one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tailspan import __version__
from tailspan.errors import UsageError
from tailspan.export import semconv
from tailspan.export.families import Distribution, Exemplar, Registry, Snapshot

if TYPE_CHECKING:
    from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource

log = logging.getLogger(__name__)

#: OTEL_METRIC_EXPORT_INTERVAL where it is not set, and the least that it may be; milliseconds.
DEFAULT_INTERVAL_MS, MIN_INTERVAL_MS = 60_000, 500
_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8


def metrics_configured(environ: Mapping[str, str]) -> bool:
    """True where an endpoint for metrics is named, or a general one and OTEL_METRICS_EXPORTER says otlp. A general
    endpoint alone is for traces: metrics are scraped then, and would be stored twice.
    """
    exporters = [name.strip() for name in environ.get("OTEL_METRICS_EXPORTER", "").split(",")]
    if "none" in exporters:
        return False
    general = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") if "otlp" in exporters else ""
    return bool(environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT") or general)


def interval_s(environ: Mapping[str, str]) -> float:
    """Between two pushes. Raises :class:`UsageError` where the variable is no number, or too small."""
    text = environ.get("OTEL_METRIC_EXPORT_INTERVAL") or str(DEFAULT_INTERVAL_MS)
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = float("nan")
    if not MIN_INTERVAL_MS <= milliseconds < threading.TIMEOUT_MAX:
        raise UsageError(f"OTEL_METRIC_EXPORT_INTERVAL={text}: milliseconds, at least {MIN_INTERVAL_MS}")
    return milliseconds / 1000


def agent_resource(host: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The agent's own resource attributes. OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME win, as in the SDK."""
    pairs = (pair.partition("=") for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
    given = {unquote(key.strip()): unquote(value.strip()) for key, _, value in pairs if value}
    own = {
        "service.name": "tailspan",
        "service.version": __version__,
        "service.instance.id": host,  # one agent a host; without it the hosts' series would be one
        "host.name": host,
    }
    name = environ.get("OTEL_SERVICE_NAME")
    return own | given | ({"service.name": name} if name else {})


def encode(registry: Registry, resource: Mapping[str, str], now_unix_ns: int) -> tuple[bytes, int]:
    """An ExportMetricsServiceRequest, and how many data points it has."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    request = ExportMetricsServiceRequest()
    of_resource = request.resource_metrics.add()
    _describe(of_resource.resource, resource.items())
    of_scope = of_resource.scope_metrics.add()
    of_scope.scope.name, of_scope.scope.version = semconv.SCOPE, __version__
    points = 0
    for snapshot in registry.collect():
        points += len(snapshot.series)
        start_unix_ns = registry.start_unix_ns if snapshot.since_start else 0
        _fill(of_scope.metrics.add(), snapshot, start_unix_ns, now_unix_ns)
    return request.SerializeToString(), points


class MetricsPusher:
    """A thread that gives the metrics to ``put`` (payload, data points), at intervals and on :meth:`close`."""

    def __init__(
        self,
        registry: Registry,
        resource: Mapping[str, str],
        interval_s: float,
        put: Callable[[bytes, int], None],
    ) -> None:
        self._registry, self._resource, self._put = registry, resource, put
        self._interval_s = interval_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tailspan-metrics-push", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Push what there is now, then end. Takes as long as ``put`` does."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._interval_s):
            self._push()
        self._push()

    def _push(self) -> None:
        try:
            self._put(*encode(self._registry, self._resource, time.time_ns()))
        except Exception:  # the next push has all of it, and no thread would make it if this one ended
            log.warning("the metrics could not be pushed", exc_info=True)


def _fill(out: pb.Metric, snapshot: Snapshot, start_unix_ns: int, now_unix_ns: int) -> None:
    from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

    metric = snapshot.metric
    out.name, out.unit, out.description = metric.otel, metric.unit, metric.meaning
    if metric.instrument == "gauge":
        start_unix_ns = 0
    elif metric.instrument == "histogram":
        out.histogram.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    else:
        out.sum.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
        out.sum.is_monotonic = metric.instrument == "counter"
    for series in snapshot.series:
        point: pb.NumberDataPoint | pb.HistogramDataPoint
        if isinstance(series, Distribution):
            point = out.histogram.data_points.add()
            _distribute(point, series, metric.buckets)
        else:
            point = (out.gauge if metric.instrument == "gauge" else out.sum).data_points.add()
            point.as_double = series.value
        _describe(point, zip(metric.attributes, series.labels, strict=True))
        point.time_unix_nano = now_unix_ns
        if start_unix_ns:
            point.start_time_unix_nano = start_unix_ns


def _distribute(point: pb.HistogramDataPoint, series: Distribution, bounds: tuple[float, ...]) -> None:
    point.count, point.sum = sum(series.counts), series.total
    point.bucket_counts.extend(series.counts)
    point.explicit_bounds.extend(bounds)
    for exemplar in series.exemplars.values():
        _exemplify(point.exemplars.add(), exemplar)


def _exemplify(out: pb.Exemplar, exemplar: Exemplar) -> None:
    out.time_unix_nano, out.as_double = int(exemplar.unix_s * 1e9), exemplar.value
    ids = dict(exemplar.labels)
    out.trace_id = _id(ids.get("trace_id", ""), _TRACE_ID_BYTES)
    out.span_id = _id(ids.get("span_id", ""), _SPAN_ID_BYTES)


def _id(text: str, size: int) -> bytes:
    """Of hex; empty where it is no id of that size."""
    try:
        found = bytes.fromhex(text)
    except ValueError:
        return b""
    return found if len(found) == size else b""


def _describe(
    out: Resource | pb.NumberDataPoint | pb.HistogramDataPoint, pairs: Iterable[tuple[str, str]]
) -> None:
    """Attributes. One that is empty is absent, as Prometheus has it too."""
    for key, value in pairs:
        if value:
            attribute = out.attributes.add()
            attribute.key, attribute.value.string_value = key, value
