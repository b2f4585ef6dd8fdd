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
HW_ID = Attribute(
    "hw.id", "string", "", ("verdict", "request"), "uuid of the GPU, or MIG instance, that the request ran on"
)
GPU_PROVIDER = Attribute(
    "tailspan.gpu.provider",
    "string",
    "",
    ("verdict", "request"),
    "what ran the request, in its runtime's words: CUDAExecutionProvider",
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

#: Labels whose values others choose: workers, and whoever runs on a GPU (``process``). Each family keeps a bounded
#: number of their combinations; what comes beyond is kept under :data:`OTHER`.
OPEN_LABELS = frozenset({"name", "model", "version", "status", "process"})
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

# Calls of followed processes into the CUDA driver and its runtime.
GPU_CALLS = Metric(
    "tailspan_gpu_calls_total",
    "counter",
    "{call}",
    ("kind",),
    "CUDA calls of followed processes while their probes were attached: sync, copy, alloc, free, load, launch",
)
GPU_CALL_DURATION = Metric(
    "tailspan_gpu_call_duration_seconds",
    "histogram",
    "s",
    ("kind",),
    "CUDA calls of followed threads, from entry to return; of calls within calls the outermost. Launches are not "
    "timed",
)
GPU_PROBES = Metric(
    "tailspan_gpu_probes_attached",
    "gauge",
    "{function}",
    (),
    "CUDA functions of followed processes that have a probe now",
)
GPU_PROBE_OFF = Metric(
    "tailspan_gpu_probe_off",
    "gauge",
    "{process}",
    ("kind",),
    "Processes whose calls of a kind come too often to be recorded (gpu.calls_per_s): theirs are unknowable",
)

# What NVML says of each GPU and MIG instance. What it does not say is absent; so is what a GPU said that is lost.
#: Labels of OpenTelemetry's metrics of a device. hw_parent: the GPU of a MIG instance, else empty.
DEVICE_LABELS = ("hw_id", "hw_name", "hw_parent", "hw_type")

HW_GPU_UTILIZATION = Metric(
    "hw_gpu_utilization_ratio",
    "gauge",
    "1",
    (*DEVICE_LABELS, "hw_gpu_task"),
    "Share of time in which the GPU was busy. general: in which any kernel ran, however small a part of the GPU "
    "it filled; encoder, decoder: of video",
)
HW_GPU_MEMORY_USAGE = Metric(
    "hw_gpu_memory_usage_bytes", "gauge", "By", DEVICE_LABELS, "GPU memory used, without what the driver reserves"
)
HW_GPU_MEMORY_LIMIT = Metric(
    "hw_gpu_memory_limit_bytes",
    "gauge",
    "By",
    DEVICE_LABELS,
    "Size of the GPU memory, with what the driver reserves",
)
HW_GPU_MEMORY_UTILIZATION = Metric(
    "hw_gpu_memory_utilization_ratio",
    "gauge",
    "1",
    DEVICE_LABELS,
    "Share of the GPU memory that is used; not NVML's utilization.memory, which is tailspan_gpu_memory_busy_ratio",
)
HW_GPU_IO = Metric(
    "hw_gpu_io_bytes_total",
    "counter",
    "By",
    (*DEVICE_LABELS, "network_io_direction"),
    "Bytes over PCIe that the GPU has received from the host and transmitted to it",
)
HW_ENERGY = Metric("hw_energy_joules_total", "counter", "J", DEVICE_LABELS, "Energy that the GPU has taken")
HW_POWER = Metric("hw_power_watts", "gauge", "W", DEVICE_LABELS, "Power that the GPU takes")
HW_TEMPERATURE = Metric(
    "hw_temperature_celsius",
    "gauge",
    "Cel",
    (*DEVICE_LABELS, "hw_sensor_location"),
    "Temperature of the GPU: of its die, of its memory",
)
HW_ERRORS = Metric(
    "hw_errors_total",
    "counter",
    "{error}",
    (*DEVICE_LABELS, "error_type"),
    "Errors of the GPU. corrected, uncorrected: of its memory (ECC); pcie_replay: packets sent again; nvlink; "
    "xid-79: reports of the driver by their number, since the agent started. One fault may be in several",
)
HW_STATUS = Metric(
    "hw_status",
    "gauge",
    "1",
    (*DEVICE_LABELS, "hw_state"),
    "1 for the state that the GPU is in. failed: it cannot be reached; predicted_failure: a row of its memory "
    "could not be remapped; degraded: rows are remapped at the next reset",
)

GPU_INFO = Metric(
    "tailspan_gpu_info",
    "gauge",
    "1",
    ("hw_id", "hw_name", "hw_parent", "hw_driver_version", "index"),
    "Always 1; index is NVML's, of a MIG instance within its GPU",
)
GPU_READING_AGE = Metric(
    "tailspan_gpu_sample_age_seconds",
    "gauge",
    "s",
    ("hw_id",),
    "Age of what NVML said last of the GPU; it grows while the driver does not answer",
)
GPU_MEMORY_RESERVED = Metric(
    "tailspan_gpu_memory_reserved_bytes", "gauge", "By", ("hw_id",), "GPU memory that the driver and firmware keep"
)
GPU_MEMORY_BUSY = Metric(
    "tailspan_gpu_memory_busy_ratio",
    "gauge",
    "1",
    ("hw_id",),
    "Share of time in which GPU memory was read or written (NVML's utilization.memory)",
)
GPU_CLOCK = Metric(
    "tailspan_gpu_clock_hertz", "gauge", "Hz", ("hw_id", "domain"), "Clock of the domain: sm, memory"
)
GPU_CLOCK_LIMIT = Metric(
    "tailspan_gpu_clock_limit_hertz", "gauge", "Hz", ("hw_id", "domain"), "The highest that the clock can go"
)
GPU_CLOCK_EVENTS = Metric(
    "tailspan_gpu_clock_event_seconds_total",
    "counter",
    "s",
    ("hw_id", "reason"),
    "Time in which clocks were held down, by NVIDIA's reason; reasons overlap, and low_utilization is idleness",
)
GPU_PERFORMANCE_STATE = Metric(
    "tailspan_gpu_performance_state",
    "gauge",
    "1",
    ("hw_id",),
    "Performance state: 0 is the fastest, 15 the slowest",
)
GPU_POWER_LIMIT = Metric(
    "tailspan_gpu_power_limit_watts", "gauge", "W", ("hw_id",), "Power at which the driver lowers the clocks"
)
GPU_PCIE_GENERATION = Metric(
    "tailspan_gpu_pcie_generation",
    "gauge",
    "1",
    ("hw_id",),
    "PCIe generation of the link; an idle GPU may lower it",
)
GPU_PCIE_GENERATION_LIMIT = Metric(
    "tailspan_gpu_pcie_generation_limit", "gauge", "1", ("hw_id",), "The highest that GPU and host both can"
)
GPU_PCIE_WIDTH = Metric("tailspan_gpu_pcie_width_lanes", "gauge", "{lane}", ("hw_id",), "Lanes of the PCIe link")
GPU_PCIE_WIDTH_LIMIT = Metric(
    "tailspan_gpu_pcie_width_limit_lanes", "gauge", "{lane}", ("hw_id",), "The most that GPU and host both can"
)
GPU_ROW_REMAP_PENDING = Metric(
    "tailspan_gpu_row_remap_pending",
    "gauge",
    "1",
    ("hw_id",),
    "1: rows of GPU memory are remapped at the next reset",
)
GPU_ROW_REMAP_FAILED = Metric(
    "tailspan_gpu_row_remap_failed", "gauge", "1", ("hw_id",), "1: a row of GPU memory could not be remapped"
)
GPU_REMAPPED_ROWS = Metric(
    "tailspan_gpu_remapped_rows_total",
    "counter",
    "{row}",
    ("hw_id", "error_type"),
    "Rows of GPU memory that were remapped, by the errors that led to it: corrected, uncorrected",
)
GPU_NVLINK_IO = Metric(
    "tailspan_gpu_nvlink_io_bytes_total",
    "counter",
    "By",
    ("hw_id", "network_io_direction"),
    "Bytes over all NVLinks of the GPU",
)
GPU_SM_UTILIZATION = Metric(
    "tailspan_gpu_sm_utilization_ratio",
    "gauge",
    "1",
    ("hw_id",),
    "Share of time in which SMs had work, averaged over the SMs; only where the GPU has GPM",
)
GPU_SM_OCCUPANCY = Metric(
    "tailspan_gpu_sm_occupancy_ratio",
    "gauge",
    "1",
    ("hw_id",),
    "Warps on the SMs, of the most that they hold; only where the GPU has GPM",
)
GPU_TENSOR_UTILIZATION = Metric(
    "tailspan_gpu_tensor_utilization_ratio",
    "gauge",
    "1",
    ("hw_id",),
    "Share of time in which tensor cores had work; only where the GPU has GPM",
)
GPU_DRAM_UTILIZATION = Metric(
    "tailspan_gpu_dram_utilization_ratio",
    "gauge",
    "1",
    ("hw_id",),
    "Bandwidth of GPU memory used, of what there is; only where the GPU has GPM",
)
GPU_XIDS = Metric(
    "tailspan_gpu_xids_total",
    "counter",
    "{error}",
    ("hw_id",),
    "XIDs of any number that the driver has reported since the agent started; it begins at 0, so that rate() sees "
    "the first",
)
GPU_PROCESS_MEMORY = Metric(
    "tailspan_gpu_process_memory_bytes",
    "gauge",
    "By",
    ("hw_id", "process"),
    "GPU memory of processes of one command name; absent where that of one of them is not known",
)
GPU_PROCESS_UTILIZATION = Metric(
    "tailspan_gpu_process_utilization_ratio",
    "gauge",
    "1",
    ("hw_id", "process"),
    "Share of time in which a kernel of theirs ran, summed over processes of one command name; absent where that "
    "of one of them is not known",
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
    GPU_REMAPPED_ROWS: {
        "remapped_rows_corrected": ("corrected",),
        "remapped_rows_uncorrected": ("uncorrected",),
    },
    GPU_NVLINK_IO: {"nvlink_received": ("receive",), "nvlink_transmitted": ("transmit",)},
    GPU_SM_UTILIZATION: {"gpm_sm_utilization": ()},
    GPU_SM_OCCUPANCY: {"gpm_sm_occupancy": ()},
    GPU_TENSOR_UTILIZATION: {"gpm_tensor_utilization": ()},
    GPU_DRAM_UTILIZATION: {"gpm_dram_utilization": ()},
}

# NVML itself.
NVML_STATE = Metric(
    "tailspan_gpu_nvml_state",
    "gauge",
    "1",
    ("state",),
    "1 for the state that NVML is in: off, no_library, no_driver, no_permission, no_device, works",
)
NVML_CALLS = Metric("tailspan_gpu_nvml_calls_total", "counter", "{call}", (), "Calls of the agent into NVML")
NVML_CALL_TIME = Metric(
    "tailspan_gpu_nvml_call_seconds_total",
    "counter",
    "s",
    (),
    "Time of the agent inside NVML, waiting or not; gpu.budget bounds it",
)
NVML_FAILURES = Metric(
    "tailspan_gpu_nvml_failures_total",
    "counter",
    "{call}",
    ("error",),
    "Calls into NVML that failed, by its error",
)
NVML_ATTEMPTS = Metric(
    "tailspan_gpu_nvml_attempts_total",
    "counter",
    "{attempt}",
    (),
    "Attempts to connect to the driver, the first one too",
)

#: What the collector of timeline.gpus.GpuHost exposes.
GPU_HOST: tuple[Metric, ...] = (
    *GPU_VALUES,
    *(HW_GPU_MEMORY_UTILIZATION, HW_STATUS, GPU_INFO, GPU_READING_AGE, GPU_CLOCK_EVENTS, GPU_XIDS),
    *(GPU_PROCESS_MEMORY, GPU_PROCESS_UTILIZATION),
    *(NVML_STATE, NVML_CALLS, NVML_CALL_TIME, NVML_FAILURES, NVML_ATTEMPTS),
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
