"""What a nanosecond of a request can have been spent on. One row per cause; the order is the ledger's columns.

Columns are stored in baselines and segments by position, so causes are appended at the end only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


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


@dataclass(frozen=True, slots=True)
class CauseInfo:
    label: str  #: in the ledger
    words: str  #: completes "… of it: "
    probe: str  #: the probe without which this is unknowable, a name in collect.bpf.probes; "" for the client's
    bias: str  #: what the number may wrongly include
    accuses: bool  #: somebody or something outside the request's own work did it


CAUSES: dict[Cause, CauseInfo] = {
    Cause.ON_CPU: CauseInfo(
        "on cpu",
        "its own work on the CPU",
        "sched",
        "hypervisor steal, page faults that do not sleep, waits below the floor of a turn that is not over",
        accuses=False,
    ),
    Cause.RUN_QUEUE: CauseInfo(
        "run queue",
        "ready to run, waiting for a CPU",
        "sched",
        "wake-up latency of an idle CPU is listed as runner 'idle'",
        accuses=True,
    ),
    Cause.THROTTLED: CauseInfo(
        "throttled",
        "out of its own cgroup's CPU quota",
        "sched",
        "the run-queue wait that follows the quota's refill, up to the switch-in",
        accuses=True,
    ),
    Cause.IRQ: CauseInfo(
        "interrupts",
        "interrupt handlers and softirqs on its CPU",
        "irq",
        "softirqs that the request's own sends raise over loopback",
        accuses=True,
    ),
    Cause.FUTEX: CauseInfo(
        "blocked: futex", "waiting for a lock or another thread", "sched", "the GIL and idle pool waits", True
    ),
    Cause.IO: CauseInfo(
        "blocked: io",
        "waiting for a file or disk",
        "sched",
        "page-ins, which the kernel also marks as I/O wait",
        True,
    ),
    Cause.SOCKET: CauseInfo("blocked: socket", "waiting for a socket", "sched", "unix sockets", True),
    Cause.POLL: CauseInfo(
        "blocked: poll", "waiting in poll or epoll", "sched", "what it polled is not known here", True
    ),
    Cause.SLEEP: CauseInfo("blocked: sleep", "sleeping on a timer", "sched", "", True),
    Cause.OTHER: CauseInfo(
        "blocked: other",
        "blocked for another reason",
        "sched",
        "pipes, waits for children, page faults, stops",
        True,
    ),
    Cause.QUEUED: CauseInfo(
        "queued", "waiting for a thread that worked for others", "", "the CPU time of that other work", True
    ),
    Cause.BATCHING: CauseInfo(
        "batching", "waiting for its batch to fill or start", "", "hand-over between threads", False
    ),
    Cause.AWAIT: CauseInfo(
        "awaiting",
        "suspended on the event loop, which was not busy",
        "",
        "event-loop steps below the floor",
        False,
    ),
    Cause.UNKNOWN: CauseInfo("unknown", "not visible to any probe", "", "", False),
}

N_CAUSES = len(Cause)
