"""What somebody should hear of. An oddity of a host or a GPU alerts where it costs requests their time."""

from __future__ import annotations

from dashboards.rules import JOB, Alert, Groups, Severity, recording
from dashboards.rules.recording import rate
from tailspan.export import semconv

_ON_HOST = "on (job, instance)"
_ANOTHER = ', culprit="process"'
#: What nobody asked to be sent is not missed.
_WANTED = 'reason!="no_endpoint"'
_CRITICAL = 'state="critical"'
_HELD_BY_HEAT = 'reason=~"thermal|sw_thermal_slowdown|hw_thermal_slowdown|hw_power_brake"'


def _lost_to(cause: str, more: str = "") -> str:
    """Share of the host's request time that a cause has taken."""
    return f'sum by (job, instance) ({recording.LOST_TIME.record}{{cause="{cause}"{more}}})'


REQUESTS = (
    Alert(
        "TailspanRequestsSlow",
        f"{recording.SLOW_BY_CAUSE.record} > 0.05\n  and {_ON_HOST} {recording.REQUESTS.record} > 0.1",
        "10m",
        Severity.WARNING,
        "{{ $value | humanizePercentage }} of the requests on {{ $labels.instance }} are slow, and the cause is "
        "{{ $labels.cause }}",
        "More than one request in twenty takes far longer than its like, for one and the same reason.",
        "requests",
    ),
    Alert(
        "TailspanWorkerCritical",
        f"{semconv.WORKER_HEALTH_STATE.name}{{{_CRITICAL}}} == 1",
        "5m",
        Severity.CRITICAL,
        "{{ $labels.service }} on {{ $labels.instance }} is critical",
        "It waits for CPUs, its GPU has no memory left, or too many requests are slow: it should get less to do.",
        "fleet",
    ),
    Alert(
        "TailspanTimeLostToNeighbours",
        f"{_lost_to('run_queue', _ANOTHER)} > 0.05",
        "10m",
        Severity.WARNING,
        "Other processes on {{ $labels.instance }} cost its requests {{ $value | humanizePercentage }} of their "
        "time",
        "Threads that serve requests are ready to run, and wait while another process has their CPU.",
        "host",
    ),
    Alert(
        "TailspanTimeLostToQuota",
        f"{_lost_to('throttled')} > 0.05",
        "10m",
        Severity.WARNING,
        "Their CPU quota costs requests on {{ $labels.instance }} {{ $value | humanizePercentage }} of their time",
        "The cgroup of the workers is out of quota while requests wait: its CPU limit is too low for the load.",
        "host",
    ),
    Alert(
        "TailspanRunQueuesLong",
        f'{recording.THREADS.record}{{state="run_queue"}} > 0.25',
        "15m",
        Severity.WARNING,
        "Worker threads on {{ $labels.instance }} wait for a CPU for {{ $value | humanizePercentage }} of the "
        "time that they could run",
        "There is more work for the workers' CPUs than they can do, whoever it belongs to.",
        "host",
    ),
    Alert(
        "TailspanProcessKilled",
        f'sum by (job, instance) (increase({semconv.INCIDENTS.name}{{kind="oom_kill"}}[10m])) > 0',
        "",
        Severity.WARNING,
        "The kernel has killed a process on {{ $labels.instance }} for want of memory",
        "The out-of-memory killer chose a process of the host or of a cgroup; it may have been a worker.",
        "host",
    ),
)

GPU = (
    Alert(
        "TailspanGpuClocksHeldDown",
        f"{recording.GPU_CLOCKS.record}{{{_HELD_BY_HEAT}}} > 0.1\n"
        f"  or ({recording.GPU_CLOCKS.record} > 0.1 and {_ON_HOST} {_lost_to('gpu_clocks')} > 0.01)",
        "10m",
        Severity.WARNING,
        "{{ $labels.reason }} holds down the clocks of {{ $labels.hw_id }} for {{ $value | humanizePercentage }} "
        "of the time",
        "Too hot, short of power, or capped while requests wait for it: the GPU does less than it could.",
        "gpu",
    ),
    Alert(
        "TailspanGpuError",
        f"sum by (job, instance, hw_id) (increase({semconv.GPU_XIDS.name}[10m])) > 0",
        "",
        Severity.WARNING,
        "The driver reports an error (XID) of {{ $labels.hw_id }} on {{ $labels.instance }}",
        "Some XIDs are the application's own, others mean that the card must go.",
        "gpu",
    ),
    Alert(
        "TailspanGpuLost",
        f'{semconv.HW_STATUS.name}{{hw_state="failed"}} == 1',
        "1m",
        Severity.CRITICAL,
        "{{ $labels.hw_id }} on {{ $labels.instance }} cannot be reached",
        "The GPU has fallen off the bus: what used it has failed, and only a reset or a reboot brings it back.",
        "gpu",
    ),
    Alert(
        "TailspanGpuMemoryFailing",
        f'{semconv.HW_STATUS.name}{{hw_state=~"degraded|predicted_failure"}} == 1',
        "5m",
        Severity.WARNING,
        "Memory of {{ $labels.hw_id }} on {{ $labels.instance }} fails: {{ $labels.hw_state }}",
        "Rows of its memory had errors. Degraded: a reset replaces them. Predicted failure: no spare is left.",
        "gpu",
    ),
    Alert(
        "TailspanGpuMemoryFull",
        f"{semconv.HW_GPU_MEMORY_UTILIZATION.name} > 0.95\n  and {_ON_HOST} {_lost_to('gpu_full')} > 0",
        "5m",
        Severity.WARNING,
        "{{ $value | humanizePercentage }} of the memory of {{ $labels.hw_id }} is used, and requests wait",
        "Allocations take long or fail, since there is hardly any memory left on the GPU.",
        "gpu",
    ),
    Alert(
        "TailspanGpuSilent",
        f"{semconv.GPU_READING_AGE.name} > 60",
        "5m",
        Severity.WARNING,
        "NVML has said nothing of {{ $labels.hw_id }} on {{ $labels.instance }} for "
        "{{ $value | humanizeDuration }}",
        "The driver does not answer. Verdicts say so where they lack its facts; applications may hang as well.",
        "gpu",
    ),
)

HOST = (
    Alert(
        "TailspanHostCritical",
        f"{semconv.HOST_HEALTH_STATE.name}{{{_CRITICAL}}} == 1\n"
        f"  unless {_ON_HOST} {semconv.WORKER_HEALTH_STATE.name}{{{_CRITICAL}}} == 1",
        "5m",
        Severity.CRITICAL,
        "The host {{ $labels.instance }} is critical",
        "One of its GPUs is full or lost, or what is followed there lacks CPU, though no worker is critical.",
        "fleet",
    ),
)

EVIDENCE = (
    Alert(
        "TailspanAgentDown",
        f'up{{job="{JOB}"}} == 0',
        "5m",
        Severity.WARNING,
        "The agent on {{ $labels.instance }} cannot be scraped",
        "Nothing is known of the requests on that host meanwhile. Workers are not harmed by it.",
        "fleet",
    ),
    Alert(
        "TailspanAgentsMissing",
        f'absent(up{{job="{JOB}"}})',
        "10m",
        Severity.WARNING,
        "Prometheus knows of no agent at all",
        "The scrape job is gone, has another name, or its service discovery finds nothing.",
        "fleet",
        of_host=False,
    ),
    Alert(
        "TailspanProbesMissing",
        f'sum by (job, instance, probe) ({semconv.PROBE_ATTACHED.name}{{probe!="syscalls"}}) == 0',
        "15m",
        Severity.WARNING,
        "The probe {{ $labels.probe }} is not attached on {{ $labels.instance }}",
        "What that probe shows is unknowable on that host; verdicts say so in their notes.",
        "agent",
    ),
    Alert(
        "TailspanEvidenceLost",
        f"{recording.LOST_RECORDS.record} > 0.01",
        "10m",
        Severity.WARNING,
        "{{ $value | humanizePercentage }} of the records on {{ $labels.instance }} are lost: {{ $labels.class }}",
        "The agent does not keep up. Verdicts whose time is touched say so, and may be inconclusive.",
        "agent",
    ),
    Alert(
        "TailspanVerdictsLate",
        f"{recording.VERDICT_LATENCY.record} > 2",
        "10m",
        Severity.WARNING,
        "Verdicts on {{ $labels.instance }} come {{ $value | humanizeDuration }} after their request",
        "The agent is slow, or short of CPU itself. What it finds is right, and late.",
        "agent",
    ),
    Alert(
        "TailspanVerdictsInconclusive",
        f'{recording.SLOW_BY_OUTCOME.record}{{outcome="inconclusive"}} > 0.25',
        "30m",
        Severity.WARNING,
        "{{ $value | humanizePercentage }} of the verdicts on {{ $labels.instance }} name no cause",
        "Evidence is missing, or many small causes come together.",
        "agent",
    ),
    Alert(
        "TailspanRequestsForgotten",
        f"{rate(semconv.FORGOTTEN_REQUESTS)} > 0",
        "10m",
        Severity.INFO,
        "Slow requests on {{ $labels.instance }} come too fast to be kept: {{ $value | humanize }} a second are "
        "forgotten",
        "So many are slow at once that the evidence of some was dropped; those that are kept are examples enough.",
        "agent",
    ),
    Alert(
        "TailspanRequestsNotJoined",
        f'{recording.NOT_JOINED.record}{{by="none"}} > 0.1',
        "15m",
        Severity.WARNING,
        "Of {{ $value | humanizePercentage }} of the requests on {{ $labels.instance }} the thread is not known",
        "Without the thread that served it, a request's time is unknown and its verdict inconclusive.",
        "agent",
    ),
    Alert(
        "TailspanTracesBroken",
        f"{recording.BROKEN_SPANS.record} > 0.01",
        "15m",
        Severity.WARNING,
        "{{ $value | humanizePercentage }} of the spans that workers on {{ $labels.instance }} send do not fit "
        "into their trace: {{ $labels.reason }}",
        "The workers' instrumentation is at fault. Such requests may be explained in part, or not at all.",
        "agent",
    ),
    Alert(
        "TailspanMessagesDropped",
        f"{rate(semconv.DROPPED_MESSAGES, 'reason')} > 0\n  or {rate(semconv.OTLP_REFUSED, 'reason')} > 0",
        "10m",
        Severity.WARNING,
        "Messages of workers on {{ $labels.instance }} are dropped, {{ $value | humanize }} a second: "
        "{{ $labels.reason }}",
        "The requests in them are neither counted nor explained.",
        "agent",
    ),
    Alert(
        "TailspanLabelsOverflow",
        f"sum by (job, instance, metric) (increase({semconv.LABEL_OVERFLOWS.name}[1h])) > 0",
        "",
        Severity.INFO,
        "{{ $labels.metric }} on {{ $labels.instance }} has more label sets than are kept",
        "What comes beyond is counted under the name other. Request names that hold ids are the usual reason.",
        "agent",
    ),
    Alert(
        "TailspanAgentCostly",
        f"{recording.AGENT_CPU.record} > 0.35",
        "15m",
        Severity.WARNING,
        "The agent on {{ $labels.instance }} takes {{ $value | humanizePercentage }} of a CPU",
        "Its unit allows it half a CPU. At that limit it falls behind, and records are lost.",
        "agent",
    ),
    Alert(
        "TailspanShedding",
        f"{semconv.SHED_LEVEL.name} > 0",
        "15m",
        Severity.WARNING,
        "The agent on {{ $labels.instance }} does without {{ $value }} of what it does, to stay in its budget",
        "Verdicts say what they lack. cost.md has the order in which it sheds.",
        "agent",
    ),
)

DELIVERY = (
    Alert(
        "TailspanBackendRefuses",
        f'{semconv.OTLP_BREAKER.name}{{state="closed"}} == 0',
        "10m",
        Severity.WARNING,
        "The backend takes no {{ $labels.signal }} from {{ $labels.instance }}",
        "The circuit breaker is open. What cannot be sent waits on disk, until that is full.",
        "agent",
    ),
    Alert(
        "TailspanSpoolFilling",
        f"{recording.QUEUE.record} > 0.8",
        "5m",
        Severity.WARNING,
        "The queue of {{ $labels.signal }} on {{ $labels.instance }} is {{ $value | humanizePercentage }} full",
        "When it is full, the oldest is dropped.",
        "agent",
    ),
    Alert(
        "TailspanTelemetryDropped",
        f"{rate(semconv.OTLP_DROPPED, 'signal, origin, reason', _WANTED)} > 0",
        "10m",
        Severity.WARNING,
        "{{ $labels.signal }} ({{ $labels.origin }}) from {{ $labels.instance }} are dropped, "
        "{{ $value | humanize }} a second: {{ $labels.reason }}",
        "They never reach the backend.",
        "agent",
    ),
    Alert(
        "TailspanVerdictsDropped",
        f"{rate(semconv.EXPORT_DROPPED, 'exporter, reason')} > 0",
        "10m",
        Severity.WARNING,
        "The exporter {{ $labels.exporter }} on {{ $labels.instance }} drops verdicts: {{ $labels.reason }}",
        "They are neither stored nor sent. enospc is a full disk.",
        "agent",
    ),
)

GROUPS: Groups = {
    "tailspan-requests": REQUESTS,
    "tailspan-gpu": GPU,
    "tailspan-host": HOST,
    "tailspan-evidence": EVIDENCE,
    "tailspan-delivery": DELIVERY,
}
