"""What a nanosecond of a request can have been spent on. One row per cause; the order is the ledger's columns.

Columns are stored in baselines and segments by position, so causes are appended at the end only. docs/causes.md is
written from this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Cause(IntEnum):
    ON_CPU = 0
    RUN_QUEUE = 1
    THROTTLED = 2
    IRQ = 3
    FUTEX = 4
    IO = 5
    SOCKET = 6
    POLL = 7
    SLEEP = 8
    OTHER = 9
    QUEUED = 10
    BATCHING = 11
    AWAIT = 12
    UNKNOWN = 13
    UPSTREAM = 14
    NETWORK = 15
    PIPE = 16
    UNIX = 17
    PAGE_IN = 18
    RECLAIM = 19
    KERNEL_LOCK = 20
    STOPPED = 21
    PROCESS = 22
    GIL = 23
    GC = 24
    STEAL = 25
    ACCEPT = 26
    UNREAD = 27
    GPU = 28
    GPU_COPY = 29
    GPU_ALLOC = 30
    GPU_FULL = 31
    GPU_LOAD = 32
    GPU_CLOCKS = 33
    GPU_COLD = 34
    GPU_SHARED = 35
    GPU_FAULT = 36
    GPU_DRIVER = 37


@dataclass(frozen=True, slots=True)
class CauseInfo:
    label: str  #: in the ledger
    words: str  #: completes "… of it: "
    probe: str  #: without it this is unknowable: a name in collect.bpf.probes, "client", "nvml" or "sampling"
    evidence: str  #: what the number is made of
    bias: str  #: what the number may wrongly include
    action: str  #: what an on-call person does about it
    accuses: bool  #: somebody or something outside the request's own work did it


CAUSES: dict[Cause, CauseInfo] = {
    Cause.ON_CPU: CauseInfo(
        "on cpu",
        "its own work on the CPU",
        "sched",
        "The request's thread was on a CPU, between sched_switch in and out, less what interrupts, memory"
        " reclaim and the hypervisor took.",
        "page faults that do not sleep; IPIs; waits below the floor of a turn that is not over",
        "Nobody is accused. Compare batch size, input size and model version with those of like requests, then"
        " profile the worker.",
        accuses=False,
    ),
    Cause.RUN_QUEUE: CauseInfo(
        "run queue",
        "ready to run, waiting for a CPU",
        "sched",
        "From sched_wakeup, or from the preemption, until the thread was switched in; split by who had that"
        " CPU meanwhile, each with its own milliseconds.",
        "the wake-up latency of an idle CPU, listed as `idle cpu`",
        "Look at who had the CPU. Another process: keep it off the worker's CPUs or limit it (`systemctl"
        " set-property --runtime batch.slice AllowedCPUs=0-3`, or `CPUQuota=200%`). The worker's own process:"
        " more busy threads than CPUs; lower their number. A kernel thread: its name says for what. `idle cpu`:"
        " power saving, see `cpupower idle-info`. `not seen`: the record of who ran was lost, or the kernel did"
        " not tell of that switch; the wait is real, its author is not known.",
        accuses=True,
    ),
    Cause.THROTTLED: CauseInfo(
        "throttled",
        "out of its own cgroup's CPU quota",
        "sched",
        "A run-queue wait that began while the scheduler had the thread's cgroup, or one above it, out of"
        " quota (task_struct.throttled, or cfs_rq.throttle_count before 6.18). It comes before any neighbour:"
        " the victim's own limit is never blamed on somebody else.",
        "the run-queue wait that follows the quota's refill, up to the switch-in",
        "Raise the quota (Kubernetes: the CPU limit; systemd: `CPUQuota=`) or run fewer threads."
        " `nr_throttled` in the cgroup's `cpu.stat` grows while it lasts.",
        accuses=True,
    ),
    Cause.IRQ: CauseInfo(
        "interrupts",
        "interrupt handlers and softirqs on its CPU",
        "irq",
        "Time of handlers and softirqs on the CPU while the thread was on it, and waits behind ksoftirqd."
        " Network softirqs are told apart from the rest.",
        "softirqs that the request's own sends raise over loopback; not seen: IPIs",
        "Compare `/proc/interrupts` and `/proc/softirqs` twice, a second apart; move the busy one away from"
        " the worker's CPUs (`/proc/irq/N/smp_affinity_list`; for receive steering `rps_cpus`).",
        accuses=True,
    ),
    Cause.FUTEX: CauseInfo(
        "blocked: futex",
        "waiting for a lock or another thread",
        "sched",
        "Asleep in futex(2), until sched_waking names who ended it. What held that thread up is booked"
        " instead, hop by hop; what is left is its computing or its own sleep.",
        "idle pool waits of native code; where several threads had the lock one after another, the last is named",
        "Find out what the named thread does while it has the lock; the chain and the waterfall say when."
        " With nobody named, `sudo tailspan stacks --pid PID` shows in whose code it waits.",
        accuses=True,
    ),
    Cause.IO: CauseInfo(
        "blocked: io",
        "waiting for a file or disk",
        "sched",
        "Asleep in a call on a file or block device, or in a sleep that the kernel itself marks as I/O wait."
        " The `block` probe adds the device and who had requests in flight on it meanwhile.",
        "page-ins inside system calls; whose requests filled a device is told by time in flight, not by its"
        " inner queue",
        "`iostat -x 1` and `/proc/pressure/io` say whether the disk is busy, `pidstat -d 1` with whom. Move"
        " the neighbour's I/O elsewhere or limit it (`IOReadBandwidthMax=`, `IOWriteBandwidthMax=`, `ionice"
        " -c3`).",
        accuses=True,
    ),
    Cause.SOCKET: CauseInfo(
        "blocked: socket",
        "waiting for a socket",
        "sched",
        "Asleep on a socket of which nothing better is known: UDP, another family, or a TCP wait without a"
        " record.",
        "waits on TCP connections that were not over when the request was judged",
        "The span in the waterfall says in which call; `ss -tip` shows the worker's connections.",
        accuses=True,
    ),
    Cause.POLL: CauseInfo(
        "blocked: poll",
        "waiting in poll or epoll",
        "sched",
        "Asleep in poll, select or epoll on more than one descriptor.",
        "what it polled is not known",
        "Give the call that the span contains a span of its own, or tell the client which request the event"
        " loop works for.",
        accuses=True,
    ),
    Cause.SLEEP: CauseInfo(
        "blocked: sleep",
        "sleeping on a timer",
        "sched",
        "Asleep in nanosleep and its like.",
        "nothing known",
        "The code asked to sleep: a retry with a delay, a polling loop, a rate limit. The span says where."
        " So does `sudo tailspan stacks --pid PID`, down to the function.",
        accuses=True,
    ),
    Cause.OTHER: CauseInfo(
        "blocked: other",
        "blocked for another reason",
        "sched",
        "Asleep in a system call that none of the other reasons covers, and all waits below the floor together.",
        "short waits of every kind",
        "The waterfall names the system call. `tailspan syscalls --for 10s` shows how long its calls take,"
        " `sudo tailspan stacks --pid PID` from where they are made.",
        accuses=True,
    ),
    Cause.QUEUED: CauseInfo(
        "queued",
        "waiting for a thread that worked for others",
        "client",
        "The worker's span says that it was queued, and the thread it depends on had an activation for a batch"
        " or another request. What held that thread up is booked instead.",
        "the CPU time of that other work",
        "Explain the batch or request that the ledger names. If it was not slow itself, there was too much to"
        " do: add workers, or shed load.",
        accuses=True,
    ),
    Cause.BATCHING: CauseInfo(
        "batching",
        "waiting for its batch to fill or start",
        "client",
        "Queued for a thread that worked for nobody.",
        "hand-over between threads",
        "Nobody is accused: it is how the worker is configured. Lower the longest time that a batch may wait.",
        accuses=False,
    ),
    Cause.AWAIT: CauseInfo(
        "awaiting",
        "suspended on the event loop, which was not busy",
        "client",
        "An asynchronous request between its steps, while the loop worked for nobody and no answer to what its"
        " own steps had sent was due.",
        "event-loop steps below the floor; work in other threads that it awaits",
        "It waited for something that is not seen from here. Give that call a span.",
        accuses=False,
    ),
    Cause.UNKNOWN: CauseInfo(
        "unknown",
        "not visible to any probe",
        "",
        "No record covers it: one was lost, or the thread was not followed.",
        "anything",
        "See the notes, then `sudo tailspan check`.",
        accuses=False,
    ),
    Cause.UPSTREAM: CauseInfo(
        "upstream",
        "waiting for a peer's answer",
        "tcp",
        "Asleep on a TCP connection that the worker opened, after what it had sent was acknowledged and before"
        " the first byte of the answer came in; or sending to a peer whose receive window is closed.",
        "one round trip; a lost last segment of the answer, which only the peer can see",
        "The peer is named by address. It is its turn to explain; the facts line has round-trip time and"
        " retransmits of that connection.",
        accuses=True,
    ),
    Cause.NETWORK: CauseInfo(
        "network",
        "bytes on their way: retransmissions, or a link slower than what was sent",
        "tcp",
        "The same, until all but the last segment of what was sent was acknowledged and the last"
        " retransmission was out; waits for data in full segments or out of order; sends into a full buffer;"
        " connecting.",
        "a peer that produces a long answer slowly; a peer slow to acknowledge",
        "`ss -ti dst ADDRESS` shows round-trip time, retransmits and rate of the connection, `tc -s qdisc`"
        " what this host's own queues drop. Compare with the host's retransmits on the dashboard: one peer, or"
        " all.",
        accuses=True,
    ),
    Cause.PIPE: CauseInfo(
        "blocked: pipe",
        "waiting for the other end of a pipe",
        "sched",
        "Asleep in a call on a pipe, until who wrote or read woke it. Followed across processes.",
        "the first such wait of a process is not followed: its other end is only found by it",
        "The process at the other end is named: look at it.",
        accuses=True,
    ),
    Cause.UNIX: CauseInfo(
        "blocked: unix",
        "waiting for the other end of a unix socket",
        "sched",
        "As for pipes, on a unix socket.",
        "as for pipes",
        "The process at the other end is named: look at it.",
        accuses=True,
    ),
    Cause.PAGE_IN: CauseInfo(
        "page-in",
        "waiting for memory pages to be read in",
        "sched",
        "Asleep in no system call, and the kernel marks it as I/O wait: a major page fault. The `block` probe"
        " adds the device.",
        "swap-ins are not told apart; page-ins inside a system call are io",
        "A model or library file fell out of memory and is read again page by page. See whether memory is"
        " short (`/proc/pressure/memory`); lock what must stay (`mlock`, `vmtouch -l`) or raise the cgroup's"
        " limit.",
        accuses=True,
    ),
    Cause.RECLAIM: CauseInfo(
        "memory reclaim",
        "freeing memory before it could get any",
        "stalls",
        "On a CPU between mm_vmscan_*_reclaim_begin and end (or compaction), spread evenly over its turn; and"
        " asleep in there, held back by memory.high, or reading a page again that was evicted too early."
        " Whether its own cgroup's limit or the host is short is told.",
        "work that the reclaiming thread does for others; which limit evicted a page that is read again",
        "Its own cgroup's limit: raise it, or find what grew (`memory.stat`). The host's: see who grew in"
        " `/proc/pressure/memory` and `ps --sort -rss`.",
        accuses=True,
    ),
    Cause.KERNEL_LOCK: CauseInfo(
        "kernel lock",
        "waiting for a lock inside the kernel",
        "stalls",
        "Asleep between the kernel's contention_begin and contention_end: a mutex or rwsem such as mmap_lock. Or"
        " asleep, and not for I/O, in a call that changes the address space.",
        "which lock is not known; other reasons to sleep in such a call",
        "Mostly mmap_lock: one thread maps, unmaps or faults much memory while others want to. Allocate less"
        " and less often, or from a pool.",
        accuses=True,
    ),
    Cause.STOPPED: CauseInfo(
        "stopped",
        "stopped by a signal, a tracer or the freezer",
        "sched",
        "Asleep in state stopped, traced or frozen, or woken out of the last. Who sent the last stop signal"
        " comes from signal_generate.",
        "of a thread that slept when it was frozen: the sleep before; frozen tasks before 6.1 sleep in an"
        " ordinary state",
        "Look at who stopped it: a debugger, a checkpoint tool, a container runtime (`docker pause`). State"
        " `T` or `t` in `/proc/PID/status` lasts.",
        accuses=True,
    ),
    Cause.PROCESS: CauseInfo(
        "child process",
        "waiting for fork, exec or a child process",
        "sched",
        "Asleep in fork, exec or wait.",
        "the CPU time of fork and exec is on cpu",
        "A request should start no process. The waterfall says in which span it does.",
        accuses=True,
    ),
    Cause.GIL: CauseInfo(
        "gil",
        "waiting for Python's interpreter lock",
        "client",
        "A futex wait whose word lies in the interpreter's own static data, whose place the client tells. At"
        " every instant it is booked to the thread of the process that was on a CPU and runs Python; where"
        " there was none, to what held up the thread that let it go.",
        "other locks of the interpreter itself; a thread that computed in native code without the lock, on"
        " another CPU",
        "The named thread computes in Python for long. Move its work to another process, or to code that"
        " releases the lock; `sys.setswitchinterval` trades throughput for latency.",
        accuses=True,
    ),
    Cause.GC: CauseInfo(
        "gc",
        "collecting garbage",
        "client",
        "On a CPU during a collection of at least 1 ms that the client's gc callback timed; also for those who"
        " waited for the interpreter's lock meanwhile.",
        "work that other gc callbacks do",
        "`gc.freeze()` after start-up, higher `gc.set_threshold`, or fewer cyclic objects per request.",
        accuses=True,
    ),
    Cause.STEAL: CauseInfo(
        "stolen",
        "the hypervisor ran somebody else",
        "sampling",
        "`steal` of /proc/stat in the sample that covers the time, spread over the CPU's busy time in it.",
        "up to a tick (10 ms) more or less a sample",
        "Nothing on this host helps: the physical host is overcommitted. Move the machine, or ask its provider.",
        accuses=True,
    ),
    Cause.ACCEPT: CauseInfo(
        "accept queue",
        "connected, and not accepted by the worker yet",
        "tcp",
        "From the arrival of the request's first byte, on a connection nobody had accepted then, until it was"
        " read. It lies before the worker's own span.",
        "the time between accept and the first read",
        "The worker accepts too slowly, or not while it is full. `ss -ltn`: Recv-Q of the listener is the"
        " queue. Accept in a thread of its own, raise the number of connections it serves, or add workers.",
        accuses=True,
    ),
    Cause.UNREAD: CauseInfo(
        "unread",
        "its bytes had arrived and the worker had not read them",
        "tcp",
        "From the arrival of the request's first byte until the worker read it, less what held up the reading"
        " thread. It lies before the worker's own span.",
        "requests that a client sends before it has read the last answer",
        "The worker was busy or its threads too few: see what it did then in the requests before.",
        accuses=True,
    ),
    Cause.GPU: CauseInfo(
        "gpu",
        "waiting for its work on the GPU",
        "gpu",
        "In a CUDA call that waits for the device (stream, event or context synchronisation), on a CPU or asleep;"
        " or asleep in a call on the NVIDIA driver's devices. What capped clocks, cold clocks or another process"
        " added has its own line.",
        "what the driver itself does in that call; a run-queue wait while the device was still busy",
        "Nobody is accused: it is the device's own work, and what it did is not seen from the host. Compare batch"
        " and sequence length with like requests, then take a kernel profile (`nsys profile`) of the worker.",
        accuses=False,
    ),
    Cause.GPU_COPY: CauseInfo(
        "gpu copy",
        "copying between host and GPU",
        "gpu",
        "In a CUDA call that copies and returns when the data is there (cuMemcpy and its like), but for the time"
        " that it waited for work launched before, which is `gpu`.",
        "work of a process that is not followed, which the copy waits for; pageable memory is copied twice",
        "Compare the link's generation and width with its highest (`nvidia-smi -q -d PCI`; `lspci -vv`): a card"
        " that has trained down must be reseated. Otherwise copy less, from pinned memory, asynchronously.",
        accuses=True,
    ),
    Cause.GPU_ALLOC: CauseInfo(
        "gpu memory call",
        "allocating or freeing GPU memory",
        "gpu",
        "In a CUDA call that allocates or frees memory. These wait for the device and take the driver's locks.",
        "work that was on the device before: a free waits for it",
        "Allocate at start, or from a pool (ONNX Runtime: `arena_extend_strategy`, `gpu_mem_limit`; PyTorch:"
        " `expandable_segments`; CUDA: cuMemAllocAsync). Shapes that change from request to request are the usual"
        " reason.",
        accuses=True,
    ),
    Cause.GPU_FULL: CauseInfo(
        "gpu memory full",
        "allocating GPU memory, of which hardly any was left",
        "gpu",
        "The same, while at least 95 % of the device's memory was in use, or an allocation failed for want of it.",
        "allocations that would have been as slow with memory left",
        "The verdict says who holds the memory. Another process: move it away, or limit it. Its own: lower the"
        " batch size, the KV cache or the number of model instances.",
        accuses=True,
    ),
    Cause.GPU_LOAD: CauseInfo(
        "gpu code load",
        "loading code into the GPU",
        "gpu",
        "In a CUDA call that loads a module or a library; compiling included, where there is only PTX for it.",
        "nothing known",
        "It is the first use of a kernel: warm every shape up before traffic (`CUDA_MODULE_LOADING=EAGER`), and"
        " ship code for this card's architecture.",
        accuses=True,
    ),
    Cause.GPU_CLOCKS: CauseInfo(
        "gpu clocks",
        "waiting longer for the GPU because its clocks were capped",
        "nvml",
        "Of a wait for the device, the share by which its SM clock was below its highest while NVML gave a reason"
        " to hold it down: power cap, heat, power brake, board limit, or clocks set by an administrator.",
        "work that is bound by memory suffers less than its share; samples are some 100 ms apart",
        "By reason. Power: raise the limit (`nvidia-smi -pl`) or spread the load. Heat: fans, airflow, neighbours"
        " in the chassis. Brake: the power supply. Set clocks: `nvidia-smi -rgc` undoes it.",
        accuses=True,
    ),
    Cause.GPU_COLD: CauseInfo(
        "gpu cold",
        "waiting longer for the GPU because its clocks had gone down while it was idle",
        "nvml",
        "The same share where NVML gave no reason but idleness, and nothing had been asked of the device for"
        " 100 ms or more until shortly before.",
        "clocks between two samples are taken as a straight line",
        "Lock the clocks (`nvidia-smi -lgc`), turn on persistence mode (`nvidia-smi -pm 1`), or keep the device"
        " warm with a little work.",
        accuses=True,
    ),
    Cause.GPU_SHARED: CauseInfo(
        "gpu shared",
        "waiting for the GPU while it ran another process's work",
        "nvml",
        "Of a wait for the device, the share of time in which kernels of other processes ran on it, as NVML's"
        " per-process utilisation has it.",
        "that utilisation is an average over up to a second; kernels that ran at the same time count in full",
        "Move the named process to another device, or give both a part of their own (MIG; MPS with"
        " CUDA_MPS_ACTIVE_THREAD_PERCENTAGE).",
        accuses=True,
    ),
    Cause.GPU_FAULT: CauseInfo(
        "gpu fault",
        "waiting for a GPU that had reported an error",
        "nvml",
        "A wait for a device for which the driver reported an XID or a memory error that could not be corrected,"
        " or which it lost, from then on.",
        "errors that had nothing to do with this request's work",
        "The XID's number says what broke (NVIDIA's XID catalogue; `dmesg -T | grep NVRM`). 79 and 119: drain the"
        " host. 48, 63, 64, 94, 95: memory; reset the device. 13, 31, 43, 45: mostly the application's own.",
        accuses=True,
    ),
    Cause.GPU_DRIVER: CauseInfo(
        "gpu driver lock",
        "waiting for another caller in the GPU's driver",
        "sched",
        "Asleep in an ioctl on the NVIDIA driver's devices until another thread, not the device, woke it: the"
        " driver's locks are shared by all that call into it, monitoring included.",
        "calls that the driver hands to a thread of its own",
        "The named process calls into the driver at the same time: see whether a monitoring agent asks too often.",
        accuses=True,
    ),
}

N_CAUSES = len(Cause)


def one_of(*causes: Cause) -> npt.NDArray[np.bool_]:
    """A table by :class:`Cause` position: indexed with an array of causes it says which are one of these.

    A tenth of what :func:`numpy.isin` takes, for whom it sorts each time.
    """
    table = np.zeros(N_CAUSES, bool)
    table[list(causes)] = True
    return table
