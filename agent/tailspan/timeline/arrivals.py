"""On which connection a request came, and when its first byte did: its wait begins before the worker's own clock.

The kernel writes a record for the first receive of every message on an accepted connection. A request began with
the last such receive before it: of the peer's port where the worker named it, else of the request's own thread.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tailspan.timeline.evidence import Table
from tailspan.wire.events import SocketFlags, SocketOp

#: Between reading a message's first bytes and beginning the request lies parsing. A thread may read for another
#: (then the worker names the port), so the port may be further back than the thread.
BY_THREAD_NS = 100_000_000
BY_PORT_NS = 1_000_000_000


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


def find_arrivals(requests: Table, sockets: Table) -> npt.NDArray[np.int64]:
    """``arrived_mono_ns`` of each request, 0 where no receive fits. A receive begins one request only."""
    arrived = np.zeros(len(requests), np.int64)
    rows = messages(sockets)
    if not len(rows):
        return arrived
    rows = rows[np.argsort(rows["to_mono_ns"], kind="stable")]
    read, start = rows["to_mono_ns"], requests["start_mono_ns"]
    by_port = requests["peer_port"] > 0
    first = np.searchsorted(read, start - np.where(by_port, BY_PORT_NS, BY_THREAD_NS)).tolist()
    past = np.searchsorted(read, start, side="right").tolist()
    # Who read it, once by its peer's port and once by its thread: what a request is looked up by.
    ports = list(zip(rows["tgid"].tolist(), rows["remote_port"].tolist(), strict=True))
    threads = list(zip(rows["tgid"].tolist(), rows["tid"].tolist(), strict=True))
    wanted = list(
        zip(
            requests["tgid"].tolist(),
            np.where(by_port, requests["peer_port"], requests["tid"]).tolist(),
            strict=True,
        )
    )
    came = rows["arrived_mono_ns"].tolist()
    taken: set[int] = set()
    for at in np.argsort(start, kind="stable").tolist():
        readers = ports if by_port[at] else threads
        for row in range(past[at] - 1, first[at] - 1, -1):
            if readers[row] == wanted[at] and row not in taken:
                taken.add(row)
                arrived[at] = came[row]
                break
    return arrived
