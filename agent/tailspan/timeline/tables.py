"""The canonical tables: numpy structured dtypes, one row per fact. All times are CLOCK_MONOTONIC ns (int64).

Kernel records enter as they are (:mod:`tailspan.wire.events`); the tables here are what the worker's messages
become. A change of any dtype that is stored raises :data:`SCHEMA_VERSION`, and old files still open.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

#: Version of everything that :mod:`tailspan.export.local` stores. 1: first. 2: sockets, block requests, incidents,
#: pauses, samples. 3: GPU calls, samples, processes and events. 4: requests of which the worker did not
#: say what thread served them.
SCHEMA_VERSION = 4


class Join(IntEnum):
    """How the thread that served a request is known."""

    SAID = 0  #: the worker said it
    SOCKET = 1  #: it read the request's first bytes
    PROCESS = 2  #: of its process it did by far the most meanwhile
    NONE = 3  #: it is not


#: One finished request. ``name``, ``model``, ``version``, ``service``, ``status``, ``device`` and ``provider``
#: index the strings of the :class:`~tailspan.timeline.evidence.Evidence` they travel in. tids are the host's.
REQUEST = np.dtype(
    [
        ("trace_id", "V16"),
        ("span_id", "V8"),
        ("parent_id", "V8"),
        ("request_id", "S48"),
        ("arrived_mono_ns", "<i8"),  # its first byte came in on its socket; 0 where that was not seen
        ("start_mono_ns", "<i8"),
        ("end_mono_ns", "<i8"),
        ("received_mono_ns", "<i8"),  # when the agent read the message
        ("batch_id", "<u8"),
        ("batch_size", "<u4"),
        ("batch_capacity", "<u4"),
        ("name", "<u4"),
        ("model", "<u4"),
        ("version", "<u4"),
        ("service", "<u4"),
        ("status", "<u4"),
        ("device", "<u4"),  # uuid of the GPU that it ran on, as NVML has it; empty: the worker named none
        ("provider", "<u4"),  # what ran it, in the runtime's words: ``CUDAExecutionProvider``
        ("tid", "<u4"),
        ("tgid", "<u4"),
        ("others", "<u2"),  # requests that its thread had meanwhile, where that one was inferred
        ("broken", "<u2"),  # spans of its trace that do not fit: their parents never came, their ids changed, ...
        ("peer_port", "<u2"),  # of its connection's other end, as the worker named it; 0: it did not
        ("sampled", "u1"),
        ("asynchronous", "u1"),
        ("join", "u1"),  # Join: how ``tid`` is known
    ]
)

#: One span of a request; ``request`` is the row in the REQUEST table it travels with.
SPAN = np.dtype(
    [
        ("start_mono_ns", "<i8"),
        ("end_mono_ns", "<i8"),
        ("request", "<i4"),
        ("name", "<u4"),
        ("tid", "<u4"),
        ("kind", "<u4"),  # wire.spans.SpanKind
    ]
)

#: A stretch in which a thread worked for one batch or one event-loop step for one request.
ACTIVATION = np.dtype(
    [
        ("start_mono_ns", "<i8"),
        ("end_mono_ns", "<i8"),
        ("owner", "<u8"),  # batch id; or the request's span id as a big-endian integer, 0 for none
        ("tid", "<u4"),
        ("tgid", "<u4"),
        ("kind", "<u4"),  # wire.spans.ActivationKind
        ("name", "<u4"),
        ("size", "<u4"),
        ("capacity", "<u4"),
    ]
)

#: A stretch in which a thread did nothing but its runtime's own work.
PAUSE = np.dtype(
    [
        ("start_mono_ns", "<i8"),
        ("end_mono_ns", "<i8"),
        ("tid", "<u4"),
        ("tgid", "<u4"),
        ("kind", "<u4"),  # wire.spans.PauseKind
        ("generation", "<u4"),
    ]
)

#: What the host says of one CPU between two looks at it.
CPU_SAMPLE = np.dtype(
    [
        ("start_mono_ns", "<i8"),
        ("end_mono_ns", "<i8"),
        ("busy_ns", "<i8"),  # user, nice, system, irq, softirq
        ("steal_ns", "<i8"),  # runnable, and the hypervisor ran somebody else; the kernel counts in ticks
        ("cpu", "<u4"),
        ("khz", "<u4"),  # frequency at the end of it; 0 where it cannot be seen
        ("max_khz", "<u4"),
        ("pad", "<u4"),
    ]
)

#: What NVML says of one GPU between two looks at it. ``gpu`` indexes ``Meta.gpus``. What the card or its driver
#: does not say is :data:`ABSENT`, never 0. ``*_ns`` are how long the clocks were held down for that reason in the
#: row's time (NVML_FI_DEV_PERF_POLICY_* and NVML_FI_DEV_CLOCKS_EVENT_REASON_*); ``reasons`` are those at its end
#: (nvmlClocksEventReason*).
GPU_SAMPLE = np.dtype(
    [
        ("start_mono_ns", "<i8"),
        ("end_mono_ns", "<i8"),
        ("memory_used_bytes", "<i8"),
        ("memory_total_bytes", "<i8"),
        ("reasons", "<i8"),
        ("power_ns", "<i8"),  # software power cap
        ("thermal_ns", "<i8"),  # too hot: software or hardware slowdown
        ("brake_ns", "<i8"),  # hardware power brake
        ("board_ns", "<i8"),  # board limit
        ("pcie_tx_bytes", "<i8"),  # from the GPU to the host
        ("pcie_rx_bytes", "<i8"),
        ("pcie_replays", "<i4"),
        ("gpu", "<u4"),
        ("sm_before_mhz", "<i4"),  # at start
        ("sm_mhz", "<i4"),  # at end
        ("sm_max_mhz", "<i4"),
        ("memory_mhz", "<i4"),
        ("memory_max_mhz", "<i4"),
        ("busy_percent", "<i4"),  # nvmlUtilization_t.gpu: time in which any kernel ran
        ("power_mw", "<i4"),
        ("power_limit_mw", "<i4"),
        ("temperature_c", "<i4"),
        ("pcie_gen", "<i2"),
        ("pcie_gen_max", "<i2"),
        ("pcie_width", "<i2"),
        ("pcie_width_max", "<i2"),
    ]
)

#: One process on one GPU between two looks at it. ABSENT where NVML does not say.
GPU_PROCESS = np.dtype(
    [
        ("start_mono_ns", "<i8"),
        ("end_mono_ns", "<i8"),
        ("memory_bytes", "<i8"),
        ("gpu", "<u4"),
        ("tgid", "<u4"),
        ("sm_percent", "<i4"),  # time in which a kernel of its ran, of that in between
        ("comm", "S16"),
    ]
)

#: Something that happened to a GPU. ``code``: the XID of an XID event, else a count.
GPU_EVENT = np.dtype([("mono_ns", "<i8"), ("gpu", "<u4"), ("kind", "<u4"), ("code", "<i8")])


class GpuEventKind(IntEnum):
    XID = 0  #: the driver reported an error; docs.nvidia.com/deploy/xid-errors says what its number means
    ECC = 1  #: ``code`` memory errors that could not be corrected
    LOST = 2  #: the driver can reach it no more (NVML_ERROR_GPU_IS_LOST)
    BACK = 3  #: ... and can again


#: What NVML did not say, in every column of GPU_SAMPLE and GPU_PROCESS.
ABSENT = -1

#: When a thread could be seen: its records tile [followed, gone); outside nothing is known.
THREAD = np.dtype(
    [
        ("followed_mono_ns", "<i8"),
        ("gone_mono_ns", "<i8"),  # exit; the far future while it lives
        ("last_run_mono_ns", "<i8"),  # of one that is gone: when its last turn began
        ("tid", "<u4"),
        ("tgid", "<u4"),
        ("ns_tid", "<u4"),
        ("named", "<u4"),  # 1: a request, span or activation has named it; 0: a native thread, as far as we know
        ("comm", "S16"),
    ]
)

#: Records that the kernel could not hand over, or that the agent had to drop.
LOSS = np.dtype(
    [
        ("start_mono_ns", "<i8"),
        ("end_mono_ns", "<i8"),
        ("count", "<u8"),
        ("klass", "<u4"),  # wire.events.RecordClass, or LOSS_CLIENT and above
        ("pad", "<u4"),
    ]
)

#: Loss classes beside wire.events.RecordClass.
LOSS_CLIENT = 16  #: messages a worker's client dropped before sending
LOSS_WINDOW = 17  #: rows the agent evicted to stay within its memory bound

FOREVER = np.iinfo(np.int64).max


def join(parts: Sequence[npt.NDArray[np.void]], dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """Concatenate rows of one dtype. numpy's own way reconciles every field of every part first: 20 µs a call."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return np.empty(0, dtype)
    opaque = np.dtype((np.void, dtype.itemsize))
    return np.concatenate([part.view(opaque) for part in parts]).view(dtype)
