"""What alerts ask, and what is worth keeping for longer than the raw series: per host, over five minutes."""

from __future__ import annotations

from dashboards.rules import Groups, Recording
from tailspan.export import semconv
from tailspan.export.semconv import Metric

_HOST = "job, instance"
#: Idleness holds clocks down too, and is no trouble.
_CAPPED = 'reason!="low_utilization"'


def rate(metric: Metric, by: str = "", where: str = "", part: str = "") -> str:
    """Per host, and by the labels ``by``."""
    selector = f"{{{where}}}" if where else ""
    return f"sum by ({_HOST}{', ' + by if by else ''}) (rate({metric.name}{part}{selector}[5m]))"


def share(some: str, of: str) -> str:
    """Of the host's total; nothing where there is none."""
    return f"{some}\n  / on ({_HOST}) group_left ()\n({of} > 0)"


REQUESTS = Recording("instance:tailspan_requests:rate5m", rate(semconv.REQUEST_DURATION, part="_count"))
SLOW_BY_CAUSE = Recording(
    "instance_cause:tailspan_slow_requests:ratio_rate5m",
    share(rate(semconv.SLOW_REQUESTS, "cause"), rate(semconv.REQUEST_DURATION, part="_count")),
)
SLOW_BY_OUTCOME = Recording(
    "instance_outcome:tailspan_slow_requests:ratio_rate5m",
    share(rate(semconv.SLOW_REQUESTS, "outcome"), rate(semconv.SLOW_REQUESTS)),
)
LOST_TIME = Recording(
    "instance_cause_culprit:tailspan_lost_time:ratio_rate5m",
    share(rate(semconv.LOST_TIME, "cause, culprit"), rate(semconv.REQUEST_DURATION, part="_sum")),
)
THREADS = Recording(
    "instance_state:tailspan_wanted_cpu:ratio_rate5m",
    share(
        rate(semconv.THREAD_TIME, "state", 'state=~"on_cpu|run_queue|throttled"'),
        rate(semconv.THREAD_TIME, "", 'state=~"on_cpu|run_queue|throttled"'),
    ),
)
NOT_JOINED = Recording(
    "instance_by:tailspan_requests_joined:ratio_rate5m",
    share(rate(semconv.REQUESTS_JOINED, "by"), rate(semconv.REQUESTS_JOINED)),
)
GPU_CLOCKS = Recording(
    "instance_hw_id_reason:tailspan_gpu_clock_events:ratio_rate5m",
    rate(semconv.GPU_CLOCK_EVENTS, "hw_id, reason", _CAPPED),
)
LOST_RECORDS = Recording(
    "instance_class:tailspan_lost_records:ratio_rate5m",
    share(rate(semconv.LOST_RECORDS, "class"), f"({rate(semconv.RECORDS)} + {rate(semconv.LOST_RECORDS)})"),
)
VERDICT_LATENCY = Recording(
    "instance:tailspan_verdict_latency_seconds:p99_rate5m",
    f"histogram_quantile(0.99, {rate(semconv.VERDICT_LATENCY, 'le', part='_bucket')})",
)
BROKEN_SPANS = Recording(
    "instance_reason:tailspan_otlp_broken_spans:ratio_rate5m",
    share(rate(semconv.OTLP_BROKEN_SPANS, "reason"), rate(semconv.OTLP_RECEIVED, "", 'signal="traces"')),
)
QUEUE = Recording(
    "instance_signal:tailspan_otlp_queue:ratio",
    f"{semconv.OTLP_QUEUED.name} / {semconv.OTLP_QUEUE_LIMIT.name}",
)
AGENT_CPU = Recording("instance:tailspan_agent_cpu:rate5m", rate(semconv.AGENT_CPU))

GROUPS: Groups = {
    "tailspan-requests": (REQUESTS, SLOW_BY_CAUSE, SLOW_BY_OUTCOME, LOST_TIME, THREADS, NOT_JOINED),
    "tailspan-gpu": (GPU_CLOCKS,),
    "tailspan-agent": (LOST_RECORDS, VERDICT_LATENCY, BROKEN_SPANS, QUEUE, AGENT_CPU),
}
