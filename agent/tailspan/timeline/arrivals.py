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
BY_PORT_NS = 10_000_000_000


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
    read = rows["to_mono_ns"]
    taken = np.zeros(len(rows), bool)
    for at in np.argsort(requests["start_mono_ns"], kind="stable").tolist():
        request = requests[at]
        start, port = int(request["start_mono_ns"]), int(request["peer_port"])
        reach = BY_PORT_NS if port else BY_THREAD_NS
        first, past = np.searchsorted(read, (start - reach, start + 1))
        near = rows[first:past]
        fits = (near["tgid"] == request["tgid"]) & ~taken[first:past]
        fits &= (near["remote_port"] == port) if port else (near["tid"] == request["tid"])
        candidates = np.flatnonzero(fits)
        if len(candidates):
            taken[first + candidates[-1]] = True
            arrived[at] = near["arrived_mono_ns"][candidates[-1]]
    return arrived
