"""Writes telemetry.md beside this file from the names in tailspan.export.semconv: ``python docs/telemetry.py``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tailspan.export import prometheus, semconv

OUTPUT = Path(__file__).with_name("telemetry.md")

HEAD = """\
<!-- Written by docs/telemetry.py from agent/tailspan/export/semconv.py. Change those. -->

# Telemetry

Every span, attribute and metric that leaves the agent. Times are seconds; units are UCUM codes.
"""

SPANS = f"""\
## Spans

Children of the worker's own request span, in the request's own trace. Instrumentation scope `{semconv.SCOPE}`,
kind INTERNAL. A stretch of the critical path that is too short for a span is counted under
`tailspan.below_floor.*` of the verdict span. Where the worker did not sample its request span, one is synthesised
with the same ids.
"""

ATTRIBUTES = """\
## Attributes

On: `resource`, the worker's resource; `request`, a synthesised request span; `verdict`, the verdict span; `step`,
every other span. An attribute whose value is not known is absent.
"""

_BUCKETS = ", ".join(f"{bound:g}" for bound in semconv.DURATION_BUCKETS)
_LIFETIME_BUCKETS = ", ".join(f"{bound:g}" for bound in semconv.LIFETIME_BUCKETS)
_OPEN_LABELS = ", ".join(f"`{label}`" for label in sorted(semconv.OPEN_LABELS))
METRICS = f"""\
## Metrics

Prometheus text or OpenMetrics on `/metrics`. A histogram has `_bucket`, `_count` and `_sum`; its buckets end at
{_BUCKETS} s;
those of `{semconv.TCP_CONNECTION_DURATION.name}` at {_LIFETIME_BUCKETS} s.
Labels with values that others choose ({_OPEN_LABELS}) keep {prometheus.MAX_LABEL_SETS}
combinations a metric, of GPU and `process` together; what comes beyond is counted under `{semconv.OTHER}`.
Exemplars (OpenMetrics only) carry `trace_id`.

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


def built() -> str:
    """The document as text."""
    spans = [semconv.VERDICT_SPAN, *semconv.STEP_SPANS.values()]
    return "\n".join(
        [
            HEAD,
            SPANS,
            *table(("span", "meaning"), ((f"`{span.name}`", span.meaning) for span in spans)),
            "",
            ATTRIBUTES,
            *table(
                ("attribute", "type", "unit", "on", "meaning"),
                (
                    (f"`{each.name}`", each.type, each.unit, ", ".join(each.on), each.meaning)
                    for each in semconv.ATTRIBUTES
                ),
            ),
            "",
            METRICS,
            *table(
                ("metric", "kind", "unit", "labels", "meaning"),
                (
                    (f"`{each.name}`", each.kind, each.unit, ", ".join(each.labels), each.meaning)
                    for each in semconv.METRICS
                ),
            ),
            "",
        ]
    )


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines]


if __name__ == "__main__":
    OUTPUT.write_text(built())
