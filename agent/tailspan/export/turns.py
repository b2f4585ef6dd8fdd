"""Turns of followed threads, added up: what they did, how long they waited for a CPU, and who had it meanwhile.

Records are wide: columns are taken from them, and rows never copied.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tailspan.timeline.evidence import Table
from tailspan.wire.events import CycleFlags, RunnerFlags

Ints = npt.NDArray[np.int64]


def thread_time_ns(cycles: Table) -> dict[str, int]:
    """Of wire.events.THREAD_CYCLE, by state. Interrupts that came while a thread was on a CPU count as on_cpu."""
    # A thread that was seen asleep, or was just born, did not run before.
    ran = cycles["flags"] & (CycleFlags.SEEDED | CycleFlags.BORN) == 0
    short_blocked, short_queued = int(cycles["short_blocked_ns"].sum()), int(cycles["short_runq_ns"].sum())
    parts = {
        "on_cpu": int((cycles["off_mono_ns"] - cycles["run_mono_ns"])[ran].sum()) - short_blocked - short_queued,
        "run_queue": int(_waits_ns(cycles).sum()) + short_queued,
        "throttled": int(cycles["throttled_ns"].sum()),
        "blocked": int((cycles["ready_mono_ns"] - cycles["off_mono_ns"]).sum()) + short_blocked,
    }
    return {state: max(ns, 0) for state, ns in parts.items()}


def run_queue_waits(cycles: Table) -> tuple[tuple[Ints, Ints], ...]:
    """Durations in ns, each with how often: one a turn, and the mean of those that were too short for a record."""
    some = cycles["short_count"] > 0
    count = cycles["short_count"][some].astype(np.int64)
    return (_waits_ns(cycles), np.ones(len(cycles), np.int64)), (cycles["short_runq_ns"][some] // count, count)


def taken_ns(cycles: Table, slices: Table) -> dict[str, int]:
    """Of THREAD_CYCLE and CPU_SLICE: who had a CPU that a followed thread waited for, by command name.

    Kernel threads by their kind: ``kworker``. Of an idle CPU nobody took anything.
    """
    inline = np.flatnonzero(cycles["flags"] & CycleFlags.RUNNER)
    held_ns = np.concatenate(
        (
            slices["end_mono_ns"] - slices["start_mono_ns"],
            cycles["on_mono_ns"][inline] - cycles["runner_since_mono_ns"][inline],
        )
    )
    # By thread first: command names are slow to sort, and there are few threads.
    tid = np.concatenate((slices["runner"]["tid"], cycles["runner"]["tid"][inline]))
    tids = np.unique(tid)
    of = np.searchsorted(tids, tid)
    of_tid_ns = np.bincount(of, held_ns, minlength=len(tids)).astype(np.int64).tolist()
    record = np.empty(len(tids), np.int64)  # one of each thread
    record[of] = np.arange(len(of))
    taken: dict[str, int] = {}
    for at, number, ns in zip(record.tolist(), tids.tolist(), of_tid_ns, strict=True):
        if number:
            runner = slices["runner"][at] if at < len(slices) else cycles["runner"][inline[at - len(slices)]]
            name = _name(runner)
            taken[name] = taken.get(name, 0) + max(ns, 0)
    return taken


def _name(runner: np.void) -> str:
    name: str = runner["comm"].decode("utf-8", "replace")
    return name.partition("/")[0] if runner["flags"] & RunnerFlags.KTHREAD else name


def _waits_ns(cycles: Table) -> Ints:
    """From when each was ready, and its cgroup had quota, to when it was on a CPU or left that CPU's queue."""
    waits: Ints = cycles["on_mono_ns"] - cycles["ready_mono_ns"] - cycles["throttled_ns"]
    return waits
