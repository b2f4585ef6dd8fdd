"""What a verdict is. Built by :mod:`tailspan.attribute.judge`, rendered by views and exporters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tailspan.attribute.causes import Cause


class Outcome(StrEnum):
    NAMED = "named"  #: a cause (and, where there is one, a culprit) stands out
    OWN_WORK = "own-work"  #: the excess is the request's own work or its own batching: nobody is accused
    NORMAL = "normal"  #: not slower than its like by more than the floor
    INCONCLUSIVE = "inconclusive"  #: too little evidence; ``verdict.sentence`` says why
    UNJUDGED = "unjudged"  #: in lists only: stored in a rush of slow requests, judged when it is explained


class CulpritKind(StrEnum):
    PROCESS = "process"  #: another process ran where the request should have
    OWN = "own"  #: the request's own process (pool larger than its CPUs)
    KTHREAD = "kthread"
    IDLE = "idle"  #: the CPU was idle; the thread was not placed on it yet
    WAKER = "waker"  #: the thread that ended the wait
    BATCH = "batch"
    REQUEST = "request"
    CGROUP = "cgroup"
    DEVICE = "device"  #: a disk
    GPU = "gpu"  #: a GPU, its link, or what governs its clocks
    PEER = "peer"  #: the other end of a connection, by address
    SOFTIRQ = "softirq"
    HOST = "host"  #: the machine as a whole: its memory, its hypervisor
    NONE = "none"  #: the evidence names nobody


@dataclass(frozen=True, slots=True)
class Culprit:
    kind: CulpritKind
    ns: int  #: of the cause's ns
    label: str  #: for people: ``stress-ng[9001]``, ``batch 5512``
    pid: int | None = None  #: the host's tgid
    tid: int | None = None
    comm: str = ""
    cgroup: str = ""  #: path below the hierarchy's root; "" when not known
    #: batch id; a request's span id in hex; a peer's address; a disk's name; a GPU's uuid; how a waker died
    owner: str = ""
    #: of its cgroup, as OpenTelemetry names it: ``("k8s.pod.name", "etl-7")``, ...; in order of name
    identity: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the ledger. The parts' ``ns`` sum to the request's wall time, exactly."""

    cause: Cause
    ns: int
    normal_ns: int  #: median of the same part among like requests that were not slow; 0 without a baseline
    culprits: tuple[Culprit, ...]  #: largest first; their ns sum to at most ``ns``

    @property
    def excess_ns(self) -> int:
        return self.ns - self.normal_ns


@dataclass(frozen=True, slots=True)
class Hop:
    """One thread of a chain of waits. ``cause``: why it did not go on; all but the last waited for the next."""

    tid: int
    comm: str
    pid: int
    prio: int  #: task_struct.prio: higher numbers run later; 0 when not known
    cause: Cause


@dataclass(frozen=True, slots=True)
class Step:
    """One stretch of the critical path: the waterfall's rows, in time order, tiling the request."""

    start_ns: int  #: from the request's start
    end_ns: int
    span: str  #: the worker's innermost span then
    tid: int
    comm: str
    cause: Cause
    note: str  #: culprit, waker or batch, in words; "" when nothing is known
    chain: tuple[Hop, ...] = ()  #: from ``tid`` to the thread whose cause it is; empty where that is its own


@dataclass(frozen=True, slots=True)
class RequestFacts:
    trace_id: str  #: hex
    span_id: str
    parent_id: str
    request_id: str
    name: str
    model: str
    model_version: str
    service: str
    status: str
    pid: int
    tid: int
    start_mono_ns: int  #: its first byte arrived; or, where that was not seen, the worker began it
    start_unix_ns: int
    wall_ns: int
    batch_id: int
    batch_size: int
    batch_capacity: int
    sampled: bool
    before_ns: int = 0  #: of wall_ns: before the worker began it
    device: str = ""  #: uuid of the GPU that it ran on; "" where none is known
    provider: str = ""  #: what ran it, in the runtime's words
    join: str = "said"  #: how ``tid`` is known: said, socket, process, none; see timeline.tables.Join
    broken: int = 0  #: spans of its trace that do not fit


@dataclass(frozen=True, slots=True)
class Like:
    """The requests this one is compared with: same name, model, version and batch-size bucket, not slow."""

    n: int
    p50_ns: int
    p95_ns: int
    threshold_ns: int  #: above it a request is slow


@dataclass(frozen=True, slots=True)
class Shed:
    """Something that the agent did without while the request ran."""

    step: str  #: name of a step in attribute.shedding
    why: str  #: which budget the agent was above: cpu or memory


@dataclass(frozen=True, slots=True)
class Trust:
    coverage: float  #: share of the wall time that is not ``unknown``
    lost: int  #: records and messages lost in the request's window, all classes
    clock_error_ns: int  #: bound on the error between the worker's clock and the kernel's
    gpu_sample_age_ns: int | None  #: None: no GPU facts were used
    notes: tuple[str, ...]  #: probes that were off, evicted rows, missing threads
    shed: tuple[Shed, ...] = ()  #: in the order that it is shed in
    probes_off_ns: int = 0  #: of the wall time: all were off, to measure what they cost


@dataclass(frozen=True, slots=True)
class Alternative:
    cause: Cause
    culprit: Culprit | None
    excess_ns: int
    why_not: str


@dataclass(frozen=True, slots=True)
class Verdict:
    request: RequestFacts
    like: Like
    ledger: tuple[Part, ...]  #: largest first; only parts with ns > 0
    outcome: Outcome
    cause: Cause | None
    culprit: Culprit | None
    sentence: str
    confidence: float  #: 0..1
    excess_ns: int  #: wall time above the like requests' median
    alternatives: tuple[Alternative, ...]
    ruled_out: tuple[str, ...]
    waterfall: tuple[Step, ...]
    trust: Trust
    chain: tuple[Hop, ...] = ()  #: the hops from its thread to the one that met the cause; empty: its own
    facts: tuple[str, ...] = ()  #: what else is known of its time: its connection, faults, migrations, incidents
