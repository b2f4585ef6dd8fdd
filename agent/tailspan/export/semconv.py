"""Every name that leaves the agent: spans, attributes, metrics, units. Data, so that docs can be generated.

OpenTelemetry's own name where one exists and means the same; the ``tailspan.`` prefix otherwise. Times are
seconds, everywhere: the base unit of both ecosystems. Rounded to nanoseconds, a ledger in seconds still sums
to the request's wall time exactly, since a double keeps 15 digits. Units are UCUM codes.

A metric has its OpenTelemetry name here; what Prometheus calls it follows from that, its kind and its unit, by
OpenTelemetry's own rules. So it has one name in a backend, whichever way it got there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from tailspan.attribute.causes import CAUSES, Cause

SCOPE = "tailspan"  #: InstrumentationScope of every span and metric; its version is the agent's

#: Name, unit and meaning stay; a change of them is announced in the changelog.
STABLE = "stable"
#: New, or named by a convention that is itself in development: may change.
DEVELOPMENT = "development"


@dataclass(frozen=True, slots=True)
class SpanName:
    name: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Attribute:
    name: str
    type: str  #: string, int, double, boolean or string[]
    unit: str  #: "" where there is none
    on: tuple[str, ...]  #: resource, request, verdict, step, event
    meaning: str
    source: str  #: who knows it
    stability: str = STABLE


#: Upper bounds of duration histograms, in seconds: 1-2-5 from 100 µs to 10 s.
DURATION_BUCKETS = (*(digit * 10.0**power for power in range(-4, 1) for digit in (1, 2, 5)), 10.0)
#: Of connections' lifetimes: what is kept open lives for hours.
LIFETIME_BUCKETS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0)


#: Unit -> what its Prometheus name ends in. Units in braces only annotate, and leave no trace in the name.
_UNIT_SUFFIXES = {
    "s": "_seconds",
    "By": "_bytes",
    "Hz": "_hertz",
    "W": "_watts",
    "J": "_joules",
    "Cel": "_celsius",
}


@dataclass(frozen=True, slots=True)
class Metric:
    otel: str  #: as OpenTelemetry has it
    instrument: str  #: counter, updowncounter, gauge or histogram
    unit: str
    attributes: tuple[str, ...]  #: as OpenTelemetry has them
    meaning: str
    source: str  #: who knows it
    stability: str = STABLE
    buckets: tuple[float, ...] = DURATION_BUCKETS  #: of a histogram
    limit: int = 256  #: combinations of label values that are kept apart; what comes beyond is kept as OTHER
    name: str = field(init=False, compare=False)  #: as scraped
    kind: str = field(init=False, compare=False)  #: Prometheus' type
    labels: tuple[str, ...] = field(init=False, compare=False)  #: the attributes, as scraped

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _prometheus_name(self.otel, self.instrument, self.unit))
        object.__setattr__(self, "kind", "gauge" if self.instrument == "updowncounter" else self.instrument)
        object.__setattr__(self, "labels", tuple(each.replace(".", "_") for each in self.attributes))


def _prometheus_name(otel: str, instrument: str, unit: str) -> str:
    """opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics: a share is a gauge of unit 1."""
    share = "_ratio" if instrument == "gauge" and unit == "1" else ""
    total = "_total" if instrument == "counter" else ""
    return otel.replace(".", "_") + _UNIT_SUFFIXES.get(unit, share) + total


def cause_name(cause: Cause | None) -> str:
    """The cause in span names, attribute values and labels: ``run_queue``; ``none`` where there is none."""
    return cause.name.lower() if cause is not None else "none"


def _by_cause(namespace: str, meaning: str) -> dict[Cause, Attribute]:
    return {
        cause: Attribute(
            f"{namespace}.{cause_name(cause)}", "double", "s", ("verdict",), f"{meaning}: {info.words}", "verdict"
        )
        for cause, info in CAUSES.items()
    }


# --- spans --------------------------------------------------------------------------------------------------

VERDICT_SPAN = SpanName("tailspan.verdict", "the whole of a slow request: its ledger, cause and culprit")
#: A stretch that is too short for a span is an event of that name on the verdict span.
STEP_SPANS: dict[Cause, SpanName] = {
    cause: SpanName(f"tailspan.{cause_name(cause)}", f"a stretch of the request's critical path: {info.words}")
    for cause, info in CAUSES.items()
}

# --- attributes ---------------------------------------------------------------------------------------------

SERVICE_NAME = Attribute("service.name", "string", "", ("resource",), "the worker's service", "worker")
PROCESS_PID = Attribute("process.pid", "int", "", ("resource",), "the worker's process", "kernel", DEVELOPMENT)
HOST_NAME = Attribute(
    "host.name", "string", "", ("resource",), "the host that the agent runs on", "agent", DEVELOPMENT
)

#: What a worker's cgroup is; where the worker says one of them itself, that is it.
IDENTITY: dict[str, Attribute] = {
    name: Attribute(name, kind, "", ("resource",), meaning, "runtime", DEVELOPMENT)
    for name, kind, meaning in (
        ("container.id", "string", "the worker's container, as its runtime has it"),
        ("container.name", "string", "that container's name"),
        ("container.image.name", "string", "its image, without the tag"),
        ("container.image.tags", "string[]", "that image's tag"),
        ("k8s.container.name", "string", "the worker's container, as its pod has it"),
        ("k8s.namespace.name", "string", "its pod's namespace"),
        ("k8s.node.name", "string", "its node, where the agent is told it (K8S_NODE_NAME)"),
        ("k8s.pod.name", "string", "its pod"),
        ("k8s.pod.uid", "string", "its pod's uid"),
        ("tailspan.systemd.unit", "string", "its systemd unit"),
    )
}

ERROR_TYPE = Attribute(
    "error.type", "string", "", ("request",), "the request's status, where it is not ok", "worker"
)
SYNTHESIZED = Attribute(
    "tailspan.synthesized",
    "boolean",
    "",
    ("request",),
    "the worker did not sample its own span: this stands for it",
    "agent",
)

OUTCOME = Attribute(
    "tailspan.outcome",
    "string",
    "",
    ("verdict",),
    "what the verdict came to: named, own-work, normal, inconclusive",
    "verdict",
)
CAUSE = Attribute(
    "tailspan.cause", "string", "", ("verdict", "step", "event"), "what the time was spent on", "verdict"
)
SENTENCE = Attribute(
    "tailspan.sentence", "string", "", ("verdict",), "the verdict in one sentence, with numbers", "verdict"
)
CONFIDENCE = Attribute("tailspan.confidence", "double", "1", ("verdict",), "0 to 1", "verdict")
EXCESS = Attribute(
    "tailspan.excess", "double", "s", ("verdict",), "wall time above the like requests' median", "verdict"
)
LEDGER = _by_cause("tailspan.ledger", "part of the request's wall time")
BELOW_FLOOR = _by_cause(
    "tailspan.below_floor", "the same part's time in stretches too short for a span of their own"
)

CULPRIT_KIND = Attribute(
    "tailspan.culprit.kind", "string", "", ("verdict",), "process, own, kthread, waker, batch, ...", "verdict"
)
CULPRIT_LABEL = Attribute(
    "tailspan.culprit.label", "string", "", ("verdict",), "the culprit for people: stress-ng[9001]", "verdict"
)
CULPRIT_TIME = Attribute(
    "tailspan.culprit.time", "double", "s", ("verdict",), "the culprit's share of the cause", "verdict"
)
CULPRIT_PID = Attribute(
    "tailspan.culprit.pid", "int", "", ("verdict",), "the culprit's process, as the host numbers it", "verdict"
)
CULPRIT_TID = Attribute(
    "tailspan.culprit.tid", "int", "", ("verdict",), "the culprit's kernel thread id", "verdict"
)
CULPRIT_COMM = Attribute(
    "tailspan.culprit.comm", "string", "", ("verdict",), "the culprit's kernel command name", "verdict"
)
CULPRIT_CGROUP = Attribute(
    "tailspan.culprit.cgroup", "string", "", ("verdict",), "path below the hierarchy's root", "verdict"
)
#: What the culprit's cgroup is, by OpenTelemetry's name for the same of a resource.
CULPRIT_IDENTITY: dict[str, Attribute] = {
    name: Attribute(
        f"tailspan.culprit.{name.removeprefix('tailspan.')}",
        "string",
        "",
        ("verdict",),
        f"the culprit's {what}",
        "runtime",
        DEVELOPMENT,
    )
    for name, what in (
        ("container.id", "container, as its runtime has it"),
        ("container.name", "container's name"),
        ("container.image.name", "container's image, without the tag"),
        ("k8s.container.name", "container, as its pod has it"),
        ("k8s.namespace.name", "pod's namespace"),
        ("k8s.pod.name", "pod"),
        ("tailspan.systemd.unit", "systemd unit"),
    )
}
CULPRIT_OWNER = Attribute(
    "tailspan.culprit.owner",
    "string",
    "",
    ("verdict",),
    "the batch or the request (span id) waited for",
    "verdict",
)

COVERAGE = Attribute(
    "tailspan.coverage", "double", "1", ("verdict",), "share of the wall time that is not unknown", "verdict"
)
LOST = Attribute(
    "tailspan.lost", "int", "{record}", ("verdict",), "records and messages lost in the request's window", "agent"
)
CLOCK_ERROR = Attribute(
    "tailspan.clock.error", "double", "s", ("verdict",), "bound on worker clock against kernel clock", "agent"
)
HW_ID = Attribute(
    "hw.id",
    "string",
    "",
    ("verdict", "request"),
    "uuid of the GPU, or MIG instance, that the request ran on",
    "worker",
    DEVELOPMENT,
)
GPU_PROVIDER = Attribute(
    "tailspan.gpu.provider",
    "string",
    "",
    ("verdict", "request"),
    "what ran the request, in its runtime's words: CUDAExecutionProvider",
    "worker",
    DEVELOPMENT,
)
GPU_SAMPLE_AGE = Attribute(
    "tailspan.gpu.sample_age",
    "double",
    "s",
    ("verdict",),
    "absent where no GPU fact was used",
    "NVML",
    DEVELOPMENT,
)
NOTES = Attribute(
    "tailspan.notes", "string[]", "", ("verdict",), "what the evidence lacked: probes off, rows evicted", "verdict"
)
SHED = Attribute(
    "tailspan.shed",
    "string[]",
    "",
    ("verdict",),
    "what the agent did without meanwhile, because it was above its budget: "
    "syscalls, gpu_calls, slices, short_waits, verdicts",
    "agent",
    DEVELOPMENT,
)
PROBES_OFF = Attribute(
    "tailspan.probes_off",
    "double",
    "s",
    ("verdict",),
    "part of the wall time in which all probes were off, to measure what they cost",
    "agent",
    DEVELOPMENT,
)
RULED_OUT = Attribute(
    "tailspan.ruled_out", "string[]", "", ("verdict",), "causes looked for and not found", "verdict"
)
CHAIN = Attribute(
    "tailspan.chain",
    "string[]",
    "",
    ("verdict",),
    "each thread and why it did not go on; it waited for the next",
    "kernel probes",
)
FACTS = Attribute(
    "tailspan.facts",
    "string[]",
    "",
    ("verdict",),
    "its connection, page faults, migrations, signals",
    "kernel probes",
)
ALTERNATIVES = Attribute(
    "tailspan.alternatives", "string[]", "", ("verdict",), "causes considered, and why not", "verdict"
)

LIKE_COUNT = Attribute(
    "tailspan.like.count", "int", "{request}", ("verdict",), "like requests compared with", "verdict"
)
LIKE_P50 = Attribute(
    "tailspan.like.p50", "double", "s", ("verdict",), "median duration of like requests", "verdict"
)
LIKE_THRESHOLD = Attribute(
    "tailspan.like.threshold", "double", "s", ("verdict",), "a request above it is slow", "verdict"
)

REQUEST_ID = Attribute(
    "tailspan.request.id", "string", "", ("verdict", "request"), "the worker's own id for it", "worker"
)
REQUEST_NAME = Attribute("tailspan.request.name", "string", "", ("verdict",), "the route", "worker")
MODEL_NAME = Attribute("tailspan.model.name", "string", "", ("verdict", "request"), "the model served", "worker")
MODEL_VERSION = Attribute(
    "tailspan.model.version", "string", "", ("verdict", "request"), "the model's version", "worker"
)
BATCH_ID = Attribute(
    "tailspan.batch.id", "int", "", ("verdict", "request"), "the batch that carried the request", "worker"
)
BATCH_SIZE = Attribute(
    "tailspan.batch.size", "int", "{request}", ("verdict", "request"), "requests in that batch", "worker"
)
BATCH_CAPACITY = Attribute(
    "tailspan.batch.capacity", "int", "{request}", ("verdict", "request"), "the most it could hold", "worker"
)

NOTE = Attribute(
    "tailspan.note", "string", "", ("step", "event"), "culprit, waker or batch, in words", "kernel probes"
)
THREAD_TID = Attribute(
    "tailspan.thread.tid",
    "int",
    "",
    ("step", "request", "event"),
    "kernel thread id on the host",
    "scheduler switches",
)
THREAD_JOIN = Attribute(
    "tailspan.thread.join",
    "string",
    "",
    ("verdict",),
    "how the thread that served the request is known: said, socket, process, none",
    "agent",
    DEVELOPMENT,
)
BROKEN_SPANS = Attribute(
    "tailspan.trace.broken",
    "int",
    "{span}",
    ("verdict",),
    "spans of the request that do not fit into its trace",
    "workers' OTLP",
    DEVELOPMENT,
)
THREAD_COMM = Attribute(
    "tailspan.thread.comm", "string", "", ("step",), "kernel command name of that thread", "scheduler switches"
)
WORKER_SPAN = Attribute(
    "tailspan.worker.span", "string", "", ("step",), "the worker's innermost span in that stretch", "worker"
)

DURATION = Attribute(
    "tailspan.duration",
    "double",
    "s",
    ("event",),
    "how long the stretch took; the event's time is its beginning",
    "verdict",
    DEVELOPMENT,
)

ATTRIBUTES: tuple[Attribute, ...] = (
    *(value for value in list(globals().values()) if isinstance(value, Attribute)),
    *LEDGER.values(),
    *BELOW_FLOOR.values(),
    *IDENTITY.values(),
    *CULPRIT_IDENTITY.values(),
)

# --- metrics ------------------------------------------------------------------------------------------------

#: Labels whose values others choose: workers, and whoever runs on a CPU or GPU (``process``). Where a metric has
#: its limit of combinations, they are the first to become :data:`OTHER`.
OPEN_LABELS = frozenset({"name", "model", "version", "status", "process", "service"})
OTHER = "other"

_own = partial(Metric, source="agent")
_new = partial(Metric, source="agent", stability=DEVELOPMENT)
_otlp_in = partial(Metric, source="workers' OTLP", stability=DEVELOPMENT)
_tcp = partial(Metric, source="TCP probes")
_host_tcp = partial(Metric, source="/proc/net")
_cuda = partial(Metric, source="CUDA probes", stability=DEVELOPMENT)
_nvml = partial(Metric, source="NVML", stability=DEVELOPMENT)

REQUEST_DURATION = Metric(
    "tailspan.request.duration",
    "histogram",
    "s",
    ("name", "model", "version", "status", "outcome", "cause"),
    "Wall time of the worker's requests; a slow one leaves its trace and span id as an exemplar. outcome and "
    "cause: of its verdict; ordinary and none where it was not slow",
    "worker, verdicts",
    limit=92,
)
REQUEST_TIME = Metric(
    "tailspan.request.time",
    "counter",
    "s",
    ("cause", "name"),
    "What the wall time of all requests was spent on; over all causes it sums to the requests' durations. At high "
    "rates by the ledgers of some that stand for all",
    "ledgers",
    limit=33 * len(CAUSES),
)
SLOW_REQUESTS = Metric(
    "tailspan.slow_requests",
    "counter",
    "{request}",
    ("cause", "outcome"),
    "Slow requests; outcome unjudged: stored, and judged when they are explained",
    "verdicts",
)
LOST_TIME = Metric(
    "tailspan.lost_time",
    "counter",
    "s",
    ("cause", "culprit"),
    "Time that slow requests took above what is usual for their like, by the cause of their verdict and the kind "
    "of its culprit: process, own, waker, ...; none where there is none",
    "verdicts",
    DEVELOPMENT,
    limit=128,
)
THREAD_TIME = Metric(
    "tailspan.thread.time",
    "counter",
    "s",
    ("state",),
    "What followed threads did with their time: on_cpu, with the interrupts that came meanwhile; run_queue; "
    "throttled; blocked. A turn is counted when it is over",
    "scheduler switches",
    DEVELOPMENT,
)
RUN_QUEUE_WAIT = Metric(
    "tailspan.run_queue.wait",
    "histogram",
    "s",
    (),
    "How long followed threads that were ready waited for a CPU, each time; quotas not included. Moved to another "
    "CPU's queue, they begin another wait",
    "scheduler switches",
    DEVELOPMENT,
)
TAKEN_TIME = Metric(
    "tailspan.taken_cpu",
    "counter",
    "s",
    ("process",),
    "CPU time of others while a followed thread waited for that CPU, by the command name of who had it; kernel "
    "threads by their kind: kworker",
    "scheduler switches",
    DEVELOPMENT,
    limit=64,
)
VERDICT_LATENCY = _own(
    "tailspan.verdict.latency", "histogram", "s", (), "From a slow request's end to its verdict"
)
FORGOTTEN_REQUESTS = _own(
    "tailspan.forgotten_requests",
    "counter",
    "{request}",
    (),
    "Slow requests whose evidence was not kept, because too many were slow at once",
)
RECORDS = _own("tailspan.records", "counter", "{record}", ("class",), "Records that the kernel handed over")
LOST_RECORDS = _own(
    "tailspan.lost_records",
    "counter",
    "{record}",
    ("class",),
    "Records the kernel could not hand over, messages that clients dropped, rows that the window evicted",
)
DROPPED_MESSAGES = Metric(
    "tailspan.dropped_messages",
    "counter",
    "{message}",
    ("reason",),
    "Worker messages that the client dropped or the agent refused",
    "worker, agent",
)
PROBE_ATTACHED = _own(
    "tailspan.probe.attached",
    "updowncounter",
    "1",
    ("probe",),
    "1 if the probe is attached; 0: what it shows is unknowable",
)
WINDOW_ROWS = _own("tailspan.window.rows", "updowncounter", "{row}", ("table",), "Rows held in the live window")
WORKER_HEALTH_SCORE = _new(
    "tailspan.worker.health.score",
    "gauge",
    "{point}",
    ("service",),
    "How well all processes of a service are together, 0 to 100; absent where nothing is known of them",
    limit=32,
)
WORKER_HEALTH_STATE = _new(
    "tailspan.worker.health.state",
    "updowncounter",
    "1",
    ("service", "state"),
    "1 for the state that this comes to: healthy, warning, critical; unknown where it has no score",
    limit=32 * 4,
)
WORKER_HEALTH_PART = _new(
    "tailspan.worker.health.part",
    "gauge",
    "1",
    ("service", "part"),
    "What the score is made of, 0 to 1: load, gpu_memory, latency; one that is not known is absent",
    limit=32 * 3,
)
HOST_HEALTH_SCORE = _new(
    "tailspan.host.health.score",
    "gauge",
    "{point}",
    (),
    "How well the host is for the workers on it, 0 to 100: never more than that of its worst worker",
)
HOST_HEALTH_STATE = _new(
    "tailspan.host.health.state",
    "updowncounter",
    "1",
    ("state",),
    "1 for the state that this comes to: healthy, warning, critical; unknown where it has no score",
)
FOLLOWED_PROCESSES = _new(
    "tailspan.followed_processes",
    "updowncounter",
    "{process}",
    ("reason",),
    "Processes followed now, by why: socket, otlp, pid, unit, cgroup, container, executable, port, peer",
)
CONFIG_RELOADS = _new(
    "tailspan.config.reloads",
    "counter",
    "{reload}",
    ("outcome",),
    "Reloads of the configuration: applied; or failed, and the one before kept",
)
CONFIG_LAST_RELOAD = _new(
    "tailspan.config.last_reload_timestamp",
    "gauge",
    "s",
    (),
    "When the configuration was last read with success, in Unix time",
)
BUILD_INFO = _own(
    "tailspan.build_info", "updowncounter", "1", ("version",), "Always 1; the label is the agent's version"
)
AGENT_CPU = _own("tailspan.agent.cpu", "counter", "s", (), "CPU time of the agent itself")
AGENT_MEMORY = _own(
    "tailspan.agent.resident_memory", "updowncounter", "By", (), "Resident memory of the agent itself"
)
AGENT_PEAK_MEMORY = _new(
    "tailspan.agent.peak_memory", "updowncounter", "By", (), "The most that the agent's resident memory has been"
)
AGENT_THREADS = _new("tailspan.agent.threads", "updowncounter", "{thread}", (), "Threads of the agent itself")
AGENT_FILES = _new(
    "tailspan.agent.open_files", "updowncounter", "{file}", (), "File descriptors that the agent itself has open"
)
BUDGET_CPU = _new(
    "tailspan.budget.cpu", "gauge", "{cpu}", (), "What the agent may take of one CPU, budget.cpu; 0: no bound"
)
BUDGET_MEMORY = _new(
    "tailspan.budget.memory", "updowncounter", "By", (), "What the agent may hold, budget.rss_mib; 0: no bound"
)
SHED_LEVEL = _new(
    "tailspan.shed.level", "updowncounter", "{step}", (), "Steps that are shed now, because of the budget"
)
SHED_STEP = _new(
    "tailspan.shed.step",
    "updowncounter",
    "1",
    ("step",),
    "1 if it is shed: syscalls, gpu_calls, slices, short_waits, verdicts, in this order",
)
SHED_CHANGES = _new(
    "tailspan.shed.changes",
    "counter",
    "{step}",
    ("direction",),
    "Steps that were shed, or restored",
)
COST_DIFFERENCE = _new(
    "tailspan.cost.difference",
    "gauge",
    "s",
    ("quantile", "bound"),
    "What probes add to a request, as last measured by `tailspan cost --measure`: p50, p99, mean of its wall "
    "time, and cpu, the CPU time of its process; bound lower and upper: of the 95 % interval",
)
COST_MEASURED = _new(
    "tailspan.cost.measured_timestamp", "gauge", "s", (), "When that was measured, in Unix time; absent until then"
)
BPF_RUN_TIME = Metric(
    "tailspan.bpf.run",
    "counter",
    "s",
    ("program",),
    "Run time of a BPF program; only where the kernel keeps it (kernel.bpf_stats_enabled)",
    "kernel",
)
EXPORTED = _own(
    "tailspan.exported", "counter", "{verdict}", ("exporter",), "Verdicts delivered to a backend or to disk"
)
EXPORT_DROPPED = _own(
    "tailspan.export_dropped", "counter", "{verdict}", ("exporter", "reason"), "Verdicts an exporter had to drop"
)
OTLP_SENT = _new(
    "tailspan.otlp.sent",
    "counter",
    "By",
    ("signal",),
    "Bytes of OTLP that the backend has taken, before compression",
)
OTLP_ITEMS = _new(
    "tailspan.otlp.items",
    "counter",
    "{item}",
    ("signal", "origin"),
    "Spans, data points and log records that the backend has taken; origin own: the agent's, forwarded: workers'",
)
OTLP_DROPPED = _new(
    "tailspan.otlp.dropped_items",
    "counter",
    "{item}",
    ("signal", "origin", "reason"),
    "Spans, data points and log records that never reached the backend, by why",
)
OTLP_FAILURES = _new(
    "tailspan.otlp.failures",
    "counter",
    "{attempt}",
    ("signal", "reason"),
    "Attempts to send that failed; what was to be sent is tried again",
)
OTLP_QUEUED = _new(
    "tailspan.otlp.queued",
    "updowncounter",
    "By",
    ("signal",),
    "Bytes that wait for the backend, on disk and in memory",
)
OTLP_QUEUE_LIMIT = _new(
    "tailspan.otlp.queue_limit",
    "updowncounter",
    "By",
    ("signal",),
    "What may wait; beyond it the oldest is dropped",
)
OTLP_QUEUE_AGE = _new(
    "tailspan.otlp.queue_age", "gauge", "s", ("signal",), "For how long the oldest has waited; 0 if none does"
)
OTLP_BREAKER = _new(
    "tailspan.otlp.breaker",
    "updowncounter",
    "1",
    ("signal", "state"),
    "1 for the state of the circuit breaker: closed, the backend takes what it is sent; open, it is left alone "
    "for a while; half_open, it is tried",
)
OTLP_RECEIVED = _otlp_in(
    "tailspan.otlp.received_items",
    "counter",
    "{item}",
    ("signal",),
    "Spans, data points and log records that workers have sent by OTLP",
)
OTLP_REFUSED = _otlp_in(
    "tailspan.otlp.refused",
    "counter",
    "{message}",
    ("reason",),
    "OTLP messages of workers that the agent has refused, or could not join: malformed, oversized, foreign_uid, "
    "unknown_sender, backlog, busy, tls, ...",
)
OTLP_BROKEN_SPANS = _otlp_in(
    "tailspan.otlp.broken_spans",
    "counter",
    "{span}",
    ("reason",),
    "Spans of workers whose trace does not fit together: no_parent, it never came; no_root, the request's own "
    "span never came (it was not ended, or was lost); trace_changed, it has another trace id than its parent; "
    "late, its request was complete without it; duplicate; unended; backwards, it ends before it starts; "
    "too_long, future, before_boot; bad_id, bad_value; too_many and overflow, more than are kept",
)
REQUESTS_JOINED = Metric(
    "tailspan.requests_joined",
    "counter",
    "{request}",
    ("by",),
    "Requests by how the thread that served them is known: said, by the worker; socket, it read the request; "
    "process, it did by far the most in its process meanwhile; none, it is not",
    "worker, TCP probes",
    DEVELOPMENT,
)
LABEL_OVERFLOWS = _own(
    "tailspan.label_overflows",
    "counter",
    "{observation}",
    ("metric",),
    "Observations kept under 'other' because the metric already had its full number of label sets",
)

# TCP of followed processes; a connection is counted when it is over.
TCP_CONNECTIONS = _tcp(
    "tailspan.tcp.connections",
    "counter",
    "{connection}",
    ("role",),
    "Connections of followed processes that are over: accepted or connected by them; failed, never established; "
    "unseen, open before the agent was",
)
TCP_MESSAGES = _tcp(
    "tailspan.tcp.messages",
    "counter",
    "{message}",
    ("role",),
    "Messages that came on the connections that are over: requests where accepted, answers where connected; "
    "divided by the connections, how often one is used",
)
TCP_RETRANSMITS = _tcp(
    "tailspan.tcp.retransmits",
    "counter",
    "{segment}",
    ("role",),
    "Segments sent again on the connections that are over",
)
TCP_RESETS = _tcp(
    "tailspan.tcp.resets", "counter", "{connection}", ("role",), "Connections that the peer has reset"
)
TCP_ZERO_WINDOWS = _tcp(
    "tailspan.tcp.zero_windows",
    "counter",
    "{operation}",
    ("role",),
    "Operations that found the peer's receive window closed, on the connections that are over",
)
TCP_CONNECT_DURATION = _tcp(
    "tailspan.tcp.connect_duration",
    "histogram",
    "s",
    (),
    "From the SYN that a followed process sends to the connection",
)
TCP_FIRST_BYTE = _tcp(
    "tailspan.tcp.time_to_first_byte",
    "histogram",
    "s",
    (),
    "On connections that a followed process opened: from its first byte to the peer's, where it spoke first",
)
TCP_CONNECTION_DURATION = _tcp(
    "tailspan.tcp.connection_duration",
    "histogram",
    "s",
    ("role",),
    "Lifetime of connections that are over, but for the unseen; of the failed, how long it was tried",
    buckets=LIFETIME_BUCKETS,
)
TCP_ACCEPT_WAIT = _tcp(
    "tailspan.tcp.accept_wait",
    "histogram",
    "s",
    (),
    "From a connection's handshake to the first read of it, where bytes came before it was accepted; "
    "0 where it was accepted in time",
)
TCP_UNREAD_WAIT = _tcp(
    "tailspan.tcp.unread_wait",
    "histogram",
    "s",
    (),
    "From a request's first byte on an accepted connection to the read of it; includes the accept queue",
)
TCP_UPSTREAM_ANSWER = _tcp(
    "tailspan.tcp.upstream_answer",
    "histogram",
    "s",
    (),
    "On connections that a followed process opened: from its last send to the first byte of the answer; "
    "only waits above the probe's floor (1 ms) are recorded",
)

INCIDENTS = Metric(
    "tailspan.incidents",
    "counter",
    "{incident}",
    ("kind",),
    "oom_kill: processes of the host that the out-of-memory killer chose; stop, continue, terminate: such signals "
    "to followed threads",
    "signal probes",
)

# TCP of the agent's network namespace: the kernel's totals since it was made. One that it does not keep is absent.
HOST_TCP_SENT = _host_tcp(
    "tailspan.host.tcp.sent_segments", "counter", "{segment}", (), "Segments sent, without those sent again"
)
HOST_TCP_RETRANSMITTED = _host_tcp(
    "tailspan.host.tcp.retransmitted_segments", "counter", "{segment}", (), "Segments sent again"
)
HOST_TCP_TIMEOUTS = _host_tcp(
    "tailspan.host.tcp.timeouts",
    "counter",
    "{timeout}",
    (),
    "Retransmission timeouts: nothing came back for so long that the sender started over",
)
HOST_TCP_SYN_RETRANSMITS = _host_tcp(
    "tailspan.host.tcp.syn_retransmits",
    "counter",
    "{segment}",
    (),
    "SYNs and SYN-ACKs sent again: the peer was slow to answer, or its queue was full",
)
HOST_TCP_LISTEN_OVERFLOWS = _host_tcp(
    "tailspan.host.tcp.listen_overflows",
    "counter",
    "{segment}",
    (),
    "SYNs and final ACKs dropped because the accept queue was full; each costs the peer 1 s or more",
)
HOST_TCP_LISTEN_DROPS = _host_tcp(
    "tailspan.host.tcp.listen_drops",
    "counter",
    "{segment}",
    (),
    "SYNs and final ACKs that listeners dropped for any reason; includes the overflows",
)
HOST_TCP_RESETS_SENT = _host_tcp(
    "tailspan.host.tcp.resets_sent", "counter", "{segment}", (), "Resets sent; also for ports nobody listens on"
)
HOST_TCP_ESTABLISHED_RESETS = _host_tcp(
    "tailspan.host.tcp.established_resets",
    "counter",
    "{connection}",
    (),
    "Established connections that ended without a close: reset by either side, or timed out",
)
HOST_TCP_WINDOWS_CLOSED = _host_tcp(
    "tailspan.host.tcp.windows_closed",
    "counter",
    "{window}",
    (),
    "Receive windows of this host that went to zero: a process here read too slowly",
)
HOST_TCP_WINDOWS_REOPENED = _host_tcp(
    "tailspan.host.tcp.windows_reopened",
    "counter",
    "{window}",
    (),
    "Receive windows of this host that were zero and are open again",
)
HOST_TCP_RECEIVE_DROPS = _host_tcp(
    "tailspan.host.tcp.receive_queue_drops",
    "counter",
    "{segment}",
    (),
    "Segments dropped because a socket's receive queue was full",
)
HOST_TCP_ACTIVE_OPENS = _host_tcp(
    "tailspan.host.tcp.active_opens", "counter", "{connection}", (), "Connections that were tried from here"
)
HOST_TCP_PASSIVE_OPENS = _host_tcp(
    "tailspan.host.tcp.passive_opens", "counter", "{connection}", (), "Connections that came in"
)
HOST_TCP_ESTABLISHED = _host_tcp(
    "tailspan.host.tcp.established_connections", "updowncounter", "{connection}", (), "Connections that are open"
)
HOST_TCP_SOCKETS = _host_tcp(
    "tailspan.host.tcp.sockets",
    "updowncounter",
    "{socket}",
    (),
    "Sockets in use, listening ones too; not those in TIME_WAIT",
)
HOST_TCP_TIME_WAIT = _host_tcp(
    "tailspan.host.tcp.time_wait_sockets", "updowncounter", "{socket}", (), "Sockets in TIME_WAIT"
)

#: Metric -> its parts, as collect.samples.NetTotals names them in the kernel's words.
HOST_TCP: dict[Metric, tuple[str, ...]] = {
    HOST_TCP_SENT: ("Tcp:OutSegs",),
    HOST_TCP_RETRANSMITTED: ("Tcp:RetransSegs",),
    HOST_TCP_TIMEOUTS: ("TcpExt:TCPTimeouts",),
    HOST_TCP_SYN_RETRANSMITS: ("TcpExt:TCPSynRetrans",),
    HOST_TCP_LISTEN_OVERFLOWS: ("TcpExt:ListenOverflows",),
    HOST_TCP_LISTEN_DROPS: ("TcpExt:ListenDrops",),
    HOST_TCP_RESETS_SENT: ("Tcp:OutRsts",),
    HOST_TCP_ESTABLISHED_RESETS: ("Tcp:EstabResets",),
    HOST_TCP_WINDOWS_CLOSED: ("TcpExt:TCPToZeroWindowAdv",),
    HOST_TCP_WINDOWS_REOPENED: ("TcpExt:TCPFromZeroWindowAdv",),
    HOST_TCP_RECEIVE_DROPS: ("TcpExt:TCPRcvQDrop",),
    HOST_TCP_ACTIVE_OPENS: ("Tcp:ActiveOpens",),
    HOST_TCP_PASSIVE_OPENS: ("Tcp:PassiveOpens",),
    HOST_TCP_ESTABLISHED: ("Tcp:CurrEstab",),
    HOST_TCP_SOCKETS: ("TCP:inuse", "TCP6:inuse"),
    HOST_TCP_TIME_WAIT: ("TCP:tw",),
}

# Calls of followed processes into the CUDA driver and its runtime.
GPU_CALLS = _cuda(
    "tailspan.gpu.calls",
    "counter",
    "{call}",
    ("kind",),
    "CUDA calls of followed processes while their probes were attached: sync, copy, alloc, free, load, launch",
)
GPU_CALL_DURATION = _cuda(
    "tailspan.gpu.call_duration",
    "histogram",
    "s",
    ("kind",),
    "CUDA calls of followed threads, from entry to return; of calls within calls the outermost. Launches are not "
    "timed",
)
GPU_PROBES = _cuda(
    "tailspan.gpu.probes_attached",
    "updowncounter",
    "{function}",
    (),
    "CUDA functions of followed processes that have a probe now",
)
GPU_PROBE_OFF = _cuda(
    "tailspan.gpu.probe_off",
    "updowncounter",
    "{process}",
    ("kind",),
    "Processes whose calls of a kind come too often to be recorded (gpu.calls_per_s): theirs are unknowable",
)

# What NVML says of each GPU and MIG instance. What it does not say is absent; so is what a GPU said that is lost.
#: Of OpenTelemetry's metrics of a device. hw.parent: the GPU of a MIG instance, else empty.
DEVICE_ATTRIBUTES = ("hw.id", "hw.name", "hw.parent", "hw.type")

HW_GPU_UTILIZATION = _nvml(
    "hw.gpu.utilization",
    "gauge",
    "1",
    (*DEVICE_ATTRIBUTES, "hw.gpu.task"),
    "Share of time in which the GPU was busy. general: in which any kernel ran, however small a part of the GPU "
    "it filled; encoder, decoder: of video",
)
HW_GPU_MEMORY_USAGE = _nvml(
    "hw.gpu.memory.usage",
    "updowncounter",
    "By",
    DEVICE_ATTRIBUTES,
    "GPU memory used, without what the driver reserves",
)
HW_GPU_MEMORY_LIMIT = _nvml(
    "hw.gpu.memory.limit",
    "updowncounter",
    "By",
    DEVICE_ATTRIBUTES,
    "Size of the GPU memory, with what the driver reserves",
)
HW_GPU_MEMORY_UTILIZATION = _nvml(
    "hw.gpu.memory.utilization",
    "gauge",
    "1",
    DEVICE_ATTRIBUTES,
    "Share of the GPU memory that is used; not NVML's utilization.memory, which is tailspan_gpu_memory_busy_ratio",
)
HW_GPU_IO = _nvml(
    "hw.gpu.io",
    "counter",
    "By",
    (*DEVICE_ATTRIBUTES, "network.io.direction"),
    "Bytes over PCIe that the GPU has received from the host and transmitted to it",
)
HW_ENERGY = _nvml("hw.energy", "counter", "J", DEVICE_ATTRIBUTES, "Energy that the GPU has taken")
HW_POWER = _nvml("hw.power", "gauge", "W", DEVICE_ATTRIBUTES, "Power that the GPU takes")
HW_TEMPERATURE = _nvml(
    "hw.temperature",
    "gauge",
    "Cel",
    (*DEVICE_ATTRIBUTES, "hw.sensor_location"),
    "Temperature of the GPU: of its die, of its memory",
)
HW_ERRORS = _nvml(
    "hw.errors",
    "counter",
    "{error}",
    (*DEVICE_ATTRIBUTES, "error.type"),
    "Errors of the GPU. corrected, uncorrected: of its memory (ECC); pcie_replay: packets sent again; nvlink; "
    "xid-79: reports of the driver by their number, since the agent started. One fault may be in several",
)
HW_STATUS = _nvml(
    "hw.status",
    "updowncounter",
    "1",
    (*DEVICE_ATTRIBUTES, "hw.state"),
    "1 for the state that the GPU is in. failed: it cannot be reached; predicted_failure: a row of its memory "
    "could not be remapped; degraded: rows are remapped at the next reset",
)

GPU_INFO = _nvml(
    "tailspan.gpu.info",
    "updowncounter",
    "1",
    ("hw.id", "hw.name", "hw.parent", "hw.driver_version", "index"),
    "Always 1; index is NVML's, of a MIG instance within its GPU",
)
GPU_READING_AGE = _nvml(
    "tailspan.gpu.sample_age",
    "gauge",
    "s",
    ("hw.id",),
    "Age of what NVML said last of the GPU; it grows while the driver does not answer",
)
GPU_MEMORY_RESERVED = _nvml(
    "tailspan.gpu.memory_reserved",
    "updowncounter",
    "By",
    ("hw.id",),
    "GPU memory that the driver and firmware keep",
)
GPU_MEMORY_BUSY = _nvml(
    "tailspan.gpu.memory_busy",
    "gauge",
    "1",
    ("hw.id",),
    "Share of time in which GPU memory was read or written (NVML's utilization.memory)",
)
GPU_CLOCK = _nvml("tailspan.gpu.clock", "gauge", "Hz", ("hw.id", "domain"), "Clock of the domain: sm, memory")
GPU_CLOCK_LIMIT = _nvml(
    "tailspan.gpu.clock_limit", "gauge", "Hz", ("hw.id", "domain"), "The highest that the clock can go"
)
GPU_CLOCK_EVENTS = _nvml(
    "tailspan.gpu.clock_event",
    "counter",
    "s",
    ("hw.id", "reason"),
    "Time in which clocks were held down, by NVIDIA's reason; reasons overlap, and low_utilization is idleness",
)
GPU_PERFORMANCE_STATE = _nvml(
    "tailspan.gpu.performance_state",
    "gauge",
    "{state}",
    ("hw.id",),
    "Performance state: 0 is the fastest, 15 the slowest",
)
GPU_POWER_LIMIT = _nvml(
    "tailspan.gpu.power_limit", "gauge", "W", ("hw.id",), "Power at which the driver lowers the clocks"
)
GPU_PCIE_GENERATION = _nvml(
    "tailspan.gpu.pcie_generation",
    "gauge",
    "{generation}",
    ("hw.id",),
    "PCIe generation of the link; an idle GPU may lower it",
)
GPU_PCIE_GENERATION_LIMIT = _nvml(
    "tailspan.gpu.pcie_generation_limit",
    "gauge",
    "{generation}",
    ("hw.id",),
    "The highest that GPU and host both can",
)
GPU_PCIE_WIDTH = _nvml("tailspan.gpu.pcie_width_lanes", "gauge", "{lane}", ("hw.id",), "Lanes of the PCIe link")
GPU_PCIE_WIDTH_LIMIT = _nvml(
    "tailspan.gpu.pcie_width_limit_lanes", "gauge", "{lane}", ("hw.id",), "The most that GPU and host both can"
)
GPU_ROW_REMAP_PENDING = _nvml(
    "tailspan.gpu.row_remap_pending",
    "updowncounter",
    "1",
    ("hw.id",),
    "1: rows of GPU memory are remapped at the next reset",
)
GPU_ROW_REMAP_FAILED = _nvml(
    "tailspan.gpu.row_remap_failed",
    "updowncounter",
    "1",
    ("hw.id",),
    "1: a row of GPU memory could not be remapped",
)
GPU_REMAPPED_ROWS = _nvml(
    "tailspan.gpu.remapped_rows",
    "counter",
    "{row}",
    ("hw.id", "error.type"),
    "Rows of GPU memory that were remapped, by the errors that led to it: corrected, uncorrected",
)
GPU_NVLINK_IO = _nvml(
    "tailspan.gpu.nvlink_io",
    "counter",
    "By",
    ("hw.id", "network.io.direction"),
    "Bytes over all NVLinks of the GPU",
)
GPU_SM_UTILIZATION = _nvml(
    "tailspan.gpu.sm_utilization",
    "gauge",
    "1",
    ("hw.id",),
    "Share of time in which SMs had work, averaged over the SMs; only where the GPU has GPM",
)
GPU_SM_OCCUPANCY = _nvml(
    "tailspan.gpu.sm_occupancy",
    "gauge",
    "1",
    ("hw.id",),
    "Warps on the SMs, of the most that they hold; only where the GPU has GPM",
)
GPU_TENSOR_UTILIZATION = _nvml(
    "tailspan.gpu.tensor_utilization",
    "gauge",
    "1",
    ("hw.id",),
    "Share of time in which tensor cores had work; only where the GPU has GPM",
)
GPU_DRAM_UTILIZATION = _nvml(
    "tailspan.gpu.dram_utilization",
    "gauge",
    "1",
    ("hw.id",),
    "Bandwidth of GPU memory used, of what there is; only where the GPU has GPM",
)
GPU_XIDS = _nvml(
    "tailspan.gpu.xids",
    "counter",
    "{error}",
    ("hw.id",),
    "XIDs of any number that the driver has reported since the agent started; it begins at 0, so that rate() sees "
    "the first",
)
GPU_PROCESS_MEMORY = _nvml(
    "tailspan.gpu.process_memory",
    "updowncounter",
    "By",
    ("hw.id", "process"),
    "GPU memory of processes of one command name; absent where that of one of them is not known",
    limit=64,
)
GPU_PROCESS_UTILIZATION = _nvml(
    "tailspan.gpu.process_utilization",
    "gauge",
    "1",
    ("hw.id", "process"),
    "Share of time in which a kernel of theirs ran, summed over processes of one command name; absent where that "
    "of one of them is not known",
    limit=64,
)

#: Metric -> the values of timeline.gpus.GpuReading that it holds, each with what its own labels say.
GPU_VALUES: dict[Metric, dict[str, tuple[str, ...]]] = {
    HW_GPU_UTILIZATION: {
        "utilization": ("general",),
        "encoder_utilization": ("encoder",),
        "decoder_utilization": ("decoder",),
    },
    HW_GPU_MEMORY_USAGE: {"memory_used": ()},
    HW_GPU_MEMORY_LIMIT: {"memory_total": ()},
    HW_GPU_IO: {"pcie_received": ("receive",), "pcie_transmitted": ("transmit",)},
    HW_ENERGY: {"energy": ()},
    HW_POWER: {"power": ()},
    HW_TEMPERATURE: {"temperature": ("gpu",), "memory_temperature": ("memory",)},
    HW_ERRORS: {
        "ecc_corrected": ("corrected",),
        "ecc_uncorrected": ("uncorrected",),
        "pcie_replays": ("pcie_replay",),
        "nvlink_errors": ("nvlink",),
    },
    GPU_MEMORY_RESERVED: {"memory_reserved": ()},
    GPU_MEMORY_BUSY: {"memory_utilization": ()},
    GPU_CLOCK: {"sm_clock": ("sm",), "memory_clock": ("memory",)},
    GPU_CLOCK_LIMIT: {"sm_clock_limit": ("sm",), "memory_clock_limit": ("memory",)},
    GPU_PERFORMANCE_STATE: {"performance_state": ()},
    GPU_POWER_LIMIT: {"power_limit": ()},
    GPU_PCIE_GENERATION: {"pcie_generation": ()},
    GPU_PCIE_GENERATION_LIMIT: {"pcie_generation_limit": ()},
    GPU_PCIE_WIDTH: {"pcie_width": ()},
    GPU_PCIE_WIDTH_LIMIT: {"pcie_width_limit": ()},
    GPU_ROW_REMAP_PENDING: {"remapped_rows_pending": ()},
    GPU_ROW_REMAP_FAILED: {"remapped_rows_failed": ()},
    GPU_REMAPPED_ROWS: {"remapped_rows_corrected": ("corrected",), "remapped_rows_uncorrected": ("uncorrected",)},
    GPU_NVLINK_IO: {"nvlink_received": ("receive",), "nvlink_transmitted": ("transmit",)},
    GPU_SM_UTILIZATION: {"gpm_sm_utilization": ()},
    GPU_SM_OCCUPANCY: {"gpm_sm_occupancy": ()},
    GPU_TENSOR_UTILIZATION: {"gpm_tensor_utilization": ()},
    GPU_DRAM_UTILIZATION: {"gpm_dram_utilization": ()},
}

# NVML itself.
NVML_STATE = _new(
    "tailspan.gpu.nvml.state",
    "updowncounter",
    "1",
    ("state",),
    "1 for the state that NVML is in: off, no_library, no_driver, no_permission, no_device, works",
)
NVML_CALLS = _new("tailspan.gpu.nvml.calls", "counter", "{call}", (), "Calls of the agent into NVML")
NVML_CALL_TIME = _new(
    "tailspan.gpu.nvml.call",
    "counter",
    "s",
    (),
    "Time of the agent inside NVML, waiting or not; gpu.budget bounds it",
)
NVML_FAILURES = _new(
    "tailspan.gpu.nvml.failures", "counter", "{call}", ("error",), "Calls into NVML that failed, by its error"
)
NVML_ATTEMPTS = _new(
    "tailspan.gpu.nvml.attempts",
    "counter",
    "{attempt}",
    (),
    "Attempts to connect to the driver, the first one too",
)

_NVML = (NVML_STATE, NVML_CALLS, NVML_CALL_TIME, NVML_FAILURES, NVML_ATTEMPTS)

#: What the source of timeline.gpus.GpuHost exposes.
GPU_HOST: tuple[Metric, ...] = (
    *GPU_VALUES,
    *(HW_GPU_MEMORY_UTILIZATION, HW_STATUS, GPU_INFO, GPU_READING_AGE, GPU_CLOCK_EVENTS, GPU_XIDS),
    *(GPU_PROCESS_MEMORY, GPU_PROCESS_UTILIZATION),
    *_NVML,
)

TLS_RELOADS = _new(
    "tailspan.tls.reloads",
    "counter",
    "{reload}",
    ("outcome",),
    "Times that changed TLS files were loaded; or refused, and those from before kept",
)
TLS_EXPIRES = _new(
    "tailspan.tls.certificate.expires_timestamp",
    "gauge",
    "s",
    (),
    "When the certificate of the listeners ends, in Unix time; absent without TLS",
)
#: What the source of attribute.health.HostHealth exposes.
HEALTH: tuple[Metric, ...] = (
    *(WORKER_HEALTH_SCORE, WORKER_HEALTH_STATE, WORKER_HEALTH_PART),
    *(HOST_HEALTH_SCORE, HOST_HEALTH_STATE),
)

#: Topic -> its metrics; every metric is in one.
TOPICS: dict[str, tuple[Metric, ...]] = {
    "Requests": (
        *(REQUEST_DURATION, REQUEST_TIME, SLOW_REQUESTS, LOST_TIME, VERDICT_LATENCY),
        *(FORGOTTEN_REQUESTS, REQUESTS_JOINED),
    ),
    "Health": HEALTH,
    "Threads and CPUs": (THREAD_TIME, RUN_QUEUE_WAIT, TAKEN_TIME, INCIDENTS),
    "TCP of followed processes": (
        *(TCP_CONNECTIONS, TCP_MESSAGES, TCP_RETRANSMITS, TCP_RESETS, TCP_ZERO_WINDOWS, TCP_CONNECT_DURATION),
        *(TCP_FIRST_BYTE, TCP_CONNECTION_DURATION, TCP_ACCEPT_WAIT, TCP_UNREAD_WAIT, TCP_UPSTREAM_ANSWER),
    ),
    "TCP of the host": tuple(HOST_TCP),
    "CUDA calls": (GPU_CALLS, GPU_CALL_DURATION, GPU_PROBES, GPU_PROBE_OFF),
    "GPUs": tuple(metric for metric in GPU_HOST if metric not in _NVML),
    "NVML itself": _NVML,
    "OTLP out": (
        *(OTLP_SENT, OTLP_ITEMS, OTLP_DROPPED, OTLP_FAILURES, OTLP_QUEUED, OTLP_QUEUE_LIMIT, OTLP_QUEUE_AGE),
        OTLP_BREAKER,
    ),
    "OTLP in": (OTLP_RECEIVED, OTLP_REFUSED, OTLP_BROKEN_SPANS),
    "The agent": (
        *(BUILD_INFO, AGENT_CPU, AGENT_MEMORY, AGENT_PEAK_MEMORY, AGENT_THREADS, AGENT_FILES, BPF_RUN_TIME),
        *(BUDGET_CPU, BUDGET_MEMORY, SHED_LEVEL, SHED_STEP, SHED_CHANGES, COST_DIFFERENCE, COST_MEASURED),
        *(PROBE_ATTACHED, WINDOW_ROWS, RECORDS, LOST_RECORDS),
        *(DROPPED_MESSAGES, EXPORTED, EXPORT_DROPPED, LABEL_OVERFLOWS),
        *(FOLLOWED_PROCESSES, CONFIG_RELOADS, CONFIG_LAST_RELOAD, TLS_RELOADS, TLS_EXPIRES),
    ),
}
METRICS: tuple[Metric, ...] = tuple(metric for metrics in TOPICS.values() for metric in metrics)
