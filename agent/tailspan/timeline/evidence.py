"""Evidence: all that a verdict may look at, and nothing else.

The daemon cuts it from the live window, attributes from it, and stores it as it is; ``explain`` and ``replay``
read it back and attribute again with the same pure functions. That is why a verdict can be re-run, byte for
byte, with no root, no kernel and no worker.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tailspan.timeline.tables import (
    ACTIVATION,
    CPU_SAMPLE,
    GPU_EVENT,
    GPU_PROCESS,
    GPU_SAMPLE,
    LOSS,
    PAUSE,
    REQUEST,
    SPAN,
    THREAD,
)
from tailspan.wire.events import (
    BLOCK_REQUEST,
    CPU_SLICE,
    GPU_CALL,
    INCIDENT,
    SOCKET_WAIT,
    THREAD_CYCLE,
    THREAD_STATE,
)

Table = npt.NDArray[np.void]

#: Attribute name -> dtype of every table, in the order they are stored.
TABLES: dict[str, np.dtype[np.void]] = {
    "requests": REQUEST,
    "spans": SPAN,
    "activations": ACTIVATION,
    "cycles": THREAD_CYCLE,
    "slices": CPU_SLICE,
    "open_threads": THREAD_STATE,
    "threads": THREAD,
    "losses": LOSS,
    "sockets": SOCKET_WAIT,
    "blocks": BLOCK_REQUEST,
    "incidents": INCIDENT,
    "pauses": PAUSE,
    "samples": CPU_SAMPLE,
    "gpu_calls": GPU_CALL,
    "gpu_samples": GPU_SAMPLE,
    "gpu_processes": GPU_PROCESS,
    "gpu_events": GPU_EVENT,
}


def _empty(name: str) -> Table:
    return np.empty(0, TABLES[name])


@dataclass(slots=True)
class Meta:
    """Facts that are not rows. Plain JSON types only, so that they are stored as they are."""

    host: str = ""
    boot_id: str = ""
    agent_version: str = ""
    unix_offset_ns: int = 0  #: unix = mono + offset, at the time the evidence was cut
    clock_error_ns: int = 0  #: bound on the error of that sum
    cpu_count: int = 0
    #: probe name -> why it is not there; what depends on it is unknowable, not zero
    missing_probes: dict[str, str] = field(default_factory=dict)
    #: cgroup id (decimal) -> path
    cgroups: dict[str, str] = field(default_factory=dict)
    #: cgroup path -> OpenTelemetry resource attributes of the container or unit that it is
    identities: dict[str, dict[str, str]] = field(default_factory=dict)
    #: worker tgid (decimal) -> OpenTelemetry resource attributes
    resources: dict[str, dict[str, str]] = field(default_factory=dict)
    #: block device (decimal, as in BLOCK_REQUEST.dev) -> its name
    devices: dict[str, str] = field(default_factory=dict)
    #: worker tgid (decimal) -> address ranges [first, past) in which its interpreter's own locks lie
    runtime_locks: dict[str, list[list[int]]] = field(default_factory=dict)
    #: what the column ``gpu`` of the GPU tables means: ``uuid``, ``name``, ``index`` (NVML's, decimal), and
    #: ``parent`` (uuid) of a MIG instance
    gpus: list[dict[str, str]] = field(default_factory=list)
    #: major numbers of the NVIDIA driver's character devices
    gpu_majors: list[int] = field(default_factory=list)
    #: [from, to) of CLOCK_MONOTONIC: every probe was off, because their cost was being measured; disjoint
    probes_off: list[list[int]] = field(default_factory=list)
    #: what the agent did without, ``step/why`` (see attribute.shedding) -> when, likewise
    shed: dict[str, list[list[int]]] = field(default_factory=dict)


@dataclass(slots=True)
class LikeRow:
    """The baseline of one request at the moment it was judged. ``parts_ns`` by :class:`Cause` position."""

    n: int
    p50_ns: int
    p95_ns: int
    threshold_ns: int
    parts_ns: list[int]


@dataclass(slots=True)
class Evidence:
    requests: Table = field(default_factory=lambda: _empty("requests"))
    spans: Table = field(default_factory=lambda: _empty("spans"))  #: ``request`` indexes ``requests``
    activations: Table = field(default_factory=lambda: _empty("activations"))
    cycles: Table = field(default_factory=lambda: _empty("cycles"))  #: sorted by (tid, run_mono_ns)
    slices: Table = field(default_factory=lambda: _empty("slices"))  #: sorted by (cpu, start_mono_ns)
    open_threads: Table = field(default_factory=lambda: _empty("open_threads"))
    threads: Table = field(default_factory=lambda: _empty("threads"))
    losses: Table = field(default_factory=lambda: _empty("losses"))
    sockets: Table = field(default_factory=lambda: _empty("sockets"))
    blocks: Table = field(default_factory=lambda: _empty("blocks"))
    incidents: Table = field(default_factory=lambda: _empty("incidents"))
    pauses: Table = field(default_factory=lambda: _empty("pauses"))
    samples: Table = field(default_factory=lambda: _empty("samples"))
    gpu_calls: Table = field(default_factory=lambda: _empty("gpu_calls"))
    gpu_samples: Table = field(default_factory=lambda: _empty("gpu_samples"))
    gpu_processes: Table = field(default_factory=lambda: _empty("gpu_processes"))
    gpu_events: Table = field(default_factory=lambda: _empty("gpu_events"))
    strings: list[str] = field(default_factory=list)
    likes: list[LikeRow] = field(default_factory=list)  #: one per request
    meta: Meta = field(default_factory=Meta)
