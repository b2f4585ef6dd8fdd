"""Why a thread slept: from the state it slept in, what the kernel marked, the object it slept on, and the call.

Every rule takes precedence over those below it:

1. stopped: the scheduler state says so
2. memory reclaim: it slept in there, or the kernel calls it a memory stall (so it does with a page that is read
   again because it was evicted too early)
3. page-in: in no system call, and the kernel calls it I/O wait
4. a lock of the kernel: marked while it went to sleep; then I/O, as the kernel calls it
5. the object: the interpreter's lock, another futex, a file, a pipe, a unix or TCP socket, a GPU
6. the system call alone
"""

from __future__ import annotations

import numpy as np

from tailspan.attribute.causes import Cause
from tailspan.attribute.intervals import Flags, Ints, disjoint, tile
from tailspan.timeline.evidence import Meta, Table
from tailspan.timeline.tables import join
from tailspan.wire.events import CycleFlags, ObjectKind, SocketFlags, SocketOp
from tailspan.wire.syscalls import SYSCALLS

#: include/linux/sched.h: __TASK_STOPPED, __TASK_TRACED, TASK_FROZEN (since 6.1; before, frozen tasks slept in D).
STOPPED = 0x4 | 0x8 | 0x8000

_BY_SYSCALL = {
    Cause.FUTEX: ("futex", "futex_waitv", "futex_wait"),
    Cause.IO: (
        *("pread64", "readv", "preadv", "preadv2", "pwrite64", "writev", "pwritev", "pwritev2", "read", "write"),
        *("fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync", "sendfile", "copy_file_range"),
        *("open", "openat", "openat2", "creat", "stat", "fstat", "lstat", "newfstatat", "statx", "access"),
        *("getdents", "getdents64", "unlink", "unlinkat", "rename", "renameat", "renameat2", "mkdir", "rmdir"),
        *("ftruncate", "truncate", "fallocate", "readahead", "fadvise64", "io_getevents", "io_submit"),
        *("swapon", "close", "flock", "io_uring_enter"),
    ),
    Cause.SOCKET: (
        *("recvfrom", "recvmsg", "recvmmsg", "sendto", "sendmsg", "sendmmsg", "accept", "accept4", "connect"),
        *("shutdown",),
    ),
    Cause.POLL: ("poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait", "epoll_pwait2"),
    Cause.SLEEP: ("nanosleep", "clock_nanosleep", "pause", "rt_sigtimedwait", "rt_sigsuspend"),
    # They sleep for the locks of the address space, if not for I/O; not all of those report contention.
    Cause.KERNEL_LOCK: ("mmap", "munmap", "mremap", "mprotect", "madvise", "brk", "mlock", "mlock2", "munlock"),
    Cause.PROCESS: ("fork", "vfork", "clone", "clone3", "execve", "execveat", "wait4", "waitid"),
}
#: Kernel threads that hand on what the device did: of its interrupts, its queues, its page faults.
_GPU_KTHREADS = (b"irq/", b"nv_", b"nvidia", b"UVM", b"kworker")
_CAUSE_OF_NR = np.full(len(SYSCALLS), Cause.OTHER, np.int64)
for _cause, _names in _BY_SYSCALL.items():
    for _name in _names:
        if _name in SYSCALLS:
            _CAUSE_OF_NR[SYSCALLS.index(_name)] = _cause

_BY_OBJECT = {
    ObjectKind.FILE: Cause.IO,
    ObjectKind.DIRECTORY: Cause.IO,
    ObjectKind.BLOCK_DEVICE: Cause.IO,
    ObjectKind.PIPE: Cause.PIPE,
    ObjectKind.TCP: Cause.SOCKET,
    ObjectKind.UNIX: Cause.UNIX,
    ObjectKind.SOCKET: Cause.SOCKET,
}
_CAUSE_OF_OBJECT = np.full(len(ObjectKind), -1, np.int64)
for _kind, _cause in _BY_OBJECT.items():
    _CAUSE_OF_OBJECT[_kind] = _cause


def causes(asleep: Table, meta: Meta) -> Ints:
    """Cause of each sleep; rows are THREAD_CYCLE or THREAD_STATE, whose fields have the same names."""
    nr = asleep["syscall_nr"].astype(np.int64)
    known = (nr >= 0) & (nr < len(_CAUSE_OF_NR))
    cause = np.where(known, _CAUSE_OF_NR[np.where(known, nr, 0)], Cause.OTHER)
    by_object = _CAUSE_OF_OBJECT[np.minimum(asleep["object_kind"], len(ObjectKind) - 1)]
    cause = np.where(by_object >= 0, by_object, cause)
    cause = np.where(_on_runtime_lock(asleep, meta.runtime_locks), Cause.GIL, cause)
    on_gpu = asleep["object_kind"] == ObjectKind.CHAR_DEVICE
    on_gpu &= np.isin(asleep["object_dev"] >> 20, meta.gpu_majors)
    cause = np.where(on_gpu, Cause.GPU, cause)
    flags = asleep["flags"]
    iowait = flags & CycleFlags.IOWAIT != 0
    cause = np.where(iowait, Cause.IO, cause)
    cause = np.where(flags & CycleFlags.KERNEL_LOCK != 0, Cause.KERNEL_LOCK, cause)
    if on_gpu.any():
        cause = np.where(on_gpu & _in_driver_lock(asleep), Cause.GPU_DRIVER, cause)
    cause = np.where(iowait & (nr < 0), Cause.PAGE_IN, cause)
    cause = np.where(flags & CycleFlags.MEMSTALL != 0, Cause.RECLAIM, cause)
    return np.where(asleep["state"] & STOPPED != 0, Cause.STOPPED, cause).astype(np.int64)


def _in_driver_lock(asleep: Table) -> Flags:
    """Of sleeps on the GPU's devices: for another caller's sake. The device's own interrupts come through kernel
    threads of the driver."""
    locked: Flags = asleep["flags"] & CycleFlags.KERNEL_LOCK != 0
    by_task = (asleep["waker_tid"] != 0) & (
        asleep["flags"] & (CycleFlags.WAKER_IRQ | CycleFlags.WAKER_SOFTIRQ) == 0
    )
    comm = asleep["waker_comm"].astype("S16")
    for prefix in _GPU_KTHREADS:
        by_task &= ~np.char.startswith(comm, prefix)
    locked |= by_task & (asleep["syscall_nr"] == SYSCALLS.index("ioctl"))
    return locked


def _on_runtime_lock(asleep: Table, runtime_locks: dict[str, list[list[int]]]) -> Flags:
    found = np.zeros(len(asleep), bool)
    futex = asleep["object_kind"] == ObjectKind.FUTEX
    for tgid, ranges in runtime_locks.items():
        for first, past in ranges:
            inside = (asleep["object"] >= first) & (asleep["object"] < past)
            found |= futex & (asleep["tgid"] == int(tgid)) & inside
    return found


def split_by_socket(rows: Table, sockets: Table) -> Table:
    """Split waits on TCP sockets (rows of States, cause SOCKET) into the network's part and the peer's."""
    waits = (rows["cause"] == Cause.SOCKET) & (rows["object"] != 0)
    pieces = socket_pieces(sockets)
    if not waits.any() or not len(pieces[0]):
        return rows
    inode, start, end, cause, of = pieces
    order = np.lexsort((start, inode))
    inode, start, end, cause, of = inode[order], start[order], end[order], cause[order], of[order]
    waiting = rows[waits]
    _, key = np.unique(np.concatenate((inode, waiting["object"])), return_inverse=True)
    of_pieces, of_waits = key[: len(inode)].astype(np.int64), key[len(inode) :].astype(np.int64)
    cover = disjoint(of_pieces, start, end)
    tiles = tile(of_waits, waiting["start"], waiting["end"], of_pieces, *cover)
    split = waiting[tiles.parent]
    split["start"], split["end"] = tiles.start, tiles.end
    seen = tiles.cover >= 0
    split["cause"] = np.where(seen, cause[tiles.cover], Cause.SOCKET)
    split["socket"] = np.where(seen, of[tiles.cover], -1)
    return join((rows[~waits], split), rows.dtype)


def socket_pieces(sockets: Table) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """(inode, start, end, cause, row): what each connection waited for, where it waited for anybody."""
    flags = sockets["flags"]
    idle = (flags & SocketFlags.ACCEPTED != 0) & (flags & SocketFlags.MESSAGE != 0)  # kept alive, nothing was due
    rows = np.flatnonzero(~idle)
    record = sockets[rows]
    start, end = record["from_mono_ns"], record["to_mono_ns"]
    # An answer may have come before the record of what was sent.
    due = np.where(record["arrived_mono_ns"] > 0, np.clip(record["arrived_mono_ns"], start, end), end)
    # Our bytes were on their way until they were acknowledged, or until we had sent the last of them again.
    sent = np.maximum(record["acked_mono_ns"], record["retransmit_mono_ns"])
    transfer = (record["out_of_order"] > 0) | (record["flags"] & SocketFlags.BULK != 0)
    sent = np.clip(np.where(transfer, due, sent), start, due)
    receive = record["op"] == SocketOp.RECEIVE
    sent = np.where(receive, sent, end)
    due = np.where(receive, due, end)
    closed = (record["op"] == SocketOp.SEND) & (record["flags"] & SocketFlags.ZERO_WINDOW != 0)
    network = np.where(closed, Cause.UPSTREAM, Cause.NETWORK)
    inode = record["socket"].astype(np.int64)
    return (
        np.concatenate((inode, inode)),
        np.concatenate((start, sent)),
        np.concatenate((sent, due)),
        np.concatenate((network, np.full(len(rows), Cause.UPSTREAM, np.int64))),
        np.concatenate((rows, rows)),
    )
