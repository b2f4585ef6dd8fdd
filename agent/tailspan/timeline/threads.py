"""Which threads there are, from when to when they could be seen, and what they call themselves.

A tid means one thread at one time: (tid, time) is the identity, and a number that is used again simply begins a
new row. So a reused tid needs no extra key in any record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from tailspan.timeline.evidence import Table
from tailspan.timeline.tables import FOREVER, THREAD
from tailspan.wire.events import ThreadEventKind


@dataclass(slots=True)
class Thread:
    tid: int
    tgid: int
    ns_tid: int
    followed_mono_ns: int
    gone_mono_ns: int
    comm: bytes
    cgroup_id: int
    last_run_mono_ns: int = 0
    named: bool = False


class Threads:
    """Bounded: of threads that are gone the oldest are forgotten, with :meth:`evict` and beyond ``max_gone``."""

    def __init__(self, max_gone: int = 4096) -> None:
        self._live: dict[int, Thread] = {}
        self._gone: deque[Thread] = deque()
        self._by_ns: dict[tuple[int, int], int] = {}
        self._max_gone = max_gone

    def __len__(self) -> int:
        return len(self._live)

    def processes(self) -> set[int]:
        """tgids that have a thread which lives."""
        return {thread.tgid for thread in self._live.values()}

    def see(self, states: Table) -> None:
        """Take in a look at all followed threads (THREAD_STATE rows)."""
        for row in states:
            thread = self._live.get(int(row["tid"]))
            if thread is None:
                self._add(
                    Thread(
                        int(row["tid"]),
                        int(row["tgid"]),
                        int(row["ns_tid"]),
                        int(row["followed_mono_ns"]),
                        FOREVER,
                        bytes(row["comm"]),
                        int(row["cgroup_id"]),
                    )
                )
            else:
                thread.comm, thread.cgroup_id = bytes(row["comm"]), int(row["cgroup_id"])

    def forget_missing(self, states: Table) -> None:
        """End the threads that a look, older than the events applied so far, did not find: their exit was lost."""
        if not len(states):
            return
        taken, found = int(states["taken_mono_ns"].min()), set(states["tid"].tolist())
        for tid in [t.tid for t in self._live.values() if t.tid not in found and t.followed_mono_ns < taken]:
            self._end(tid, taken, taken)

    def end(self, tgids: Collection[int], at_mono_ns: int) -> None:
        """These processes are not followed any more."""
        for tid in [thread.tid for thread in self._live.values() if thread.tgid in tgids]:
            self._end(tid, at_mono_ns, at_mono_ns)

    def apply(self, events: Table) -> None:
        """Take in births, execs and exits (THREAD_EVENT rows)."""
        for row in events[np.argsort(events["mono_ns"], kind="stable")]:
            tid, at = int(row["tid"]), int(row["mono_ns"])
            if row["kind"] == ThreadEventKind.EXIT:
                self._end(tid, at, int(row["run_mono_ns"]))
            elif row["kind"] == ThreadEventKind.BORN:
                self._end(tid, at, at)  # an exit that was lost
                self._add(
                    Thread(
                        tid,
                        int(row["tgid"]),
                        int(row["ns_tid"]),
                        at,
                        FOREVER,
                        bytes(row["comm"]),
                        int(row["cgroup_id"]),
                    )
                )
            elif tid in self._live:
                self._live[tid].comm = bytes(row["comm"])

    def evict(self, before_mono_ns: int) -> None:
        """Forget who was gone before."""
        while self._gone and self._gone[0].gone_mono_ns < before_mono_ns:
            self._forget_oldest()

    def host_tid(self, tgid: int, ns_tid: int) -> int:
        """The host's tid of the thread that process ``tgid`` calls ``ns_tid``; 0 when it is not followed."""
        return self._by_ns.get((tgid, ns_tid), 0)

    def name(self, tid: int) -> None:
        """A message of its process has spoken of this thread."""
        thread = self._live.get(tid)
        if thread is not None:
            thread.named = True

    def rows(self, since_mono_ns: int) -> Table:
        """THREAD rows of every thread that lived after ``since_mono_ns``."""
        threads = [t for t in self._gone if t.gone_mono_ns >= since_mono_ns] + list(self._live.values())
        return np.array(
            [
                (t.followed_mono_ns, t.gone_mono_ns, t.last_run_mono_ns, t.tid, t.tgid, t.ns_tid, t.named, t.comm)
                for t in threads
            ],
            THREAD,
        )

    def _add(self, thread: Thread) -> None:
        self._live[thread.tid] = thread
        self._by_ns[thread.tgid, thread.ns_tid] = thread.tid

    def _end(self, tid: int, at: int, last_run_mono_ns: int) -> None:
        thread = self._live.pop(tid, None)
        if thread is None:
            return
        thread.gone_mono_ns, thread.last_run_mono_ns = at, last_run_mono_ns
        self._gone.append(thread)
        if len(self._gone) > self._max_gone:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        forgotten = self._gone.popleft()
        key, again = (forgotten.tgid, forgotten.ns_tid), self._live.get(forgotten.tid)
        # Unless the number lives again, of the same name: another process' thread leaves the old name behind.
        if self._by_ns.get(key) == forgotten.tid and not (again and (again.tgid, again.ns_tid) == key):
            del self._by_ns[key]
