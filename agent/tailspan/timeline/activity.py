"""What a process's threads did, as far as it was seen: who can have been at work at an instant, and how much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tailspan.timeline.evidence import Table
from tailspan.timeline.tables import FOREVER
from tailspan.wire.events import CycleFlags

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(slots=True)
class _Turns:
    """Of one thread, in order: on a CPU from run to off, ready from ready on, on a CPU again at on."""

    run: Ints
    off: Ints
    ready: Ints
    on: Ints
    born: int  #: before it there was no such thread; 0 where that was not seen
    before: Ints  #: time that the turns before each one took, of those that were seen


class Activity:
    """Of the threads of one process. ``cycles`` in any order; ``open_threads`` looked at before they were drained.

    ``threads``: THREAD rows, for those that are gone.
    """

    def __init__(self, tgid: int, cycles: Table, open_threads: Table, threads: Table) -> None:
        cycles = cycles[cycles["tgid"] == tgid]
        open_threads = open_threads[open_threads["tgid"] == tgid]
        gone = threads[(threads["tgid"] == tgid) & (threads["gone_mono_ns"] < FOREVER)]
        tid, run, off, ready, on = (
            np.concatenate(parts) for parts in zip(_ended(cycles), _open(open_threads), _last(gone), strict=True)
        )
        order = np.lexsort((on, run, tid))
        # A turn that was open at the look, and is in a record since: the record says more.
        order = order[(on[order] < FOREVER) | _is_last(tid[order])]
        order = order[(on[order] < FOREVER) | _begins_after_the_one_before(tid[order], run[order], on[order])]
        births = cycles[cycles["flags"] & CycleFlags.BORN != 0]
        born = dict(zip(births["tid"].tolist(), births["run_mono_ns"].tolist(), strict=True))
        self._turns: dict[int, _Turns] = {}
        tids, first, count = np.unique(tid[order], return_index=True, return_counts=True)
        for number, begin, past in zip(tids.tolist(), first, first + count, strict=True):
            own = order[begin:past]
            before = np.append(0, np.cumsum((on[own] - run[own])[:-1]))
            self._turns[number] = _Turns(run[own], off[own], ready[own], on[own], born.get(number, 0), before)

    @property
    def tids(self) -> list[int]:
        return list(self._turns)

    def can_have_run(self, tid: int, at: Ints, within_ns: int) -> Flags:
        """Whether the thread may have been on a CPU so near to each instant: it is not known that it was not."""
        turns = self._turns.get(tid)
        if turns is None:
            return np.ones(len(at), bool)
        row = np.minimum(np.searchsorted(turns.on, at, side="right"), len(turns.on) - 1)
        asleep = (turns.off[row] <= at - within_ns) & (turns.on[row] >= at + within_ns)
        unborn = at + within_ns < turns.born
        can: Flags = ~(asleep | unborn)
        return can

    def done_ns(self, tid: int, start: Ints, end: Ints) -> Ints:
        """Of the time between: on a CPU, waiting for one, or in a wait that ended within."""
        turns = self._turns[tid]
        first = np.searchsorted(turns.on, start, side="right")
        last = np.searchsorted(turns.run, end, side="left") - 1
        some = last >= first
        first, last = np.where(some, first, 0), np.where(some, last, 0)
        until = np.where(
            turns.ready[last] <= end, np.minimum(turns.on[last], end), np.minimum(turns.off[last], end)
        )
        done = turns.before[last] - turns.before[first] + until - turns.run[last]
        done -= np.maximum(start - turns.run[first], 0)
        return np.where(some, np.maximum(done, 0), 0)


def _is_last(tid: Ints) -> Flags:
    """Whether the thread has no turn after it."""
    return np.append(tid[1:] != tid[:-1], np.ones(min(len(tid), 1), bool))


def _begins_after_the_one_before(tid: Ints, run: Ints, on: Ints) -> Flags:
    return np.append(np.ones(min(len(tid), 1), bool), (tid[1:] != tid[:-1]) | (run[1:] >= on[:-1]))


#: Of turns: tid, run, off, ready, on.
_Columns = tuple[Ints, Ints, Ints, Ints, Ints]


def _ended(cycles: Table) -> _Columns:
    return (
        cycles["tid"].astype(np.int64),
        cycles["run_mono_ns"],
        cycles["off_mono_ns"],
        cycles["ready_mono_ns"],
        cycles["on_mono_ns"],
    )


def _open(states: Table) -> _Columns:
    off, ready = (np.where(states[at] > 0, states[at], FOREVER) for at in ("off_mono_ns", "ready_mono_ns"))
    return states["tid"].astype(np.int64), states["run_mono_ns"], off, ready, np.full(len(states), FOREVER)


def _last(gone: Table) -> _Columns:
    """A thread that has ended is off the CPU for good."""
    never = np.full(len(gone), FOREVER)
    return gone["tid"].astype(np.int64), gone["last_run_mono_ns"], gone["gone_mono_ns"], never, never
