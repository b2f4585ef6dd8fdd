"""Which other processes to follow: those whose threads end the waits of threads we follow.

A wait on a pipe, a unix socket or a lock in shared memory is explained by what its waker was held up by, and that
is known of followed threads only. So who has ended a noticeable wait once is followed from then on: the first such
wait names it, later ones say what it did.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

import numpy as np

from tailspan.timeline.evidence import Table
from tailspan.wire.events import CycleFlags, ObjectKind

#: A shorter wait makes no request slow.
MIN_WAIT_NS = 1_000_000


_BY_NO_TASK = CycleFlags.WAKER_IRQ | CycleFlags.WAKER_SOFTIRQ
#: By object kind, with a place for those that are not known.
_LOCAL = np.zeros(len(ObjectKind) + 1, bool)
_LOCAL[[ObjectKind.PIPE, ObjectKind.UNIX, ObjectKind.FUTEX]] = True


class Peers:
    """Bounded: at most ``limit`` processes at a time; it may be changed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._own = os.getpid()
        self._known: set[int] = set()
        self.refused = 0  #: how often the limit has kept a process out

    def new(self, cycles: Table, live: Callable[[], Collection[int]]) -> list[int]:
        """tgids to follow that these records (THREAD_CYCLE rows) call for and no earlier ones did.

        ``live``: the processes that are followed now; others that were have ended, and make room.
        """
        waker = cycles["waker_tgid"]
        wakes = (waker != cycles["tgid"]) & (waker != 0)
        wakes &= cycles["ready_mono_ns"] - cycles["off_mono_ns"] >= MIN_WAIT_NS
        wakes &= cycles["flags"] & _BY_NO_TASK == 0
        wakes &= _LOCAL[np.minimum(cycles["object_kind"], len(_LOCAL) - 1)]
        if not wakes.any():
            return []
        wakers = waker[wakes]
        followed = set(np.unique(cycles["tgid"]).tolist())
        wanted = [tgid for tgid in np.unique(wakers).tolist() if tgid not in self._known | followed | {self._own}]
        if len(self._known) + len(wanted) > self.limit:
            self._known.intersection_update(live())
        found = wanted[: max(0, self.limit - len(self._known))]
        self.refused += len(wanted) - len(found)
        self._known.update(found)
        return found
