"""On which connection a request came, and when its first byte did: its wait begins before the worker's own clock.

The kernel writes a record for the first receive of every message on an accepted connection. A request began with
the last such receive before it: of the peer's port where the worker named it, else of the request's own thread.
Where it named neither, :mod:`tailspan.timeline.joins` looks for it.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from tailspan.timeline.evidence import Table
from tailspan.wire.events import SocketFlags, SocketOp

#: Between reading a message's first bytes and beginning the request lies parsing. A thread may read for another
#: (then the worker names the port), so the port may be further back than the thread.
BY_THREAD_NS = 100_000_000
BY_PORT_NS = 1_000_000_000

#: Some tracers tell times in whole milliseconds, cut off: a request seems to begin before it was read. Those are
#: also the ones that name no thread; what names one tells the kernel's own clock.
COARSE_NS = 1_000_000

#: Receives remembered as taken; beyond it the oldest are forgotten.
MAX_TAKEN = 200_000


def began(requests: Table) -> npt.NDArray[np.int64]:
    """When each request's wait began: its first byte came in, or, where that was not seen, the worker began it."""
    arrived, start = requests["arrived_mono_ns"], requests["start_mono_ns"]
    first: npt.NDArray[np.int64] = np.where(arrived > 0, np.minimum(arrived, start), start)
    return first


def messages(sockets: Table) -> Table:
    """The receives that began a message on an accepted connection and whose arrival was seen."""
    wanted = SocketFlags.ACCEPTED | SocketFlags.MESSAGE
    begins = (sockets["op"] == SocketOp.RECEIVE) & (sockets["flags"] & wanted == wanted)
    found: Table = sockets[begins & (sockets["arrived_mono_ns"] > 0)]
    return found


class Receives:
    """The receives that begin a message, in order of their ends. Each begins one request only.

    ``taken``: of which rows that is known.
    """

    def __init__(self, sockets: Table, before: Taken) -> None:
        rows = messages(sockets)
        self.rows: Table = rows[np.argsort(rows["to_mono_ns"], kind="stable")]
        self._before = before
        self._keys = list(zip(self.rows["to_mono_ns"].tolist(), self.rows["tid"].tolist(), strict=True))
        self.taken = np.array([key in before for key in self._keys], bool)

    def take(self, row: int) -> None:
        """From now on, also in later turns, it is known whose it is."""
        self.taken[row] = True
        self._before.add(self._keys[row])

    def until(self, mono_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many rows had ended by then."""
        return np.searchsorted(self.rows["to_mono_ns"], mono_ns, side="right")


class Taken:
    """Which receives have begun a request that was judged already, by (when it ended, thread). Bounded."""

    def __init__(self) -> None:
        self._keys: set[tuple[int, int]] = set()
        self._order: deque[tuple[int, int]] = deque()

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._keys

    def add(self, key: tuple[int, int]) -> None:
        self._keys.add(key)
        self._order.append(key)
        if len(self._order) > MAX_TAKEN:
            self._keys.discard(self._order.popleft())

    def evict(self, before_mono_ns: int) -> None:
        """Forget receives of before: no request that may still come can have begun with them."""
        while self._order and self._order[0][0] < before_mono_ns:
            self._keys.discard(self._order.popleft())


def find_arrivals(requests: Table, receives: Receives) -> npt.NDArray[np.int64]:
    """The row of ``receives`` with which each request began, by port or by thread; -1 where none fits.

    Sets ``arrived_mono_ns`` of the requests.
    """
    found = np.full(len(requests), -1, np.int64)
    rows, start = receives.rows, requests["start_mono_ns"]
    if not len(rows):
        return found
    by_port = requests["peer_port"] > 0
    first = receives.until(start - np.where(by_port, BY_PORT_NS, BY_THREAD_NS) - 1).tolist()
    past = receives.until(start).tolist()
    late = np.where(requests["tid"] == 0, np.minimum(start + COARSE_NS, requests["end_mono_ns"]), start)
    past_late = receives.until(late).tolist()
    # Who read it, once by its peer's port and once by its thread: what a request is looked up by.
    ports = list(zip(rows["tgid"].tolist(), rows["remote_port"].tolist(), strict=True))
    threads = list(zip(rows["tgid"].tolist(), rows["tid"].tolist(), strict=True))
    named = np.where(by_port, requests["peer_port"], requests["tid"])
    wanted = list(zip(requests["tgid"].tolist(), named.tolist(), strict=True))
    for at in np.argsort(start, kind="stable").tolist():
        if not wanted[at][1]:
            continue
        readers = ports if by_port[at] else threads
        backwards, onwards = range(past[at] - 1, first[at] - 1, -1), range(past[at], past_late[at])
        for row in (*backwards, *onwards):
            if readers[row] == wanted[at] and not receives.taken[row]:
                receives.take(row)
                found[at] = row
                break
    seen = found >= 0
    requests["arrived_mono_ns"][seen] = rows["arrived_mono_ns"][found[seen]]
    return found
