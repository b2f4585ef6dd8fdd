"""Writes telemetry.md beside this file from the names in tailspan.export.semconv: ``python docs/telemetry.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tailspan.export import otlp_metrics, prometheus, semconv

OUTPUT = Path(__file__).with_name("telemetry.md")

HEAD = """\
<!-- Written by docs/telemetry.py from agent/tailspan/export/semconv.py. Change those. -->

# Telemetry

Every span, event, attribute and metric that leaves the agent. Times are seconds; units are UCUM codes. *stable*:
name, unit and meaning stay, and a change of them is announced in the changelog. *development*: it is new, or named
by a convention that is itself in development. *source*: who knows it.
"""

SPANS = f"""\
## Spans

Children of the worker's own request span, in the request's own trace. Instrumentation scope `{semconv.SCOPE}`,
kind INTERNAL. Where the worker did not sample its request span, one is synthesised with the same ids.
"""

EVENTS = f"""\
## Events

On the verdict span. A stretch of the critical path that is too short for a span is counted under
`tailspan.below_floor.*` of the verdict span; the longest of them are events too, each at the time when the stretch
began and named as the span would be: `tailspan.run_queue`.

| event | attributes |
| --- | --- |
| name of a step's span | `{semconv.DURATION.name}`, `{semconv.CAUSE.name}`, `{semconv.THREAD_TID.name}`, \
`{semconv.NOTE.name}` |
"""

ATTRIBUTES = """\
## Attributes

On: `resource`, the worker's resource; `request`, a synthesised request span; `verdict`, the verdict span; `step`,
every other span; `event`, an event. An attribute whose value is not known is absent.
"""

_BUCKETS = ", ".join(f"{bound:g}" for bound in semconv.DURATION_BUCKETS)
_LIFETIME_BUCKETS = ", ".join(f"{bound:g}" for bound in semconv.LIFETIME_BUCKETS)
_OPEN_LABELS = ", ".join(f"`{label}`" for label in sorted(semconv.OPEN_LABELS))
_HISTOGRAM = len(semconv.DURATION_BUCKETS) + 3
METRICS = f"""\
## Metrics

Prometheus text or OpenMetrics on `/metrics`; by OTLP where `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` is set, or
`OTEL_METRICS_EXPORTER=otlp` with `OTEL_EXPORTER_OTLP_ENDPOINT`, every `OTEL_METRIC_EXPORT_INTERVAL` milliseconds
({otlp_metrics.DEFAULT_INTERVAL_MS:,}), cumulative. Both have the same metrics: the first name is Prometheus', the
second OpenTelemetry's, which a backend turns into the first.

A histogram has `_bucket`, `_count` and `_sum`; its buckets end at {_BUCKETS} s; those of
`{semconv.TCP_CONNECTION_DURATION.name}` at {_LIFETIME_BUCKETS} s. Exemplars (OpenMetrics, OTLP) carry
`trace_id` and `span_id` of the last slow request in their bucket.

`tailspan_host_tcp_*` are the kernel's own totals for the agent's network namespace: the host's, unless the agent
runs in another one. A total that the kernel does not keep is absent; so are a histogram of TCP before its first
value, and the incidents where their probe is not attached.

`hw_*` are OpenTelemetry's metrics of hardware, under the names that they have in Prometheus. `hw_id`, on every
metric of a GPU, is its uuid as dcgm-exporter has it (`UUID`). What NVML does not say of a GPU is absent. One that
is lost keeps `{semconv.HW_STATUS.name}`, `{semconv.GPU_INFO.name}`, its XIDs and
`{semconv.GPU_READING_AGE.name}`. A MIG instance has what is its own: memory, utilization, processes; clocks,
power, errors and links are those of `hw_parent`. Totals are the driver's, but for XIDs, and may start over when it
is loaded again.
"""

BOUNDS = f"""\
### How many series

Fewer than 5,000 on a node with eight GPUs, whatever workers send. Each MIG instance adds 15.
Labels with values that others choose ({_OPEN_LABELS}) are the first that become
`{semconv.OTHER}` where a metric has no room left; `{semconv.LABEL_OVERFLOWS.name}` counts what came beyond.
Every metric keeps at most 256 combinations of its labels and a quarter more; these have bounds of their own:
"""


def built() -> str:
    """The document as text."""
    spans = [semconv.VERDICT_SPAN, *semconv.STEP_SPANS.values()]
    head = ("metric", "OpenTelemetry", "kind", "unit", "labels", "meaning", "stability", "source")
    lines = [HEAD, SPANS]
    lines += table(("span", "meaning"), ((f"`{span.name}`", span.meaning) for span in spans))
    lines += ["", EVENTS, ATTRIBUTES]
    head_of_attributes = ("attribute", "type", "unit", "on", "meaning", "stability", "source")
    lines += table(head_of_attributes, map(_attribute, semconv.ATTRIBUTES))
    lines += ["", METRICS]
    for topic, metrics in semconv.TOPICS.items():
        lines += [f"### {topic}", "", *table(head, map(_metric, metrics)), ""]
    lines += [BOUNDS, *table(("metric", "what is kept apart", "series at most"), _bounds()), ""]
    return "\n".join(lines)


def _attribute(each: semconv.Attribute) -> tuple[str, ...]:
    return (
        *(f"`{each.name}`", each.type, each.unit, ", ".join(each.on)),
        *(each.meaning, each.stability, each.source),
    )


def _metric(each: semconv.Metric) -> tuple[str, ...]:
    return (
        *(f"`{each.name}`", f"`{each.otel}`", each.instrument, each.unit, ", ".join(each.labels)),
        *(each.meaning, each.stability, each.source),
    )


def _bounds() -> Iterator[tuple[str, ...]]:
    """Of the metrics whose bound is not the common one."""
    slow = f"{prometheus.MAX_SLOW} with outcome and cause of slow requests"
    processes = prometheus.MAX_GPU_PROCESSES
    kept: dict[semconv.Metric, tuple[str, str]] = {
        semconv.REQUEST_DURATION: (
            f"{prometheus.MAX_ROUTES} combinations of name, model, version and status; {slow}; "
            f"{prometheus.MAX_SLOW_OTHERS} outcomes with causes of all further ones",
            f"{semconv.REQUEST_DURATION.limit * _HISTOGRAM:,}",
        ),
        semconv.REQUEST_TIME: (f"{prometheus.MAX_NAMES} names, by cause", f"{semconv.REQUEST_TIME.limit:,}"),
        semconv.LOST_TIME: (
            f"{semconv.LOST_TIME.limit} causes with culprits, and a quarter more",
            f"{semconv.LOST_TIME.limit * 5 // 4 + 1}",
        ),
        semconv.TAKEN_TIME: (f"{semconv.TAKEN_TIME.limit} processes", f"{semconv.TAKEN_TIME.limit + 1}"),
        **{
            metric: (f"{semconv.WORKER_HEALTH_SCORE.limit} services{each}", f"{metric.limit + metric.limit // 32}")
            for metric, each in (
                (semconv.WORKER_HEALTH_SCORE, ""),
                (semconv.WORKER_HEALTH_STATE, ", by state"),
                (semconv.WORKER_HEALTH_PART, ", by part"),
            )
        },
        **dict.fromkeys(
            (semconv.GPU_PROCESS_MEMORY, semconv.GPU_PROCESS_UTILIZATION),
            (f"{processes} combinations of GPU and process", f"{processes}, and one a GPU"),
        ),
    }
    for metric, (what, most) in kept.items():
        yield f"`{metric.name}`", what, most


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines]


if __name__ == "__main__":
    OUTPUT.write_text(built())
