"""What each thread did at every instant, as a table of states that tile its life.

From the kernel's records: a turn gives *on cpu*, *blocked* and *run queue*, the last split by who held the CPU.
Where a thread's turns do not join, a record was lost, and exactly that stretch is ``unknown``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tailspan.attribute.causes import Cause
from tailspan.attribute.intervals import Ints, disjoint, tile
from tailspan.timeline.evidence import Evidence, Table
from tailspan.timeline.tables import FOREVER, join
from tailspan.wire.events import RUNNER, CycleFlags
from tailspan.wire.syscalls import SYSCALLS

_ROW = np.dtype(
    [
        ("start", "<i8"),
        ("end", "<i8"),
        ("tid", "<i8"),
        ("cause", "<i8"),
        ("runner", "<i8"),  # row of States.runners; -1: nobody known
        ("waker_tid", "<i8"),  # who ended a blocked state; 0: unknown, or an interrupt did
        ("waker_comm", "S16"),
        ("syscall_nr", "<i4"),
        ("pad", "<i4"),
        ("length_ns", "<i8"),  # of an on-cpu state before it was cut to the window
        ("irq_ns", "<i8"),  # spread evenly over that length, as are the next two
        ("short_blocked_ns", "<i8"),
        ("short_runq_ns", "<i8"),
    ]
)


#: CPU time in which a thread that timed out looks again and goes back to sleep.
RECHECK_NS = 100_000


@dataclass(slots=True)
class States:
    """``rows`` sorted by (tid, start), disjoint within a tid, cut to the time that the requests span.

    ``key`` is the dense index of the tid, for :func:`tile`.
    """

    rows: Table
    key: Ints
    tids: Ints  #: sorted; position = key
    runners: Table

    def key_of(self, tid: npt.NDArray[np.generic]) -> Ints:
        """Key per tid; a tid that was never seen gets a key without states."""
        tid = tid.astype(np.int64)
        at = np.minimum(np.searchsorted(self.tids, tid), max(len(self.tids) - 1, 0))
        known = self.tids[at] == tid if len(self.tids) else np.zeros(len(tid), bool)
        return np.where(known, at, len(self.tids)).astype(np.int64)


def thread_states(evidence: Evidence) -> States:
    cycles = evidence.cycles
    runners, waits = _waits(cycles, evidence.slices)
    parts = [_running(cycles), _blocked(cycles), waits, _tails(evidence)]
    rows = join(parts, _ROW)
    rows["length_ns"] = rows["end"] - rows["start"]
    if len(evidence.requests):
        from_, to = evidence.requests["start_mono_ns"].min(), evidence.requests["end_mono_ns"].max()
        np.clip(rows["start"], from_, to, out=rows["start"])
        np.clip(rows["end"], from_, to, out=rows["end"])
    # These rows are wide and many: gather them once. Each part is in order already, which a stable sort of one
    # number makes use of.
    inside = np.flatnonzero(rows["end"] > rows["start"])
    order = np.argsort(_in_order(rows["tid"][inside], rows["start"][inside]), kind="stable")
    rows = rows[inside[order]]
    tids, key = np.unique(rows["tid"], return_inverse=True)
    rows["start"], rows["end"] = disjoint(key, rows["start"], rows["end"])
    keep = rows["end"] > rows["start"]
    if not keep.all():
        rows, key = rows[keep], key[keep]
    _join_timed_waits(rows)
    return States(rows, key.astype(np.int64), tids, runners)


def _join_timed_waits(rows: Table) -> None:
    """A wait in slices, each ended by its timeout, was a wait for whoever ended the last one.

    Python waits for its interpreter lock like that, 5 ms at a time. Waits in a row: on futexes, with hardly any
    CPU time in between (the thread may well have to queue for a CPU to look and go to sleep again).
    """
    asleep = np.flatnonzero(~np.isin(rows["cause"], (Cause.ON_CPU, Cause.RUN_QUEUE, Cause.THROTTLED)))
    if not len(asleep):
        return
    waits = rows[asleep]
    worked = np.cumsum(np.where(rows["cause"] == Cause.ON_CPU, rows["end"] - rows["start"], 0))[asleep]
    futex = waits["cause"] == Cause.FUTEX
    goes_on = futex[:-1] & futex[1:] & (waits["waker_tid"][:-1] == 0) & (waits["tid"][:-1] == waits["tid"][1:])
    goes_on &= np.diff(worked) < RECHECK_NS
    # The last wait of each run: where it does not go on, and back from there.
    ends = np.flatnonzero(np.append(~goes_on, True))
    last = ends[np.searchsorted(ends, np.arange(len(waits)))]
    timed_out = futex & (waits["waker_tid"] == 0)
    for field in ("waker_tid", "waker_comm"):
        rows[field][asleep] = np.where(timed_out, waits[field][last], waits[field])


def _in_order(tid: Ints, start: Ints) -> Ints:
    """One number that sorts by (tid, start)."""
    if not len(tid):
        return tid
    origin = start.min()
    ordered: Ints = tid * (start.max() - origin + 1) + (start - origin)
    return ordered


def _rows(count: int) -> Table:
    rows = np.zeros(count, _ROW)
    rows["runner"] = -1
    rows["syscall_nr"] = -1
    return rows


def _running(cycles: Table) -> Table:
    rows = _rows(len(cycles))
    rows["start"], rows["end"] = cycles["run_mono_ns"], cycles["off_mono_ns"]
    rows["tid"], rows["cause"] = cycles["tid"], Cause.ON_CPU
    for name in ("irq_ns", "short_blocked_ns", "short_runq_ns"):
        rows[name] = cycles[name]
    # A thread seen asleep at adoption did not run before, it was not seen.
    ran: Table = rows[cycles["flags"] & (CycleFlags.SEEDED | CycleFlags.BORN) == 0]
    return ran


def _blocked(cycles: Table) -> Table:
    asleep = cycles[cycles["ready_mono_ns"] > cycles["off_mono_ns"]]
    rows = _rows(len(asleep))
    rows["start"], rows["end"] = asleep["off_mono_ns"], asleep["ready_mono_ns"]
    rows["tid"] = asleep["tid"]
    rows["cause"] = blocked_cause(asleep["syscall_nr"], asleep["flags"])
    rows["syscall_nr"] = asleep["syscall_nr"]
    by_task = asleep["flags"] & CycleFlags.WAKER_IRQ == 0
    rows["waker_tid"] = np.where(by_task, asleep["waker_tid"], 0)
    rows["waker_comm"] = np.where(by_task, asleep["waker_comm"], b"")
    return rows


def _waits(cycles: Table, slices: Table) -> tuple[Table, Table]:
    """Run-queue waits, split by who held the CPU; and the table of those runners."""
    waiting = cycles[cycles["on_mono_ns"] > cycles["ready_mono_ns"]]
    inline = cycles[cycles["flags"] & CycleFlags.RUNNER != 0]
    cpu = np.concatenate((slices["cpu"], inline["wait_cpu"])).astype(np.int64)
    start = np.concatenate((slices["start_mono_ns"], inline["runner_since_mono_ns"]))
    end = np.concatenate((slices["end_mono_ns"], inline["on_mono_ns"]))
    runners = join((slices["runner"], inline["runner"]), RUNNER)
    order = np.lexsort((start, cpu))
    cpu, runners = cpu[order], runners[order]
    start, end = disjoint(cpu, start[order], end[order])

    tiles = tile(
        waiting["wait_cpu"].astype(np.int64), waiting["ready_mono_ns"], waiting["on_mono_ns"], cpu, start, end
    )
    rows = _rows(len(tiles.parent))
    rows["start"], rows["end"] = tiles.start, tiles.end
    rows["tid"] = waiting["tid"][tiles.parent]
    out_of_quota = waiting["flags"][tiles.parent] & CycleFlags.THROTTLED != 0
    # Never accuse a neighbour of the victim's own limit: quota comes first.
    rows["cause"] = np.where(out_of_quota, Cause.THROTTLED, Cause.RUN_QUEUE)
    rows["runner"] = np.where(out_of_quota, -1, tiles.cover)
    return runners, rows


def _tails(evidence: Evidence) -> Table:
    """What comes behind a thread's last record: the turn that is not over, or that ended with the thread.

    The kernel was asked for open turns when the requests had ended, and an exit says when its last turn began.
    Where neither joins the last record, records in between were lost: nothing is assumed, and that time stays
    unknown.
    """
    open_, gone = evidence.open_threads, evidence.threads
    gone = gone[gone["gone_mono_ns"] < FOREVER]
    ran = _rows(len(gone))
    ran["start"], ran["end"], ran["tid"] = gone["last_run_mono_ns"], gone["gone_mono_ns"], gone["tid"]
    ran["cause"] = Cause.ON_CPU

    off = open_["off_mono_ns"] > 0
    running = _rows(len(open_))
    running["start"], running["tid"], running["cause"] = open_["run_mono_ns"], open_["tid"], Cause.ON_CPU
    running["end"] = np.where(off, open_["off_mono_ns"], open_["taken_mono_ns"])
    for name in ("irq_ns", "short_blocked_ns", "short_runq_ns"):
        running[name] = open_[name]
    running = running[~off | (open_["flags"] & CycleFlags.SEEDED == 0)]

    open_ = open_[off]
    woken = open_["ready_mono_ns"] > 0
    blocked = _rows(len(open_))
    blocked["start"], blocked["tid"] = open_["off_mono_ns"], open_["tid"]
    blocked["end"] = np.where(woken, open_["ready_mono_ns"], open_["taken_mono_ns"])
    blocked["cause"] = blocked_cause(open_["syscall_nr"], open_["flags"])
    blocked["syscall_nr"] = open_["syscall_nr"]
    blocked["waker_tid"] = np.where(woken, open_["waker_tid"], 0)
    blocked["waker_comm"] = np.where(woken, open_["waker_comm"], b"")
    waiting = _rows(int(woken.sum()))
    waiting["start"], waiting["tid"] = open_["ready_mono_ns"][woken], open_["tid"][woken]
    waiting["end"], waiting["cause"] = open_["taken_mono_ns"][woken], Cause.RUN_QUEUE
    return join((ran, running, blocked, waiting), _ROW)


_BY_SYSCALL = {
    Cause.FUTEX: ("futex", "futex_waitv", "futex_wait"),
    Cause.IO: (
        *(
            "read",
            "pread64",
            "readv",
            "preadv",
            "preadv2",
            "write",
            "pwrite64",
            "writev",
            "pwritev",
            "pwritev2",
        ),
        *("fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync", "sendfile", "copy_file_range"),
        *("open", "openat", "openat2", "creat", "stat", "fstat", "lstat", "newfstatat", "statx", "access"),
        *(
            "getdents",
            "getdents64",
            "unlink",
            "unlinkat",
            "rename",
            "renameat",
            "renameat2",
            "mkdir",
            "rmdir",
        ),
        *("ftruncate", "truncate", "fallocate", "readahead", "fadvise64", "io_getevents", "io_submit"),
        *("mmap", "madvise", "mlock", "swapon", "close", "flock", "io_uring_enter"),
    ),
    Cause.SOCKET: (
        *("recvfrom", "recvmsg", "recvmmsg", "sendto", "sendmsg", "sendmmsg", "accept", "accept4", "connect"),
        *("shutdown",),
    ),
    Cause.POLL: ("poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait", "epoll_pwait2"),
    Cause.SLEEP: ("nanosleep", "clock_nanosleep", "pause", "rt_sigtimedwait", "rt_sigsuspend"),
}
_CAUSE_OF_NR = np.full(len(SYSCALLS), Cause.OTHER, np.int64)
for _cause, _names in _BY_SYSCALL.items():
    for _name in _names:
        if _name in SYSCALLS:
            _CAUSE_OF_NR[SYSCALLS.index(_name)] = _cause


def blocked_cause(syscall_nr: npt.NDArray[np.int32], flags: npt.NDArray[np.uint32]) -> Ints:
    """Coarse reason of a sleep: from the system call it sleeps in; the kernel's own I/O-wait mark comes first.

    ``read`` and ``write`` count as I/O although the descriptor may be a pipe or a socket.
    """
    nr = syscall_nr.astype(np.int64)
    known = (nr >= 0) & (nr < len(_CAUSE_OF_NR))
    cause = np.where(known, _CAUSE_OF_NR[np.where(known, nr, 0)], Cause.OTHER)
    return np.where(flags & CycleFlags.IOWAIT != 0, Cause.IO, cause).astype(np.int64)
