"""Every name that leaves the agent: spans, attributes, metrics, units. Data, so that docs can be generated.

OpenTelemetry's own name where one exists and means the same; the ``tailspan.`` prefix otherwise. Times are
seconds, everywhere: the base unit of both ecosystems. Rounded to nanoseconds, a ledger in seconds still sums
to the request's wall time exactly, since a double keeps 15 digits. Units are UCUM codes.
"""

from __future__ import annotations

from dataclasses import dataclass

from tailspan.attribute.causes import CAUSES, Cause

SCOPE = "tailspan"  #: InstrumentationScope of every span; its version is the agent's


@dataclass(frozen=True, slots=True)
class SpanName:
    name: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Attribute:
    name: str
    type: str  #: string, int, double, boolean or string[]
    unit: str  #: "" where there is none
    on: tuple[str, ...]  #: resource, request, verdict, step
    meaning: str


#: Upper bounds of duration histograms, in seconds: 1-2-5 from 100 µs to 10 s.
DURATION_BUCKETS = (*(digit * 10.0**power for power in range(-4, 1) for digit in (1, 2, 5)), 10.0)
#: Of connections' lifetimes: what is kept open lives for hours.
LIFETIME_BUCKETS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0)


@dataclass(frozen=True, slots=True)
class Metric:
    name: str  #: as scraped
    kind: str  #: counter, gauge or histogram
    unit: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = DURATION_BUCKETS  #: of a histogram


def cause_name(cause: Cause | None) -> str:
    """The cause in span names, attribute values and labels: ``run_queue``; ``none`` where there is none."""
    return cause.name.lower() if cause is not None else "none"


def _by_cause(namespace: str, meaning: str) -> dict[Cause, Attribute]:
    return {
        cause: Attribute(
            f"{namespace}.{cause_name(cause)}", "double", "s", ("verdict",), f"{meaning}: {info.words}"
        )
        for cause, info in CAUSES.items()
    }


# --- spans --------------------------------------------------------------------------------------------------

VERDICT_SPAN = SpanName("tailspan.verdict", "the whole of a slow request: its ledger, cause and culprit")
STEP_SPANS: dict[Cause, SpanName] = {
    cause: SpanName(f"tailspan.{cause_name(cause)}", f"a stretch of the request's critical path: {info.words}")
    for cause, info in CAUSES.items()
}

# --- attributes ---------------------------------------------------------------------------------------------

SERVICE_NAME = Attribute("service.name", "string", "", ("resource",), "the worker's service")
PROCESS_PID = Attribute("process.pid", "int", "", ("resource",), "the worker's process")
HOST_NAME = Attribute("host.name", "string", "", ("resource",), "the host that the agent runs on")

ERROR_TYPE = Attribute("error.type", "string", "", ("request",), "the request's status, where it is not ok")
SYNTHESIZED = Attribute(
    "tailspan.synthesized",
    "boolean",
    "",
    ("request",),
    "the worker did not sample its own span: this stands for it",
)

OUTCOME = Attribute(
    "tailspan.outcome",
    "string",
    "",
    ("verdict",),
    "what the verdict came to: named, own-work, normal, inconclusive",
)
CAUSE = Attribute("tailspan.cause", "string", "", ("verdict", "step"), "what the time was spent on")
SENTENCE = Attribute("tailspan.sentence", "string", "", ("verdict",), "the verdict in one sentence, with numbers")
CONFIDENCE = Attribute("tailspan.confidence", "double", "1", ("verdict",), "0 to 1")
EXCESS = Attribute("tailspan.excess", "double", "s", ("verdict",), "wall time above the like requests' median")
LEDGER = _by_cause("tailspan.ledger", "part of the request's wall time")
BELOW_FLOOR = _by_cause(
    "tailspan.below_floor", "the same part's time in stretches too short for a span of their own"
)

CULPRIT_KIND = Attribute(
    "tailspan.culprit.kind", "string", "", ("verdict",), "process, own, kthread, waker, batch, ..."
)
CULPRIT_LABEL = Attribute(
    "tailspan.culprit.label", "string", "", ("verdict",), "the culprit for people: stress-ng[9001]"
)
CULPRIT_TIME = Attribute("tailspan.culprit.time", "double", "s", ("verdict",), "the culprit's share of the cause")
CULPRIT_PID = Attribute(
    "tailspan.culprit.pid", "int", "", ("verdict",), "the culprit's process, as the host numbers it"
)
CULPRIT_TID = Attribute("tailspan.culprit.tid", "int", "", ("verdict",), "the culprit's kernel thread id")
CULPRIT_COMM = Attribute("tailspan.culprit.comm", "string", "", ("verdict",), "the culprit's kernel command name")
CULPRIT_CGROUP = Attribute(
    "tailspan.culprit.cgroup", "string", "", ("verdict",), "path below the hierarchy's root"
)
CULPRIT_OWNER = Attribute(
    "tailspan.culprit.owner", "string", "", ("verdict",), "the batch or the request (span id) waited for"
)

COVERAGE = Attribute(
    "tailspan.coverage", "double", "1", ("verdict",), "share of the wall time that is not unknown"
)
LOST = Attribute(
    "tailspan.lost", "int", "{record}", ("verdict",), "records and messages lost in the request's window"
)
CLOCK_ERROR = Attribute(
    "tailspan.clock.error", "double", "s", ("verdict",), "bound on worker clock against kernel clock"
)
GPU_SAMPLE_AGE = Attribute(
    "tailspan.gpu.sample_age", "double", "s", ("verdict",), "absent where no GPU fact was used"
)
NOTES = Attribute(
    "tailspan.notes", "string[]", "", ("verdict",), "what the evidence lacked: probes off, rows evicted"
)
RULED_OUT = Attribute("tailspan.ruled_out", "string[]", "", ("verdict",), "causes looked for and not found")
CHAIN = Attribute(
    "tailspan.chain", "string[]", "", ("verdict",), "each thread and why it did not go on; it waited for the next"
)
FACTS = Attribute(
    "tailspan.facts", "string[]", "", ("verdict",), "its connection, page faults, migrations, signals"
)
ALTERNATIVES = Attribute("tailspan.alternatives", "string[]", "", ("verdict",), "causes considered, and why not")

LIKE_COUNT = Attribute("tailspan.like.count", "int", "{request}", ("verdict",), "like requests compared with")
LIKE_P50 = Attribute("tailspan.like.p50", "double", "s", ("verdict",), "median duration of like requests")
LIKE_THRESHOLD = Attribute("tailspan.like.threshold", "double", "s", ("verdict",), "a request above it is slow")

REQUEST_ID = Attribute("tailspan.request.id", "string", "", ("verdict", "request"), "the worker's own id for it")
REQUEST_NAME = Attribute("tailspan.request.name", "string", "", ("verdict",), "the route")
MODEL_NAME = Attribute("tailspan.model.name", "string", "", ("verdict", "request"), "the model served")
MODEL_VERSION = Attribute("tailspan.model.version", "string", "", ("verdict", "request"), "the model's version")
BATCH_ID = Attribute("tailspan.batch.id", "int", "", ("verdict", "request"), "the batch that carried the request")
BATCH_SIZE = Attribute("tailspan.batch.size", "int", "{request}", ("verdict", "request"), "requests in that batch")
BATCH_CAPACITY = Attribute(
    "tailspan.batch.capacity", "int", "{request}", ("verdict", "request"), "the most it could hold"
)

NOTE = Attribute("tailspan.note", "string", "", ("step",), "culprit, waker or batch, in words")
THREAD_TID = Attribute("tailspan.thread.tid", "int", "", ("step", "request"), "kernel thread id on the host")
THREAD_COMM = Attribute("tailspan.thread.comm", "string", "", ("step",), "kernel command name of that thread")
WORKER_SPAN = Attribute(
    "tailspan.worker.span", "string", "", ("step",), "the worker's innermost span in that stretch"
)

ATTRIBUTES: tuple[Attribute, ...] = (
    *(value for value in list(globals().values()) if isinstance(value, Attribute)),
    *LEDGER.values(),
    *BELOW_FLOOR.values(),
)

# --- metrics ------------------------------------------------------------------------------------------------

#: Labels whose values workers choose. Each family keeps a bounded number of their combinations; what comes
#: beyond is kept under :data:`OTHER`.
OPEN_LABELS = frozenset({"name", "model", "version", "status"})
OTHER = "other"

REQUEST_DURATION = Metric(
    "tailspan_request_duration_seconds",
    "histogram",
    "s",
    ("name", "model", "version", "status"),
    "Wall time of the worker's requests; a slow one leaves its trace id as an exemplar",
)
REQUEST_TIME = Metric(
    "tailspan_request_time_seconds_total",
    "counter",
    "s",
    ("cause", "name"),
    "What the wall time of all requests was spent on; over all causes it sums to the requests' durations",
)
SLOW_REQUESTS = Metric(
    "tailspan_slow_requests_total",
    "counter",
    "{request}",
    ("cause", "outcome"),
    "Slow requests; outcome unjudged: stored, and judged when they are explained",
)
VERDICT_LATENCY = Metric(
    "tailspan_verdict_latency_seconds", "histogram", "s", (), "From a slow request's end to its verdict"
)
FORGOTTEN_REQUESTS = Metric(
    "tailspan_forgotten_requests_total",
    "counter",
    "{request}",
    (),
    "Slow requests whose evidence was not kept, because too many were slow at once",
)
RECORDS = Metric(
    "tailspan_records_total", "counter", "{record}", ("class",), "Records that the kernel handed over"
)
LOST_RECORDS = Metric(
    "tailspan_lost_records_total",
    "counter",
    "{record}",
    ("class",),
    "Records the kernel could not hand over, messages that clients dropped, rows that the window evicted",
)
DROPPED_MESSAGES = Metric(
    "tailspan_dropped_messages_total",
    "counter",
    "{message}",
    ("reason",),
    "Worker messages that the client dropped or the agent refused",
)
PROBE_ATTACHED = Metric(
    "tailspan_probe_attached",
    "gauge",
    "1",
    ("probe",),
    "1 if the probe is attached; 0: what it shows is unknowable",
)
WINDOW_ROWS = Metric("tailspan_window_rows", "gauge", "{row}", ("table",), "Rows held in the live window")
BUILD_INFO = Metric(
    "tailspan_build_info", "gauge", "1", ("version",), "Always 1; the label is the agent's version"
)
AGENT_CPU = Metric("tailspan_agent_cpu_seconds_total", "counter", "s", (), "CPU time of the agent itself")
AGENT_MEMORY = Metric(
    "tailspan_agent_resident_memory_bytes", "gauge", "By", (), "Resident memory of the agent itself"
)
BPF_RUN_TIME = Metric(
    "tailspan_bpf_run_seconds_total",
    "counter",
    "s",
    ("program",),
    "Run time of a BPF program; only where the kernel keeps it (kernel.bpf_stats_enabled)",
)
EXPORTED = Metric(
    "tailspan_exported_total",
    "counter",
    "{verdict}",
    ("exporter",),
    "Verdicts delivered to a backend or to disk",
)
EXPORT_DROPPED = Metric(
    "tailspan_export_dropped_total",
    "counter",
    "{verdict}",
    ("exporter", "reason"),
    "Verdicts an exporter had to drop",
)
LABEL_OVERFLOWS = Metric(
    "tailspan_label_overflows_total",
    "counter",
    "{observation}",
    ("metric",),
    "Observations kept under 'other' because the metric already had its full number of label sets",
)

# TCP of followed processes; a connection is counted when it is over.
TCP_CONNECTIONS = Metric(
    "tailspan_tcp_connections_total",
    "counter",
    "{connection}",
    ("role",),
    "Connections of followed processes that are over: accepted or connected by them; failed, never established; "
    "unseen, open before the agent was",
)
TCP_MESSAGES = Metric(
    "tailspan_tcp_messages_total",
    "counter",
    "{message}",
    ("role",),
    "Messages that came on the connections that are over: requests where accepted, answers where connected; "
    "divided by the connections, how often one is used",
)
TCP_RETRANSMITS = Metric(
    "tailspan_tcp_retransmits_total",
    "counter",
    "{segment}",
    ("role",),
    "Segments sent again on the connections that are over",
)
TCP_RESETS = Metric(
    "tailspan_tcp_resets_total", "counter", "{connection}", ("role",), "Connections that the peer has reset"
)
TCP_ZERO_WINDOWS = Metric(
    "tailspan_tcp_zero_windows_total",
    "counter",
    "{operation}",
    ("role",),
    "Operations that found the peer's receive window closed, on the connections that are over",
)
TCP_CONNECT_DURATION = Metric(
    "tailspan_tcp_connect_duration_seconds",
    "histogram",
    "s",
    (),
    "From the SYN that a followed process sends to the connection",
)
TCP_FIRST_BYTE = Metric(
    "tailspan_tcp_time_to_first_byte_seconds",
    "histogram",
    "s",
    (),
    "On connections that a followed process opened: from its first byte to the peer's, where it spoke first",
)
TCP_CONNECTION_DURATION = Metric(
    "tailspan_tcp_connection_duration_seconds",
    "histogram",
    "s",
    ("role",),
    "Lifetime of connections that are over, but for the unseen; of the failed, how long it was tried",
    LIFETIME_BUCKETS,
)
TCP_ACCEPT_WAIT = Metric(
    "tailspan_tcp_accept_wait_seconds",
    "histogram",
    "s",
    (),
    "From a connection's handshake to the first read of it, where bytes came before it was accepted; "
    "0 where it was accepted in time",
)
TCP_UNREAD_WAIT = Metric(
    "tailspan_tcp_unread_wait_seconds",
    "histogram",
    "s",
    (),
    "From a request's first byte on an accepted connection to the read of it; includes the accept queue",
)
TCP_UPSTREAM_ANSWER = Metric(
    "tailspan_tcp_upstream_answer_seconds",
    "histogram",
    "s",
    (),
    "On connections that a followed process opened: from its last send to the first byte of the answer; "
    "only waits above the probe's floor (1 ms) are recorded",
)

INCIDENTS = Metric(
    "tailspan_incidents_total",
    "counter",
    "{incident}",
    ("kind",),
    "oom_kill: processes of the host that the out-of-memory killer chose; stop, continue, terminate: such signals "
    "to followed threads",
)

# TCP of the agent's network namespace: the kernel's totals since it was made. One that it does not keep is absent.
HOST_TCP_SENT = Metric(
    "tailspan_host_tcp_sent_segments_total", "counter", "{segment}", (), "Segments sent, without those sent again"
)
HOST_TCP_RETRANSMITTED = Metric(
    "tailspan_host_tcp_retransmitted_segments_total", "counter", "{segment}", (), "Segments sent again"
)
HOST_TCP_TIMEOUTS = Metric(
    "tailspan_host_tcp_timeouts_total",
    "counter",
    "{timeout}",
    (),
    "Retransmission timeouts: nothing came back for so long that the sender started over",
)
HOST_TCP_SYN_RETRANSMITS = Metric(
    "tailspan_host_tcp_syn_retransmits_total",
    "counter",
    "{segment}",
    (),
    "SYNs and SYN-ACKs sent again: the peer was slow to answer, or its queue was full",
)
HOST_TCP_LISTEN_OVERFLOWS = Metric(
    "tailspan_host_tcp_listen_overflows_total",
    "counter",
    "{segment}",
    (),
    "SYNs and final ACKs dropped because the accept queue was full; each costs the peer 1 s or more",
)
HOST_TCP_LISTEN_DROPS = Metric(
    "tailspan_host_tcp_listen_drops_total",
    "counter",
    "{segment}",
    (),
    "SYNs and final ACKs that listeners dropped for any reason; includes the overflows",
)
HOST_TCP_RESETS_SENT = Metric(
    "tailspan_host_tcp_resets_sent_total",
    "counter",
    "{segment}",
    (),
    "Resets sent; also for ports nobody listens on",
)
HOST_TCP_ESTABLISHED_RESETS = Metric(
    "tailspan_host_tcp_established_resets_total",
    "counter",
    "{connection}",
    (),
    "Established connections that ended without a close: reset by either side, or timed out",
)
HOST_TCP_WINDOWS_CLOSED = Metric(
    "tailspan_host_tcp_windows_closed_total",
    "counter",
    "{window}",
    (),
    "Receive windows of this host that went to zero: a process here read too slowly",
)
HOST_TCP_WINDOWS_REOPENED = Metric(
    "tailspan_host_tcp_windows_reopened_total",
    "counter",
    "{window}",
    (),
    "Receive windows of this host that were zero and are open again",
)
HOST_TCP_RECEIVE_DROPS = Metric(
    "tailspan_host_tcp_receive_queue_drops_total",
    "counter",
    "{segment}",
    (),
    "Segments dropped because a socket's receive queue was full",
)
HOST_TCP_ACTIVE_OPENS = Metric(
    "tailspan_host_tcp_active_opens_total", "counter", "{connection}", (), "Connections that were tried from here"
)
HOST_TCP_PASSIVE_OPENS = Metric(
    "tailspan_host_tcp_passive_opens_total", "counter", "{connection}", (), "Connections that came in"
)
HOST_TCP_ESTABLISHED = Metric(
    "tailspan_host_tcp_established_connections", "gauge", "{connection}", (), "Connections that are open"
)
HOST_TCP_SOCKETS = Metric(
    "tailspan_host_tcp_sockets",
    "gauge",
    "{socket}",
    (),
    "Sockets in use, listening ones too; not those in TIME_WAIT",
)
HOST_TCP_TIME_WAIT = Metric("tailspan_host_tcp_time_wait_sockets", "gauge", "{socket}", (), "Sockets in TIME_WAIT")

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

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
