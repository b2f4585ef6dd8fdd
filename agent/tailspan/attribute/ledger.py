"""Where the time went: the critical path laid over the threads' states.

Every row of an :class:`Account` is a stretch of one request's critical path with one cause. A request's rows tile
it, so its ledger sums to its wall time by construction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tailspan.attribute.causes import N_CAUSES, Cause
from tailspan.attribute.intervals import Ints, disjoint, tile
from tailspan.attribute.path import Hold, Path, critical_path
from tailspan.attribute.states import States, thread_states
from tailspan.timeline.evidence import Evidence, Table
from tailspan.timeline.tables import join

Flags = npt.NDArray[np.bool_]

#: How many wake-ups a wait is followed back.
MAX_HOPS = 8


#: One stretch of one request's critical path.
_ROW = np.dtype(
    [
        ("request", "<i8"),
        ("start", "<i8"),
        ("end", "<i8"),
        ("segment", "<i8"),  # row of Account.path
        ("state", "<i8"),  # row of Account.states.rows that decided the cause; -1: the thread was not seen
        ("cause", "<i8"),
        ("via", "<i8"),  # tid of the thread whose wake-up the stretch was followed to; 0: the segment's own
        ("settled", "<i8"),  # 1: a wait that is not to be followed further
    ]
)


@dataclass(slots=True)
class Account:
    rows: Table  #: sorted by (request, start)
    path: Path
    states: States

    def of_request(self, index: int) -> Account:
        first, past = np.searchsorted(self.rows["request"], (index, index + 1))
        return Account(self.rows[first:past], self.path, self.states)


def account(evidence: Evidence) -> Account:
    """Lay every request's critical path over the states of the threads it depended on."""
    path, states = critical_path(evidence), thread_states(evidence)
    tiles = tile(
        states.key_of(path.tid), path.start, path.end, states.key, states.rows["start"], states.rows["end"]
    )
    rows = np.zeros(len(tiles.parent), _ROW)
    rows["request"], rows["segment"], rows["state"] = path.request[tiles.parent], tiles.parent, tiles.cover
    rows["start"], rows["end"] = tiles.start, tiles.end
    rows["cause"] = _causes(path.hold[tiles.parent], tiles.cover, states)
    done = []
    for _ in range(MAX_HOPS):
        followed = _followable(rows, states)
        if not followed.any():
            break
        done.append(rows[~followed])
        rows = _follow_wakers(rows[followed], states)
    rows = _short_of_pool_threads(join([*done, rows], _ROW), evidence, path, states)
    return Account(rows[np.lexsort((rows["start"], rows["request"]))], path, states)


def _causes(hold: Ints, state: Ints, states: States) -> Ints:
    """Cause of a stretch from how the request depends on the thread and what the thread did."""
    if not len(states.rows):
        of_thread = np.full(len(state), Cause.UNKNOWN, np.int64)
    else:
        of_thread = np.where(state >= 0, states.rows["cause"][state], Cause.UNKNOWN)
    cause = of_thread.copy()
    # Behind other work: that work's CPU time is queueing; what held the thread up holds the request up.
    cause[(hold == Hold.BEHIND) & (of_thread == Cause.ON_CPU)] = Cause.QUEUED
    # The thread was free: a sleep is it waiting for work, but a run-queue wait is a run-queue wait.
    idle = (hold == Hold.QUEUED) | (hold == Hold.AWAIT)
    unhindered = ~np.isin(of_thread, (Cause.RUN_QUEUE, Cause.THROTTLED, Cause.IRQ, Cause.UNKNOWN))
    cause[idle & unhindered & (hold == Hold.QUEUED)] = Cause.BATCHING
    cause[idle & unhindered & (hold == Hold.AWAIT)] = Cause.AWAIT
    cause[hold == Hold.NOWHERE] = Cause.QUEUED
    return cause


def _followable(rows: Table, states: States) -> Flags:
    """Waits on another thread whose waker we saw: its own story is the better answer."""
    waits: Flags = (rows["cause"] == Cause.FUTEX) & (rows["state"] >= 0) & (rows["settled"] == 0)
    if not waits.any():
        return waits
    waker: Ints = states.rows["waker_tid"][rows["state"]]
    seen: Flags = states.key_of(waker) < len(states.tids)
    followed: Flags = waits & (waker != 0) & seen
    return followed


def _follow_wakers(waits: Table, states: States) -> Table:
    """Replace each wait by what its waker did meanwhile. The waker's CPU time stays a wait: for that thread."""
    waker = states.rows["waker_tid"][waits["state"]]
    tiles = tile(
        states.key_of(waker), waits["start"], waits["end"], states.key, states.rows["start"], states.rows["end"]
    )
    rows = waits[tiles.parent]
    rows["start"], rows["end"] = tiles.start, tiles.end
    rows["via"] = waker[tiles.parent]
    of_waker = np.where(tiles.cover >= 0, states.rows["cause"][tiles.cover], Cause.UNKNOWN)
    # The waker worked, or was not seen: the evidence is the wait itself, whose waker we know.
    keeps_waiting = (of_waker == Cause.ON_CPU) | (of_waker == Cause.UNKNOWN)
    rows["settled"] = keeps_waiting
    rows["state"] = np.where(keeps_waiting, rows["state"], tiles.cover)
    rows["cause"] = np.where(keeps_waiting, Cause.FUTEX, of_waker)
    return rows


def _short_of_pool_threads(rows: Table, evidence: Evidence, path: Path, states: States) -> Table:
    """While a native pool thread that the request's thread has woken waits for a CPU, so does the request.

    Its own thread may well be on a CPU: it spins at the join, or does the pool thread's share (ONNX Runtime does
    both). Pool threads are those that the worker's messages never named and that sleep on futexes only; they work
    for who woke them until they sleep again. The time may include work that the request's thread had to do anyway.
    """
    state = states.rows
    native = evidence.threads["tid"][evidence.threads["named"] == 0]
    asleep = (state["cause"] != Cause.ON_CPU) & (state["cause"] != Cause.RUN_QUEUE)
    asleep &= state["cause"] != Cause.THROTTLED
    other_sleeps = state["tid"][asleep & (state["cause"] != Cause.FUTEX)]
    pool = np.isin(state["tid"], native) & ~np.isin(state["tid"], other_sleeps)
    # The sleep before a state, in the same thread: who ended it is whom the thread works for.
    before = np.maximum.accumulate(np.where(asleep, np.arange(len(state)), -1)) if len(state) else asleep
    woken = pool & ~asleep & (state["cause"] != Cause.ON_CPU) & (before >= 0)
    starved = np.flatnonzero(woken)
    starved = starved[state["tid"][before[starved]] == state["tid"][starved]]
    boss = state["waker_tid"][before[starved]]
    starved, boss = starved[boss != 0], states.key_of(boss[boss != 0])
    order = np.lexsort((state["start"][starved], boss))
    starved, boss = starved[order], boss[order]
    cover = disjoint(boss, state["start"][starved], state["end"][starved])

    worked = (rows["cause"] == Cause.ON_CPU) & (path.hold[rows["segment"]] == Hold.ON)
    working = rows[worked]
    tiles = tile(states.key_of(path.tid[working["segment"]]), working["start"], working["end"], boss, *cover)
    split = working[tiles.parent]
    split["start"], split["end"] = tiles.start, tiles.end
    short = np.flatnonzero(tiles.cover >= 0)
    by = starved[tiles.cover[short]]
    split["state"][short], split["cause"][short], split["via"][short] = by, state["cause"][by], state["tid"][by]
    return join((rows[~worked], split), _ROW)


def shares(account: Account) -> tuple[Ints, Ints, Ints]:
    """(interrupts, short blocks, short run-queue waits) inside each on-cpu or queued stretch, in ns.

    The kernel counts them per turn; a stretch that is part of a turn gets its share by length, rounded down.
    """
    rows = account.rows
    left: Ints = rows["end"] - rows["start"]
    if not len(account.states.rows):
        nothing = np.zeros(len(rows), np.int64)
        return nothing, nothing, nothing
    state = account.states.rows[rows["state"]]
    worked = (rows["state"] >= 0) & (state["cause"] == Cause.ON_CPU)
    worked &= (rows["cause"] == Cause.ON_CPU) | (rows["cause"] == Cause.QUEUED)
    share = np.where(worked, left / np.maximum(state["length_ns"], 1), 0.0)
    found = []
    for name in ("irq_ns", "short_blocked_ns", "short_runq_ns"):
        part = np.minimum((state[name] * share).astype(np.int64), left)
        left = left - part
        found.append(part)
    return found[0], found[1], found[2]


def ledgers(account: Account, requests: int) -> Ints:
    """``[requests, N_CAUSES]`` ns; each row sums to the request's wall time."""
    irq, short_blocked, short_runq = shares(account)
    rows = account.rows
    table = np.zeros(requests * N_CAUSES, np.int64)
    base = rows["request"] * N_CAUSES
    whole = rows["end"] - rows["start"] - irq - short_blocked - short_runq
    np.add.at(table, base + rows["cause"], whole)
    np.add.at(table, base + Cause.IRQ, irq)
    np.add.at(table, base + Cause.OTHER, short_blocked)
    np.add.at(table, base + Cause.RUN_QUEUE, short_runq)
    return table.reshape(requests, N_CAUSES)
