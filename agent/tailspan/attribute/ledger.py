"""Where the time went: the critical path laid over the threads' states.

Every row of an :class:`Account` is a stretch of one request's critical path with one cause. A request's rows tile
it, so its ledger sums to its wall time by construction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tailspan.attribute.causes import N_CAUSES, Cause, one_of
from tailspan.attribute.intervals import Flags, Ints, disjoint, tile
from tailspan.attribute.path import Hold, Path, critical_path
from tailspan.attribute.sleeps import socket_pieces
from tailspan.attribute.states import States, thread_states
from tailspan.timeline.evidence import Evidence, Table
from tailspan.timeline.tables import join
from tailspan.wire.spans import ActivationKind

#: How many wake-ups a wait is followed back.
MAX_HOPS = 8

#: A shorter wait is not followed: threads that hand something back and forth have thousands of them.
FOLLOW_NS = 20_000

#: Waits for another thread, which that thread's wake-up ends.
_FOR_A_THREAD = (Cause.FUTEX, Cause.GIL, Cause.PIPE, Cause.UNIX, Cause.KERNEL_LOCK, Cause.PROCESS)
#: In a call into the GPU's driver: what it is for.
_IN_GPU_CALL = (Cause.GPU, Cause.GPU_COPY)
#: ... and what makes it last.
_GPU_TROUBLE = (
    *(Cause.GPU_ALLOC, Cause.GPU_FULL, Cause.GPU_LOAD, Cause.GPU_CLOCKS, Cause.GPU_COLD, Cause.GPU_SHARED),
    *(Cause.GPU_FAULT, Cause.GPU_DRIVER),
)
#: What can hold up a thread that somebody waits for: then that is the better answer. What it does of its own
#: accord (computing, sleeping, waiting for its next piece of work) leaves the wait a wait for that thread.
_HINDERED = one_of(
    *_FOR_A_THREAD,
    *(Cause.RUN_QUEUE, Cause.THROTTLED, Cause.IRQ, Cause.STOPPED, Cause.IO, Cause.PAGE_IN),
    *(Cause.RECLAIM, Cause.GC, Cause.UPSTREAM, Cause.NETWORK),
    *(*_IN_GPU_CALL, *_GPU_TROUBLE),
)
#: The same for who has the interpreter's lock, which is given back before any system call that may sleep.
_HINDERED_WITH_GIL = one_of(
    *(Cause.GIL, Cause.KERNEL_LOCK, Cause.RUN_QUEUE, Cause.THROTTLED, Cause.IRQ, Cause.STOPPED),
    *(Cause.PAGE_IN, Cause.RECLAIM, Cause.GC),
    *(*_IN_GPU_CALL, *_GPU_TROUBLE),
)
#: What holds up a thread that has not taken a request up: it is not its work, nor its sleep until there is some.
_HELD_UP = one_of(
    *(Cause.RUN_QUEUE, Cause.THROTTLED, Cause.IRQ, Cause.STOPPED, Cause.GIL, Cause.GC, Cause.PAGE_IN),
    *(Cause.RECLAIM, Cause.KERNEL_LOCK, Cause.UNKNOWN),
    *_GPU_TROUBLE,
)

_WAITS_FOR_A_THREAD, _WORKS = one_of(*_FOR_A_THREAD), one_of(Cause.ON_CPU, *_IN_GPU_CALL)
_RUNS, _WORK = one_of(Cause.ON_CPU, Cause.GC), one_of(Cause.ON_CPU, Cause.QUEUED, Cause.GC)
_NO_SLEEP = one_of(Cause.ON_CPU, Cause.RUN_QUEUE, Cause.THROTTLED, Cause.IRQ, Cause.STOPPED)
_SLEEP_OF_POOLS = one_of(Cause.FUTEX, Cause.PAGE_IN, Cause.RECLAIM)

#: Counted per turn and spread over its time on the CPU: column of States.rows -> cause.
SHARES = (
    ("irq_ns", Cause.IRQ),
    ("reclaim_ns", Cause.RECLAIM),
    ("steal_ns", Cause.STEAL),
    ("short_blocked_ns", Cause.OTHER),
    ("short_runq_ns", Cause.RUN_QUEUE),
)

#: One stretch of one request's critical path.
_ROW = np.dtype(
    [
        ("request", "<i8"),
        ("start", "<i8"),
        ("end", "<i8"),
        ("segment", "<i8"),  # row of Account.path
        ("state", "<i8"),  # row of Account.states.rows that decided the cause; -1: the thread was not seen
        ("cause", "<i8"),
        ("chain", "<i8"),  # row of Account.chain: the thread that the wait was followed to; -1: the segment's own
        ("socket", "<i8"),  # row of Evidence.sockets that says what it waited for; -1: none
        ("settled", "<i8"),  # 1: a wait that is not to be followed further
    ]
)


#: One step of a chain of waits: a thread waited (``cause``) for ``tid``.
_LINK = np.dtype([("before", "<i8"), ("cause", "<i8"), ("tid", "<i8")])  # before: the link it follows on; -1: none


@dataclass(slots=True)
class Account:
    rows: Table  #: sorted by (request, start)
    path: Path
    states: States
    chain: Table  #: links, each behind those it follows on


def account(evidence: Evidence) -> Account:
    """Lay every request's critical path over the states of the threads it depended on."""
    path, states = critical_path(evidence), thread_states(evidence)
    tiles = tile(
        states.key_of(path.tid), path.start, path.end, states.key, states.rows["start"], states.rows["end"]
    )
    rows = np.zeros(len(tiles.parent), _ROW)
    rows["request"], rows["segment"], rows["state"] = path.request[tiles.parent], tiles.parent, tiles.cover
    rows["start"], rows["end"], rows["chain"], rows["socket"] = tiles.start, tiles.end, -1, -1
    rows["cause"] = _causes(path.hold[tiles.parent], tiles.cover, states)
    rows = _split_awaits(rows, evidence)
    done, links = [], np.empty(0, _LINK)
    for _ in range(MAX_HOPS):
        followed = _followable(rows, states)
        if not followed.any():
            break
        done.append(rows[~followed])
        rows, added = _follow_wakers(rows[followed], path, states, len(links))
        links = join((links, added), _LINK)
    rows, links = _short_of_pool_threads(join([*done, rows], _ROW), links, evidence, path, states)
    if len(states.rows):
        of_state = np.where(rows["state"] >= 0, states.rows["socket"][rows["state"]], -1)
        rows["socket"] = np.where(rows["socket"] >= 0, rows["socket"], of_state)
    return Account(rows[np.lexsort((rows["start"], rows["request"]))], path, states, links)


def _causes(hold: Ints, state: Ints, states: States) -> Ints:
    """Cause of a stretch from how the request depends on the thread and what the thread did."""
    if not len(states.rows):
        of_thread = np.full(len(state), Cause.UNKNOWN, np.int64)
    else:
        of_thread = np.where(state >= 0, states.rows["cause"][state], Cause.UNKNOWN)
    cause = of_thread.copy()
    # Behind other work: that work's time on CPU and GPU is queueing; what held the thread up holds the request up.
    worked = _WORKS[of_thread]
    cause[(hold == Hold.BEHIND) & worked] = Cause.QUEUED
    # The thread was free: a sleep is it waiting for work, but a run-queue wait is a run-queue wait.
    unhindered = ~_HELD_UP[of_thread]
    cause[unhindered & (hold == Hold.QUEUED)] = Cause.BATCHING
    cause[unhindered & (hold == Hold.AWAIT)] = Cause.AWAIT
    # Before its thread was born, or took it up, a request's bytes lay there: that much is known.
    cause[(unhindered | (of_thread == Cause.UNKNOWN)) & (hold == Hold.UNREAD)] = Cause.UNREAD
    cause[hold == Hold.ACCEPT] = Cause.ACCEPT
    cause[hold == Hold.NOWHERE] = Cause.QUEUED
    return cause


def _split_awaits(rows: Table, evidence: Evidence) -> Table:
    """A request that is suspended on the event loop waits for the answers to what its own steps have sent."""
    awaits = rows["cause"] == Cause.AWAIT
    inode, start, end, cause, of = socket_pieces(evidence.sockets)
    if not awaits.any() or not len(inode):
        return rows
    steps = evidence.activations[evidence.activations["kind"] == ActivationKind.STEP]
    steps = steps[np.lexsort((steps["start_mono_ns"], steps["tid"]))]
    sent, by = evidence.sockets["from_mono_ns"][of], evidence.sockets["tid"][of]
    _, key = np.unique(np.concatenate((steps["tid"], by)).astype(np.int64), return_inverse=True)
    of_steps, of_sockets = key[: len(steps)].astype(np.int64), key[len(steps) :].astype(np.int64)
    cover = disjoint(of_steps, steps["start_mono_ns"], steps["end_mono_ns"])
    within = tile(of_sockets, sent, sent + 1, of_steps, *cover)
    within_step = within.cover >= 0
    piece, owner = within.parent[within_step], steps["owner"][within.cover[within_step]]
    # Whose step it was: a request by its span id.
    span_id = np.frombuffer(evidence.requests["span_id"].tobytes(), ">u8").astype(np.uint64)
    order = np.argsort(span_id)
    at = order[np.minimum(np.searchsorted(span_id[order], owner), len(order) - 1)]
    mine = span_id[at] == owner
    piece, request = piece[mine], at[mine]
    order = np.lexsort((start[piece], request))
    piece, request = piece[order], request[order].astype(np.int64)
    waiting = rows[awaits]
    tiles = tile(
        waiting["request"],
        waiting["start"],
        waiting["end"],
        request,
        *disjoint(request, start[piece], end[piece]),
    )
    split = waiting[tiles.parent]
    split["start"], split["end"] = tiles.start, tiles.end
    answered = tiles.cover >= 0
    if answered.any():
        split["cause"] = np.where(answered, cause[piece][tiles.cover], Cause.AWAIT)
        split["socket"] = np.where(answered, of[piece][tiles.cover], -1)
    return join((rows[~awaits], split), _ROW)


def _followable(rows: Table, states: States) -> Flags:
    """Waits on another thread whose waker we saw: its own story is the better answer."""
    waits: Flags = (rows["end"] - rows["start"] >= FOLLOW_NS) & (rows["settled"] == 0) & (rows["state"] >= 0)
    waits &= _WAITS_FOR_A_THREAD[rows["cause"]]
    if not waits.any():
        return waits
    waker: Ints = states.rows["waker_tid"][rows["state"]]
    seen: Flags = states.key_of(waker) < len(states.tids)
    followed: Flags = waits & (waker != 0) & seen
    return followed


def _follow_wakers(waits: Table, path: Path, states: States, links: int) -> tuple[Table, Table]:
    """Replace each wait by what its waker was held up by meanwhile, and the links that say so.

    A waker that waited for the request's own thread had nothing to do: it was not held up. ``links``: how many
    there are already.
    """
    waker = states.rows["waker_tid"][waits["state"]]
    tiles = tile(
        states.key_of(waker), waits["start"], waits["end"], states.key, states.rows["start"], states.rows["end"]
    )
    link = np.zeros(len(waits), _LINK)
    link["before"], link["cause"], link["tid"] = waits["chain"], waits["cause"], waker
    added, which = np.unique(link, return_inverse=True)
    rows = waits[tiles.parent]
    rows["start"], rows["end"] = tiles.start, tiles.end
    of_waker = np.where(tiles.cover >= 0, states.rows["cause"][tiles.cover], Cause.UNKNOWN)
    with_gil = rows["cause"] == Cause.GIL
    held_up = _HINDERED[of_waker] & ~with_gil
    held_up |= _HINDERED_WITH_GIL[of_waker] & with_gil
    of_request = path.tid[rows["segment"]]
    held_up &= ~_WAITS_FOR_A_THREAD[of_waker] | (states.rows["waker_tid"][tiles.cover] != of_request)
    rows["settled"] = ~held_up
    rows["chain"] = np.where(held_up, links + which[tiles.parent], rows["chain"])
    rows["state"] = np.where(held_up, tiles.cover, rows["state"])
    rows["cause"] = np.where(held_up, of_waker, rows["cause"])
    return rows, added


def _short_of_pool_threads(
    rows: Table, links: Table, evidence: Evidence, path: Path, states: States
) -> tuple[Table, Table]:
    """While a native pool thread that the request's thread has woken waits for a CPU, so does the request.

    Its own thread may well be on a CPU: it spins at the join, or does the pool thread's share (ONNX Runtime does
    both). Pool threads are those that the worker's messages never named and that sleep on futexes only; they work
    for who woke them until they sleep again. The time may include work that the request's thread had to do anyway.
    """
    state = states.rows
    native = evidence.threads["tid"][evidence.threads["named"] == 0]
    asleep = ~_NO_SLEEP[state["cause"]]
    other_sleeps = state["tid"][asleep & ~_SLEEP_OF_POOLS[state["cause"]]]
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
    link = np.zeros(len(short), _LINK)
    link["before"], link["cause"], link["tid"] = -1, Cause.FUTEX, state["tid"][by]
    added, which = np.unique(link, return_inverse=True)
    split["state"][short], split["cause"][short], split["chain"][short] = (
        by,
        state["cause"][by],
        len(links) + which,
    )
    return join((rows[~worked], split), _ROW), join((links, added), _LINK)


def shares(account: Account) -> Ints:
    """``[len(SHARES), rows]`` ns: what of each on-cpu, queued or collecting stretch was not its own work.

    The kernel counts them per turn; a stretch that is part of a turn gets its share by length, rounded down.
    """
    rows = account.rows
    left: Ints = rows["end"] - rows["start"]
    parts = np.zeros((len(SHARES), len(rows)), np.int64)
    if not len(account.states.rows):
        return parts
    states = account.states.rows
    worked = (rows["state"] >= 0) & _WORK[rows["cause"]]
    worked &= _RUNS[states["cause"][rows["state"]]]
    at = np.flatnonzero(worked)
    state, left = rows["state"][at], left[at]
    share = left / np.maximum(states["length_ns"][state], 1)
    for part, (name, _) in zip(parts, SHARES, strict=True):
        of_state = states[name]
        if not of_state.any():
            continue
        part[at] = np.minimum((of_state[state] * share).astype(np.int64), left)
        left = left - part[at]
    return parts


def ledgers(account: Account, requests: int) -> Ints:
    """``[requests, N_CAUSES]`` ns; each row sums to the request's wall time."""
    parts = shares(account)
    rows = account.rows
    table = np.zeros(requests * N_CAUSES, np.int64)
    base = rows["request"] * N_CAUSES
    np.add.at(table, base + rows["cause"], rows["end"] - rows["start"] - parts.sum(axis=0))
    for part, (_, cause) in zip(parts, SHARES, strict=True):
        np.add.at(table, base + cause, part)
    return table.reshape(requests, N_CAUSES)
