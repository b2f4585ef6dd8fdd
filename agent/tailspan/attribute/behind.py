"""What stands behind every stretch of an account, worked out in arrays: a kind, and a number that says which."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from tailspan.attribute.causes import Cause, one_of
from tailspan.attribute.intervals import Flags, Ints
from tailspan.attribute.ledger import SHARES, Account
from tailspan.timeline.evidence import Table
from tailspan.wire.events import CycleFlags, RunnerFlags


class Behind(IntEnum):
    """The kind, and what its number means; those without a meaning have number 0."""

    NOBODY = 0
    RUNNER = 1  #: row of States.runners, the first of those that are the same; -1: not seen
    OCCUPANT = 2  #: row of Evidence.activations; -1: not named
    QUOTA = 3
    WAKER = 4  #: row of States.rows, the first whose waker is the same
    SYSCALL = 5  #: number
    SHORT = 6
    DEVICE = 7  #: row of States.rows: a sleep on a file or disk
    PEER = 8  #: row of Evidence.sockets
    STOP = 9  #: row of States.rows
    MEMORY = 10  #: 1: the limit of its own cgroup, 0: the host's
    COLLECTOR = 11  #: tid
    INTERRUPTS = 12  #: 1: network softirqs mostly, 0: others
    HYPERVISOR = 13
    UNTAKEN = 14  #: 1: not accepted, 0: not read
    GPU = 15  #: row of States.rows, the first that was told the same of the same GPU


#: All but the driver's locks, of which who let go is known.
_GPU = one_of(
    *(Cause.GPU, Cause.GPU_COPY, Cause.GPU_ALLOC, Cause.GPU_FULL, Cause.GPU_LOAD, Cause.GPU_CLOCKS),
    *(Cause.GPU_COLD, Cause.GPU_SHARED, Cause.GPU_FAULT),
)
_NO_SLEEP = one_of(Cause.ON_CPU, Cause.UNKNOWN, Cause.BATCHING, Cause.AWAIT, Cause.ACCEPT, Cause.UNREAD)
_UNTAKEN, _IN_LINE = one_of(Cause.ACCEPT, Cause.UNREAD), one_of(Cause.RUN_QUEUE, Cause.IRQ)
_DISK, _NETWORK = one_of(Cause.IO, Cause.PAGE_IN), one_of(Cause.UPSTREAM, Cause.NETWORK)
#: Waits whose end does not say who it was that was waited for.
_FOR_NOBODY = one_of(Cause.SOCKET, Cause.POLL, Cause.SLEEP)

Shared = tuple[Behind, Ints]


def behind(account: Account) -> tuple[Ints, Ints]:
    """(what stands behind each stretch, its number)."""
    rows, states = account.rows, account.states.rows
    cause, state = rows["cause"], rows["state"]
    seen: Flags = state >= 0
    what = np.full(len(rows), Behind.NOBODY, np.int64)
    which = np.zeros(len(rows), np.int64)
    untaken = _UNTAKEN[cause]
    _put(what, which, untaken, Behind.UNTAKEN, (cause == Cause.ACCEPT).astype(np.int64))
    if len(states):
        of = states[state]
        blocked = seen & ~_NO_SLEEP[cause]
        _put(what, which, blocked, Behind.SYSCALL, of["syscall_nr"])
        # Any wait that a task ended: who that was. Below, better answers.
        by_task = blocked & (of["waker_tid"] != 0) & ~_FOR_NOBODY[cause]
        what[by_task] = Behind.WAKER
        which[by_task] = _first_same(of["waker_tid"][by_task], state[by_task])
        _put(what, which, seen & _DISK[cause], Behind.DEVICE, state)
        network = _NETWORK[cause] & (rows["socket"] >= 0)
        _put(what, which, network, Behind.PEER, rows["socket"])
        _put(what, which, seen & (cause == Cause.STOPPED), Behind.STOP, state)
        _put(what, which, seen & (cause == Cause.RECLAIM), Behind.MEMORY, _own_limit(states)[state])
        _put(what, which, seen & (cause == Cause.GC), Behind.COLLECTOR, of["tid"])
        on_gpu = seen & _GPU[cause]
        what[on_gpu] = Behind.GPU
        same = ((of["told"] + 1) << 16 | (of["gpu"] + 1)) << 8 | of["cause"]
        which[on_gpu] = _first_same(same[on_gpu], state[on_gpu])
        runner = np.full(len(rows), -1, np.int64)
        if len(account.states.runners):
            runner = np.where(of["runner"] >= 0, _same_runner(account)[of["runner"]], -1)
        _put(what, which, seen & _IN_LINE[cause], Behind.RUNNER, runner)
    _put(what, which, cause == Cause.THROTTLED, Behind.QUOTA, which * 0)
    _put(what, which, cause == Cause.QUEUED, Behind.OCCUPANT, account.path.activation[rows["segment"]])
    return what, which


def _own_limit(states: Table) -> Ints:
    """1 where a thread's memory stalls are its own cgroup's doing: it reclaimed within that limit at some time.

    A page that is read again because it was evicted too early does not say who evicted it.
    """
    within = states["tid"][states["flags"] & CycleFlags.MEMCG != 0]
    limited: Ints = np.isin(states["tid"], within).astype(np.int64)
    return limited


def behind_shares(account: Account) -> list[Shared]:
    """The same for each of SHARES: what stands behind it, and its number by stretch."""
    zero = np.zeros(len(account.rows), np.int64)
    if not len(account.states.rows):
        return [(Behind.NOBODY, zero) for _ in SHARES]
    of = account.states.rows[account.rows["state"]]
    memcg = _own_limit(account.states.rows)[account.rows["state"]]
    network = (2 * of["net_ns"] > of["irq_ns"]).astype(np.int64)
    return [
        (Behind.INTERRUPTS, network),
        (Behind.MEMORY, memcg),
        (Behind.HYPERVISOR, zero),
        (Behind.NOBODY, zero),
        (Behind.SHORT, zero),
    ]


def _first_same(values: Ints, rows: Ints) -> Ints:
    """For each value, of those in ``rows`` the first row that has it: one number for all that are the same."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    same: Ints = rows[first][inverse]
    return same


def _put(what: Ints, which: Ints, where: Flags, kind: int, number: Ints) -> None:
    what[where] = kind
    which[where] = number[where]


def _same_runner(account: Account) -> Ints:
    """For each runner the first row that is the same culprit: by process, and by thread where it is none."""
    runners = account.states.runners
    is_thread = (runners["tid"] == 0) | (runners["flags"] & RunnerFlags.KTHREAD != 0)
    key = runners["tgid"].astype(np.int64) * 2 + is_thread
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    same: Ints = first[inverse]
    return same
