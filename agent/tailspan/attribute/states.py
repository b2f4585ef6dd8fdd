"""What each thread did at every instant, as a table of states that tile its life.

From the kernel's records: a turn gives *on cpu*, *blocked* and *run queue*, the last split by who held the CPU.
Where a thread's turns do not join, a record was lost, and exactly that stretch is ``unknown``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tailspan.attribute import gpu, sleeps
from tailspan.attribute.causes import Cause, one_of
from tailspan.attribute.intervals import Flags, Ints, disjoint, tile, tile_by_thread, tile_summed
from tailspan.timeline.arrivals import began
from tailspan.timeline.evidence import Evidence, Table
from tailspan.timeline.tables import FOREVER, join
from tailspan.wire.events import RUNNER, CycleFlags, RunnerFlags

_ROW = np.dtype(
    [
        ("start", "<i8"),
        ("end", "<i8"),
        ("tid", "<i8"),
        ("cause", "<i8"),
        ("runner", "<i8"),  # row of States.runners; -1: nobody known
        ("waker_tid", "<i8"),  # who ended a blocked state; 0: unknown, or an interrupt did
        ("waker_comm", "S16"),
        ("waker_tgid", "<i4"),
        ("syscall_nr", "<i4"),
        ("state", "<u4"),  # prev_state of a blocked state
        ("flags", "<u4"),  # of the cycle: what it may have been blocked on
        ("prio", "<u4"),  # 0 where it is not known
        ("cpu", "<i4"),
        ("object", "<i8"),  # what it slept on; its kind decided the cause
        ("object_dev", "<u4"),
        ("tgid", "<i4"),
        ("socket", "<i8"),  # row of Evidence.sockets that says what the connection waited for; -1: none
        ("call", "<i8"),  # row of Evidence.gpu_calls that it was in; -1: none
        ("told", "<i8"),  # row of the GPU table that told its cause, see attribute.gpu; -1: none
        ("gpu", "<i8"),  # row of Meta.gpus; -1: not known
        ("length_ns", "<i8"),  # of an on-cpu state before it was cut to the window
        ("irq_ns", "<i8"),  # spread evenly over that length, as are the next ones
        ("net_ns", "<i8"),  # of irq_ns
        ("reclaim_ns", "<i8"),
        ("steal_ns", "<i8"),
        ("short_blocked_ns", "<i8"),
        ("short_runq_ns", "<i8"),
    ]
)
_COUNTED = ("irq_ns", "net_ns", "reclaim_ns", "short_blocked_ns", "short_runq_ns")

_OF_GPU = one_of(Cause.GPU, Cause.GPU_DRIVER)
_AWAKE = one_of(Cause.ON_CPU, Cause.GC, Cause.IRQ, Cause.RUN_QUEUE, Cause.THROTTLED)
_FUTEX = one_of(Cause.FUTEX, Cause.GIL)
_RUNS = one_of(Cause.ON_CPU, Cause.GC)

#: CPU time in which a thread that timed out looks again and goes back to sleep.
RECHECK_NS = 100_000
#: Futex words nearer to each other belong to one lock: glibc's condition variable has 48 bytes and several words.
ONE_LOCK_BYTES = 64


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
    rows, runners = _all_rows(evidence)
    rows["length_ns"] = rows["end"] - rows["start"]
    _steal(rows, evidence.samples)
    rows = _split_by_pause(rows, evidence.pauses)
    if len(evidence.requests):
        from_, to = began(evidence.requests).min(), evidence.requests["end_mono_ns"].max()
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
    rows = _split_by_holder(rows)
    if len(evidence.gpu_calls) or _OF_GPU[rows["cause"]].any():
        rows = gpu.split(rows, evidence)
        rows = rows[np.argsort(_in_order(rows["tid"], rows["start"]), kind="stable")]
    key = np.searchsorted(tids, rows["tid"])
    return States(rows, key.astype(np.int64), tids, runners)


def _all_rows(evidence: Evidence) -> tuple[Table, Table]:
    """In no order, uncut; and their runners. What they are made of goes with it: in a storm that is as large."""
    cycles = evidence.cycles
    runners, waits = _waits(cycles, evidence.slices)
    blocked = join((_blocked(cycles, evidence), _blocked_still(evidence)), _ROW)
    parts = (_running(cycles), sleeps.split_by_socket(blocked, evidence.sockets), waits, _tails(evidence))
    return join(parts, _ROW), runners


def _join_timed_waits(rows: Table) -> None:
    """A wait in slices, each ended by its timeout, was a wait for whoever ended the last one.

    Python waits for its interpreter lock like that, 5 ms at a time. Waits in a row: on futexes, with hardly any
    CPU time in between (the thread may well have to queue for a CPU to look and go to sleep again).
    """
    asleep = np.flatnonzero(~_AWAKE[rows["cause"]])
    if not len(asleep):
        return
    waits = rows[asleep]
    worked = np.cumsum(np.where(rows["cause"] == Cause.ON_CPU, rows["end"] - rows["start"], 0))[asleep]
    futex = _FUTEX[waits["cause"]]
    goes_on = futex[:-1] & (waits["waker_tid"][:-1] == 0) & (waits["tid"][:-1] == waits["tid"][1:])
    goes_on &= (np.diff(worked) < RECHECK_NS) & (np.abs(np.diff(waits["object"])) < ONE_LOCK_BYTES)
    # The last wait of each run: where it does not go on, and back from there.
    ends = np.flatnonzero(np.append(~goes_on, True))
    last = ends[np.searchsorted(ends, np.arange(len(waits)))]
    timed_out = futex & (waits["waker_tid"] == 0)
    for field in ("waker_tid", "waker_tgid", "waker_comm"):
        rows[field][asleep] = np.where(timed_out, waits[field][last], waits[field])


def _split_by_holder(rows: Table) -> Table:
    """Who had the interpreter's lock while a thread waited for it: one of its process that runs Python and was on
    a CPU. The last who let it go may have had it for an instant only.

    Threads that run Python are those that wait for the lock, or let it go, anywhere in the evidence.
    """
    gil = rows["cause"] == Cause.GIL
    if not gil.any():
        return rows
    waits = rows[gil]
    python = np.union1d(waits["tid"], waits["waker_tid"])
    ran = _RUNS[rows["cause"]] & np.isin(rows["tid"], python)
    held = rows[ran]
    held = held[np.lexsort((held["start"], held["tgid"]))]
    _, key = np.unique(np.concatenate((held["tgid"], waits["tgid"])), return_inverse=True)
    of_held, of_waits = key[: len(held)].astype(np.int64), key[len(held) :].astype(np.int64)
    tiles = tile(of_waits, waits["start"], waits["end"], of_held, *disjoint(of_held, held["start"], held["end"]))
    split = waits[tiles.parent]
    split["start"], split["end"] = tiles.start, tiles.end
    seen = tiles.cover >= 0
    if seen.any():
        split["waker_tid"] = np.where(seen, held["tid"][tiles.cover], split["waker_tid"])
        split["waker_tgid"] = np.where(seen, held["tgid"][tiles.cover], split["waker_tgid"])
    rows = join((rows[~gil], split), _ROW)
    inside: Table = rows[np.argsort(_in_order(rows["tid"], rows["start"]), kind="stable")]
    return inside


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
    for name in ("socket", "call", "told", "gpu"):
        rows[name] = -1
    rows["syscall_nr"] = -1
    rows["cpu"] = -1
    return rows


def _running(cycles: Table) -> Table:
    rows = _rows(len(cycles))
    rows["start"], rows["end"] = cycles["run_mono_ns"], cycles["off_mono_ns"]
    rows["tid"], rows["cause"] = cycles["tid"], Cause.ON_CPU
    rows["cpu"] = cycles["run_cpu"]
    for name in (*_COUNTED, "tgid", "flags", "prio"):
        rows[name] = cycles[name]
    # A thread seen asleep at adoption did not run before, it was not seen.
    ran: Table = rows[cycles["flags"] & (CycleFlags.SEEDED | CycleFlags.BORN) == 0]
    return ran


def _blocked(cycles: Table, evidence: Evidence) -> Table:
    asleep = cycles[cycles["ready_mono_ns"] > cycles["off_mono_ns"]]
    by_task = asleep["flags"] & CycleFlags.WAKER_IRQ == 0
    rows = _sleeps(asleep, asleep["ready_mono_ns"], by_task, evidence)
    rows["prio"] = asleep["prio"]
    return rows


def _blocked_still(evidence: Evidence) -> Table:
    """Sleeps that were not over, or whose sleeper was not on a CPU yet, when the requests were judged."""
    open_ = evidence.open_threads[evidence.open_threads["off_mono_ns"] > 0]
    woken = open_["ready_mono_ns"] > 0
    return _sleeps(open_, np.where(woken, open_["ready_mono_ns"], open_["taken_mono_ns"]), woken, evidence)


def _sleeps(asleep: Table, end: Ints, by_task: Flags, evidence: Evidence) -> Table:
    """Of THREAD_CYCLE or THREAD_STATE rows. ``by_task``: a task has woken the sleeper, and it is known which."""
    rows = _rows(len(asleep))
    rows["start"], rows["end"] = asleep["off_mono_ns"], end
    for name in ("tid", "tgid", "syscall_nr", "state", "flags", "object", "object_dev"):
        rows[name] = asleep[name]
    for name in ("waker_tid", "waker_tgid", "waker_comm"):
        rows[name][by_task] = asleep[name][by_task]
    rows["cause"] = sleeps.causes(asleep, evidence.meta)
    return rows


def _waits(cycles: Table, slices: Table) -> tuple[Table, Table]:
    """Waits for a CPU, split by who held it; and the table of those runners.

    What the thread's own quota took comes first: a neighbour is never accused of the victim's own limit.
    """
    # When it had quota again; where that was not clocked (a file of schema 1), when it got on.
    unclocked = (cycles["flags"] & CycleFlags.THROTTLED != 0) & (cycles["throttled_ns"] == 0)
    again = cycles["ready_mono_ns"] + cycles["throttled_ns"]
    queued = np.where(unclocked, cycles["on_mono_ns"], again)
    throttled = _rows(len(cycles))
    throttled["start"], throttled["end"] = cycles["ready_mono_ns"], queued
    throttled["cause"] = Cause.THROTTLED
    for name in ("tid", "prio"):
        throttled[name] = cycles[name]
    waits = cycles["on_mono_ns"] > queued
    waiting, queued = cycles[waits], queued[waits]
    inline = cycles[cycles["flags"] & CycleFlags.RUNNER != 0]
    cpu = np.concatenate((slices["cpu"], inline["wait_cpu"])).astype(np.int64)
    start = np.concatenate((slices["start_mono_ns"], inline["runner_since_mono_ns"]))
    end = np.concatenate((slices["end_mono_ns"], inline["on_mono_ns"]))
    runners = join((slices["runner"], inline["runner"]), RUNNER)
    order = np.lexsort((start, cpu))
    cpu, runners = cpu[order], runners[order]
    start, end = disjoint(cpu, start[order], end[order])

    tid = runners["tid"].astype(np.int64)
    tiles = tile_summed(waiting["wait_cpu"].astype(np.int64), queued, waiting["on_mono_ns"], cpu, start, end, tid)
    rows = _rows(len(tiles.parent))
    rows["start"], rows["end"] = tiles.start, tiles.end
    rows["tid"] = waiting["tid"][tiles.parent]
    rows["prio"] = waiting["prio"][tiles.parent]
    rows["cpu"] = waiting["wait_cpu"][tiles.parent]
    rows["runner"], rows["cause"] = tiles.cover, Cause.RUN_QUEUE
    if len(runners):
        # ksoftirqd is how softirqs run when there are many of them.
        softirq = np.char.startswith(runners["comm"].astype("S16"), b"ksoftirqd/")
        softirq &= runners["flags"] & RunnerFlags.KTHREAD != 0
        rows["cause"][(rows["runner"] >= 0) & softirq[rows["runner"]]] = Cause.IRQ
    return runners, join((throttled[throttled["end"] > throttled["start"]], rows), _ROW)


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
    ran["tgid"], ran["cause"] = gone["tgid"], Cause.ON_CPU

    off = open_["off_mono_ns"] > 0
    running = _rows(len(open_))
    running["start"], running["tid"], running["cause"] = open_["run_mono_ns"], open_["tid"], Cause.ON_CPU
    running["end"] = np.where(off, open_["off_mono_ns"], open_["taken_mono_ns"])
    running["cpu"] = open_["run_cpu"]
    for name in (*_COUNTED, "tgid"):
        running[name] = open_[name]
    running = running[~off | (open_["flags"] & CycleFlags.SEEDED == 0)]

    woken = open_[off & (open_["ready_mono_ns"] > 0)]
    waiting = _rows(len(woken))
    waiting["start"], waiting["tid"] = woken["ready_mono_ns"], woken["tid"]
    waiting["end"], waiting["cause"] = woken["taken_mono_ns"], Cause.RUN_QUEUE
    return join((ran, running, waiting), _ROW)


def _steal(rows: Table, samples: Table) -> None:
    """Spread what the hypervisor took from a CPU in a sample over the time that threads were on it."""
    if not len(samples):
        return
    ran = np.flatnonzero((rows["cause"] == Cause.ON_CPU) & (rows["cpu"] >= 0))
    samples = samples[np.lexsort((samples["start_mono_ns"], samples["cpu"]))]
    cpu = samples["cpu"].astype(np.int64)
    cover = disjoint(cpu, samples["start_mono_ns"], samples["end_mono_ns"])
    tiles = tile(rows["cpu"][ran].astype(np.int64), rows["start"][ran], rows["end"][ran], cpu, *cover)
    known = tiles.cover >= 0
    sample = samples[tiles.cover[known]]
    share = sample["steal_ns"] / np.maximum(sample["steal_ns"] + sample["busy_ns"], 1)
    stolen = ((tiles.end - tiles.start)[known] * share).astype(np.int64)
    np.add.at(rows["steal_ns"], ran[tiles.parent[known]], stolen)


def _split_by_pause(rows: Table, pauses: Table) -> Table:
    """A thread that collects garbage is on a CPU for its runtime, not for its request."""
    if not len(pauses):
        return rows
    ran = rows["cause"] == Cause.ON_CPU
    running = rows[ran]
    pauses = pauses[np.lexsort((pauses["start_mono_ns"], pauses["tid"]))]
    of = (pauses["tid"], pauses["start_mono_ns"], pauses["end_mono_ns"])
    tiles = tile_by_thread((running["tid"], running["start"], running["end"]), of)
    split = running[tiles.parent]
    split["start"], split["end"] = tiles.start, tiles.end
    split["cause"] = np.where(tiles.cover >= 0, Cause.GC, Cause.ON_CPU)
    return join((rows[~ran], split), _ROW)
