"""The garbage collector's pauses: every collection is timed, and the long ones wait here to be sent.

``gc.callbacks`` are called in the middle of whatever the worker does, and what they raise is swallowed. A function
written in Python would run the worker's pending signal handlers there, and so lose what those raise: a Ctrl-C or a
timeout that came during a collection, each time. So what is registered here is put together from built-in
functions alone. It runs no bytecode, takes no lock, sends nothing and cannot call itself; it appends to
:data:`waiting`, and :meth:`tailspan.client.connection.Connection.send` sends that ahead of its message, so that
the agent has a pause before any request that it delayed.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from operator import sub
from typing import Any

from tailspan.wire.spans import Pause, PauseKind

#: A shorter pause is not told: no verdict names less than a millisecond.
FLOOR_NS = 1_000_000

#: Pauses kept until a message is sent, the last ones. To send them all takes 0.2 ms, and twice as many packets fit
#: into a socket that nobody reads.
MAX_WAITING = 128

#: (start, end, tid, what the interpreter says of the collection), oldest first
waiting: deque[tuple[int, int, int, dict[str, int]]] = deque(maxlen=MAX_WAITING)

#: Who sends. Nothing is timed while there is nobody.
_senders: weakref.WeakSet[Any] = weakref.WeakSet()


def _callbacks() -> tuple[Callable[..., Any], ...]:
    """What takes ("start" or "stop", info) for each collection, in this order.

    The first keeps the info. The second, ``getattr(stamps, phase, info)``, reads one of two properties, each of
    which pulls one item through a chain of iterators that never ends.
    """
    infos: dict[str, dict[str, int]] = {}
    clock = iter(time.monotonic_ns, None)
    started = deque([sys.maxsize], maxlen=1)  # of no collection yet: its length would be negative
    starts = map(started.__getitem__, repeat(0))
    is_long = map(FLOOR_NS.__le__, map(sub, clock, starts))
    tids = iter(threading.get_native_id, None)
    pauses = zip(starts, clock, tids, map(infos.__getitem__, repeat("stop")), strict=False)
    by_is_long = (repeat(None), map(waiting.append, pauses))

    class Stamps:
        start = property(partial(next, map(started.append, clock)))
        stop = property(partial(next, map(next, map(by_is_long.__getitem__, is_long))))

    return infos.__setitem__, partial(getattr, Stamps())


_registered = _callbacks()


def watch(sender: object) -> None:
    """Time the collections of this process until the last sender is gone. Another interpreter: nothing."""
    _senders.add(sender)
    if sys.implementation.name == "cpython" and _registered[0] not in gc.callbacks:
        gc.callbacks.extend(_registered)


def unwatch(sender: object) -> None:
    _senders.discard(sender)
    if not _senders:
        waiting.clear()
        for callback in _registered:
            with contextlib.suppress(ValueError):  # never there, or somebody emptied the list
                gc.callbacks.remove(callback)


def take() -> Iterator[Pause]:
    """The pauses that wait. Safe in many threads: each pause is given once."""
    for _ in range(len(waiting)):  # not while there are some: sending can cause the next
        try:
            start_mono_ns, end_mono_ns, tid, info = waiting.popleft()
        except IndexError:  # another thread took the rest
            return
        yield Pause(PauseKind.GC, tid, start_mono_ns, end_mono_ns, info["generation"])


def forget() -> None:
    """In a new process: what waits is its parent's."""
    waiting.clear()
