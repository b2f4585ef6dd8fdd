"""Which thread served a request whose worker did not say.

The thread that began a request was on a CPU at that instant, and so was the one that ended it: whoever slept then
did not serve it. Of the threads that are left it is the one that read the request's first bytes, unless that one
reads for others; else the one that did by far the most of them all; else nobody knows.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from tailspan.timeline.activity import Activity, Flags, Ints
from tailspan.timeline.arrivals import BY_PORT_NS, COARSE_NS, Receives
from tailspan.timeline.evidence import Table
from tailspan.timeline.tables import Join
from tailspan.wire.spans import SpanKind

#: How exactly a tracer that tells nanoseconds tells when its thread was on a CPU.
FINE_NS = 10_000

#: A thread that slept at the ends of more than this share of what it read reads for others; at the ends of most of
#: it, for others only.
SOME_HANDED_ON = 0.1
MOST_HANDED_ON = 0.5
#: Receives that may have begun one request; with more there is no hope to find the one.
MAX_CANDIDATES = 32
#: Requests of one reader that are remembered, and readers.
MAX_READ = 1_000
MAX_READERS = 4_096

#: "By far the most": so many times as much as any other thread, and of the request's time at least one in so many.
FAR_MORE = 2


class Readers:
    """Which threads read for others: of the requests that a thread read, how many it can have served, ever.

    Bounded: of the threads that were met first the oldest are forgotten, and old requests count for less.
    """

    def __init__(self) -> None:
        self._served: dict[tuple[int, int], tuple[float, float]] = {}  # (tgid, tid) -> (served, read)

    def note(self, tgid: int, tid: int, served: int, read: int) -> None:
        before = self._served.pop((tgid, tid), (0.0, 0.0))
        keep = min(1.0, MAX_READ / max(before[1], 1))
        self._served[tgid, tid] = before[0] * keep + served, before[1] * keep + read
        if len(self._served) > MAX_READERS:
            del self._served[next(iter(self._served))]

    def handed_on(self, tgid: int, tid: int) -> float:
        """Which share of what the thread read it did not serve; 0 for one that is not known."""
        served, read = self._served.get((tgid, tid), (0.0, 0.0))
        return 1 - served / read if read else 0.0


def join_threads(
    requests: Table,
    spans: Table,
    receives: Receives,
    found: Ints,
    activities: dict[int, Activity],
    readers: Readers,
) -> None:
    """Set ``tid``, ``join``, ``others`` of the requests without a tid, and the tid of their spans without one.

    ``found``: what :func:`~tailspan.timeline.arrivals.find_arrivals` did. ``activities``: by tgid, of the
    processes of those requests. A receive that can only have begun one of them is found too, and its arrival set.
    """
    unknown = np.flatnonzero(requests["tid"] == 0)
    for tgid in np.unique(requests["tgid"][unknown]).tolist():
        mine = unknown[requests["tgid"][unknown] == tgid]
        process = _Process(requests[mine], receives, found[mine], activities[tgid], readers)
        requests["tid"][mine], requests["join"][mine], found[mine] = process.joined()
    seen = unknown[found[unknown] >= 0]
    requests["arrived_mono_ns"][seen] = receives.rows["arrived_mono_ns"][found[seen]]
    inferred = np.zeros(len(requests), bool)
    inferred[unknown] = True
    # What a request waited in a queue for may be another thread.
    nameless = (spans["tid"] == 0) & (spans["kind"] != SpanKind.QUEUED) & inferred[spans["request"]]
    spans["tid"][nameless] = requests["tid"][spans["request"][nameless]]
    _count_others(requests, inferred, receives, found)


def _count_others(requests: Table, inferred: Flags, receives: Receives, found: Ints) -> None:
    """Requests that a thread read while it had another, or that were served by it then: those that are known."""
    start, end = requests["start_mono_ns"], requests["end_mono_ns"]
    own_read = np.zeros(len(requests), np.int64)  # 1 where the request itself was read when it had begun
    known = np.flatnonzero(found >= 0)
    own_read[known] = receives.rows["to_mono_ns"][found[known]] >= start[known]
    for tid in np.unique(requests["tid"][inferred & (requests["tid"] > 0)]).tolist():
        own = np.flatnonzero(requests["tid"] == tid)
        begun = np.searchsorted(np.sort(start[own]), end[own], side="left")
        over = np.searchsorted(np.sort(end[own]), start[own], side="right")
        reads = receives.rows[receives.rows["tid"] == tid]
        read = np.searchsorted(reads["to_mono_ns"], end[own]) - np.searchsorted(reads["to_mono_ns"], start[own])
        read -= own_read[own]
        mine = np.flatnonzero(inferred[own])
        requests["others"][own[mine]] = np.clip(np.maximum(begun - over - 1, read), 0, 0xFFFF)[mine]


class _Process:
    """Of one process: its requests without a tid, and its threads, each by its position.

    A receive whose reader did nothing that was seen has the position behind the last: nobody.
    """

    def __init__(
        self, requests: Table, receives: Receives, found: Ints, activity: Activity, readers: Readers
    ) -> None:
        self._requests, self._receives, self._found, self._activity = requests, receives, found, activity
        self._start, self._end = requests["start_mono_ns"], requests["end_mono_ns"]
        self._tgid = int(requests["tgid"][0])
        self._tids = np.array(activity.tids, np.int64)
        reader = receives.rows["tid"]
        self._reader = np.where(np.isin(reader, self._tids), np.searchsorted(self._tids, reader), len(self._tids))
        self._who = np.full(len(requests), -1, np.int64)
        self._join = np.full(len(requests), Join.NONE)
        self._can_have = self._who_can_have()
        self._candidates = self._unanswered()
        self._note_readers(readers)
        self._handed_on = np.array([*(readers.handed_on(self._tgid, tid) for tid in activity.tids), 0])

    def joined(self) -> tuple[Ints, Ints, Ints]:
        """tid, Join and receive of each."""
        self._by_socket()
        self._by_work()
        return np.where(self._who >= 0, np.append(self._tids, 0)[self._who], 0), self._join, self._found

    def _who_can_have(self) -> Flags:
        """``[threads, requests]``: who can have served it: on a CPU when it began, and when it ended."""
        can = np.zeros((len(self._tids) + 1, len(self._requests)), bool)
        self._mark_present(can, FINE_NS, np.arange(len(self._requests)))
        # Nobody was: then its times are not that exact.
        self._mark_present(can, COARSE_NS, np.flatnonzero(~can.any(axis=0)))
        return can

    def _mark_present(self, can: Flags, within_ns: int, requests: Ints) -> None:
        ran = self._activity.can_have_run
        start, end = self._start[requests], self._end[requests]
        for who, tid in enumerate(self._activity.tids):
            can[who, requests] = ran(tid, start, within_ns) & ran(tid, end, within_ns)

    def _unanswered(self) -> dict[int, Ints]:
        """The receives that may have begun a request: the one of its port, else all that were not answered yet."""
        candidates = {at: self._found[at : at + 1] for at in np.flatnonzero(self._found >= 0).tolist()}
        nameless = np.flatnonzero((self._requests["peer_port"] == 0) & (self._found < 0))
        if not len(nameless):
            return candidates
        rows = np.flatnonzero(self._receives.rows["tgid"] == self._tgid)
        # The next message of a connection comes when this one is answered.
        next_read = _next_on_its_connection(self._receives.rows[rows])
        free = ~self._receives.taken[rows]
        rows, next_read = rows[free], next_read[free]
        read, late = self._receives.rows["to_mono_ns"][rows], np.minimum(self._start + COARSE_NS, self._end)
        first = np.searchsorted(read, self._start - BY_PORT_NS).tolist()
        past = np.searchsorted(read, late, side="right").tolist()
        for at in nameless.tolist():
            near = slice(first[at], past[at])
            candidates[at] = rows[near][next_read[near] >= self._end[at] - COARSE_NS]
        return candidates

    def _note_readers(self, readers: Readers) -> None:
        """Learn from the requests of which it is known who read them."""
        served: Counter[int] = Counter()
        read: Counter[int] = Counter()
        for at, rows in self._candidates.items():
            reader = self._only_reader(rows)
            if reader is not None and reader < len(self._tids):
                read[reader] += 1
                served[reader] += bool(self._can_have[reader, at])
        for reader, count in read.items():
            readers.note(self._tgid, int(self._tids[reader]), served[reader], count)

    def _only_reader(self, rows: Ints) -> int | None:
        readers: set[int] = set(self._reader[rows].tolist())
        return readers.pop() if len(readers) == 1 else None

    def _by_socket(self) -> None:
        """The reader of the one receive that can have begun it and no other request; or of all that can have."""
        can = self._can_have & (self._handed_on <= SOME_HANDED_ON)[:, None]
        left = {at: rows[can[self._reader[rows], at]] for at, rows in self._candidates.items()}
        for at, rows in left.items():
            reader = self._only_reader(rows)
            if reader is not None and (len(rows) > 1 or self._found[at] >= 0):
                self._set(at, reader, Join.SOCKET)
        few = {
            at: rows.tolist() for at, rows in left.items() if self._found[at] < 0 and len(rows) <= MAX_CANDIDATES
        }
        for at, row in _only_ones(few):
            self._found[at] = row
            self._receives.take(row)
            self._set(at, int(self._reader[row]), Join.SOCKET)

    def _by_work(self) -> None:
        """The one that did by far the most of those that can have served it."""
        left = np.flatnonzero(self._join == Join.NONE)
        start, end = self._start[left], self._end[left]
        can = (self._can_have & (self._handed_on < MOST_HANDED_ON)[:, None])[:, left]
        best, second, who = (np.zeros(len(left), np.int64) for _ in range(3))
        for position in np.flatnonzero(can.any(axis=1)).tolist():
            done = self._activity.done_ns(self._activity.tids[position], start, end) * can[position]
            more = done > best
            second = np.where(more, best, np.maximum(second, done))
            best, who = np.where(more, done, best), np.where(more, position, who)
        clear = (best > 0) & (best >= FAR_MORE * second) & (FAR_MORE * best >= end - start)
        self._set(left[clear], who[clear], Join.PROCESS)

    def _set(self, at: int | Ints, who: int | Ints, join: Join) -> None:
        self._who[at], self._join[at] = who, join


def _next_on_its_connection(receives: Table) -> Ints:
    """When the next message of the same connection was read; the far future for its last one."""
    order = np.lexsort((receives["to_mono_ns"], receives["socket"]))
    read, socket = receives["to_mono_ns"][order], receives["socket"][order]
    following = np.full(len(read), np.iinfo(np.int64).max)
    same = np.flatnonzero(socket[1:] == socket[:-1])
    following[same] = read[same + 1]
    found = np.empty_like(following)
    found[order] = following
    return found


def _only_ones(candidates: dict[int, list[int]]) -> list[tuple[int, int]]:
    """(request, receive) where that request can have begun with no other, and no other with that one alone."""
    left = {at: set(rows) for at, rows in candidates.items()}
    users: defaultdict[int, set[int]] = defaultdict(set)
    for at, rows in left.items():
        for row in rows:
            users[row].add(at)
    found = []
    ready = [at for at, rows in left.items() if len(rows) == 1]
    while ready:
        at = ready.pop()
        row = next(iter(left[at]))
        others = users[row] - {at}
        if any(len(left[other]) == 1 for other in others):
            continue
        found.append((at, row))
        for other in others:
            left[other].discard(row)
            if len(left[other]) == 1:
                ready.append(other)
    return found
