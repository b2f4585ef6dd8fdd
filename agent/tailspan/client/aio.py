"""What an asyncio event loop did: which callback kept it, for how long, and on behalf of which request.

On a loop a request is on no thread while it awaits; what the loop does meanwhile is then the cause. So every
callback is timed, by wrapping ``asyncio.events.Handle._run`` once, and one that takes longer than the floor
is sent as an activation of kind STEP: the loop thread's tid, and the span id of the request in whose context
it ran.

A loop with handles of its own (uvloop) is not seen: its requests are marked asynchronous and have no steps.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from tailspan.client.connection import Connection
from tailspan.wire.spans import Activation, ActivationKind

#: A callback shorter than this is not worth a message.
FLOOR_NS = 500_000

#: The span id, as a big-endian integer, of the request that this context works for; child tasks inherit it.
current: ContextVar[int] = ContextVar("tailspan_request", default=0)


class _Step(threading.local):
    #: Start of the callback that runs on this thread, or of what is left of it to account for; 0: none seen.
    start_mono_ns = 0


_step = _Step()


class _Watch:
    """Times every callback and sends the long ones to ``connection``."""

    def __init__(self, connection: Connection, floor_ns: int, handle_class: Any) -> None:
        self.connection = connection
        self.floor_ns = int(floor_ns)  # raises here, not in every callback
        self.handle_class = handle_class
        self.original: Callable[[Any], None] = handle_class._run
        self.installed = self._wrap()
        handle_class._run = self.installed

    def _wrap(self) -> Callable[[Any], None]:
        # Locals, not attributes: this runs once for every callback of the worker.
        run, clock, step, floor_ns = self.original, time.monotonic_ns, _step, self.floor_ns

        def _run(handle: Any) -> None:
            start = step.start_mono_ns = clock()
            run(handle)
            if clock() - start > floor_ns:
                self.report(handle)

        return _run

    def report(self, handle: Any) -> None:
        """Send the callback that ended now, without the part that a request took over."""
        try:
            self.send(handle._context.get(current, 0), _name(handle._callback))
        except Exception:  # _context and _callback are asyncio's own
            self.connection.drop()

    def send(self, owner: int, name: str) -> None:
        """Account to ``owner`` for what this thread's callback did up to now, and start the rest afresh."""
        start = _step.start_mono_ns
        now = _step.start_mono_ns = time.monotonic_ns()
        if start and now - start > self.floor_ns:
            tid = threading.get_native_id()
            self.connection.send(Activation(ActivationKind.STEP, tid, start, now, owner, name))

    def remove(self) -> None:
        if self.handle_class._run is self.installed:  # else somebody wrapped it after us: leave theirs
            self.handle_class._run = self.original


_watch: _Watch | None = None


def watch(connection: Connection, floor_ns: int = FLOOR_NS) -> None:
    """Time the callbacks of every asyncio loop of this process. A second watcher replaces the first."""
    global _watch
    from asyncio.events import Handle  # a worker without a loop does not pay for the import

    if _watch is not None:
        _watch.remove()
    _watch = _Watch(connection, floor_ns, Handle)


def unwatch(connection: Connection) -> None:
    global _watch
    if _watch is not None and _watch.connection is connection:
        _watch.remove()
        _watch = None


def loop_is_running() -> bool:
    """Whether this thread is inside an event loop, of whichever kind."""
    events = sys.modules.get("asyncio.events")
    return events is not None and events._get_running_loop() is not None


def within_one_step(start_mono_ns: int) -> bool:
    """Whether this thread has run one callback, without a break, since then. False if nobody watches."""
    return _watch is not None and 0 < _step.start_mono_ns <= start_mono_ns


def take_over(owner: int) -> int:
    """From here on this context works for ``owner``. Returns the one before, to be given back at the end.

    The callback that runs now ends only after the request did, too late to tell of its last step. What it did
    so far is sent here, for the owner before, and the wrapper accounts only for the rest.
    """
    before = current.get()
    current.set(owner)
    if _watch is not None:
        _watch.send(before, "")
    return before


def _name(callback: Any) -> str:
    """The coroutine's name if the callback is a task's step."""
    get_coro = getattr(getattr(callback, "__self__", None), "get_coro", None)
    for named in (get_coro and get_coro(), callback):
        name = getattr(named, "__qualname__", None)
        if isinstance(name, str):
            return name
    return ""
