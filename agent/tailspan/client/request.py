"""What a worker says about a request while it serves it. Nothing here raises into the worker.

A wrong value costs the part it belongs to (a span, the batch), and is counted in the client's ``dropped``.
"""

from __future__ import annotations

import threading
import time
from operator import index
from types import TracebackType
from typing import Any

from tailspan.client import aio, trace
from tailspan.client.connection import Connection
from tailspan.wire.spans import MAX_SPANS, MAX_TEXT, Activation, ActivationKind, Request, Span, SpanKind


class ActiveRequest:
    """``with client.request(...) as request``: sent to the agent at its end.

    Begun in a coroutine it is *asynchronous*: its own time is that of the event loop's steps for it.
    ``status`` may be set to anything short; it becomes ``error`` when an exception leaves the block.
    """

    __slots__ = ("_before", "_connection", "_context", "_ended", "_given", "_message", "_pid", "status")

    def __init__(self, connection: Connection, given: tuple[Any, Any, Any, Any, Any, Any, Any]) -> None:
        """``given``: name, traceparent, headers, request id, model, its version, peer; read when it begins."""
        self.status = "ok"
        self._connection = connection
        self._given = given
        self._context: trace.TraceContext | None = None
        self._message: Request | None = None  # None too while the agent is absent: nothing is recorded for nobody
        self._ended = False
        self._before = 0
        self._pid = connection.pid

    def __enter__(self) -> ActiveRequest:
        try:
            self._begin()
        except Exception:
            self._connection.drop()
            self._ended = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        end_mono_ns = time.monotonic_ns()
        if kind is not None and self.status == "ok":
            self.status = "error"
        try:
            self._end(end_mono_ns)
        except Exception:
            self._connection.drop()

    def span(self, name: str) -> ActiveSpan:
        """``with request.span("preprocess")``: work of the thread that leaves the block.

        In a coroutine a span that stayed within one step of the loop is the loop thread's work; one that
        awaited says that the request was suspended.
        """
        return ActiveSpan(self, name)

    def add_span(self, name: str, tid: int, start_mono_ns: int, end_mono_ns: int) -> None:
        """Work of the thread ``tid`` (``threading.get_native_id()``), told before the request ends."""
        self._add(name, SpanKind.SYNC, tid, start_mono_ns, end_mono_ns)

    def queued(self, enqueue_mono_ns: int, dequeue_mono_ns: int, tid: int = 0) -> None:
        """The request waited until the thread ``tid`` began to work on it, or on the batch that has it."""
        self._add("queue", SpanKind.QUEUED, tid, enqueue_mono_ns, dequeue_mono_ns)

    def batch(self, batch_id: int, size: int, capacity: int) -> None:
        """The batch that carried the request: the id that ``client.batch()`` was given for it."""
        try:
            numbers = uint(batch_id, 64), uint(size, 32), uint(capacity, 32)
            if self._message is not None:
                self._message.batch_id, self._message.batch_size, self._message.batch_capacity = numbers
        except Exception:
            self._connection.drop()

    def device(self, uuid: str, provider: str = "") -> None:
        """The GPU that it ran on, by its UUID as NVML has it (``GPU-…``, ``MIG-…``), and what ran it there.

        ``provider``: in the runtime's words, e.g. ``CUDAExecutionProvider``. Either may be empty.
        """
        try:
            facts = text(uuid), text(provider)
            if self._message is not None:
                self._message.device, self._message.provider = facts
        except Exception:
            self._connection.drop()

    def traceparent(self) -> str:
        """The header for calls downstream: it makes them children of this request. Empty before it began."""
        return "" if self._context is None else self._context.traceparent()

    def _begin(self) -> None:
        name, traceparent, headers, request_id, model, model_version, peer = self._given
        self._context = context = self._found(traceparent, headers)
        if not self._connection.ready():
            return
        self._message = message = Request(
            context.trace_id,
            context.span_id,
            context.parent_id,
            text(request_id),
            text(name),
            threading.get_native_id(),
            time.monotonic_ns(),
            0,
            text(model),
            text(model_version),
            sampled=bool(context.flags & trace.SAMPLED),
            asynchronous=aio.loop_is_running(),
        )
        if peer:  # a unix socket's is empty
            try:
                message.peer_port = uint(peer[1], 16)
            except Exception:
                self._connection.drop()
        if message.asynchronous:
            self._before = aio.take_over(int.from_bytes(context.span_id, "big"))

    def _found(self, traceparent: Any, headers: Any) -> trace.TraceContext:
        """The header that was named goes before those among which it is looked for."""
        if headers is None or trace.parse(traceparent) is not None:
            return trace.from_header(traceparent)
        try:
            return trace.from_headers(headers)
        except Exception:  # no headers at all
            self._connection.drop()
            return trace.from_header(None)

    def _end(self, end_mono_ns: int) -> None:
        message, self._message = self._message, None
        if self._ended or self._pid != self._connection.pid:
            return  # never begun, or begun by the process that this one is a fork of, which sends it
        self._ended = True
        if message is None:
            self._connection.drop()
            return
        if message.asynchronous:
            aio.take_over(self._before)
        message.end_mono_ns = end_mono_ns
        message.status = text(self.status)
        self._connection.send(message)

    def _record(self, name: str, start_mono_ns: int) -> None:
        message = self._message
        if message is None:
            if self._ended:
                self._connection.drop()
            return
        tid = threading.get_native_id()
        suspended = message.asynchronous and tid == message.tid and not aio.within_one_step(start_mono_ns)
        kind = SpanKind.AWAIT if suspended else SpanKind.SYNC
        self._append(message, Span(text(name), kind, tid, start_mono_ns, time.monotonic_ns()))

    def _add(self, name: str, kind: SpanKind, tid: int, start_mono_ns: int, end_mono_ns: int) -> None:
        try:
            message = self._message
            if message is not None:
                start, end = uint(start_mono_ns, 63), uint(end_mono_ns, 63)
                if end < start:
                    raise ValueError("ends before it starts")
                self._append(message, Span(text(name), kind, uint(tid, 32), start, end))
            elif self._ended:
                self._connection.drop()
        except Exception:
            self._connection.drop()

    def _append(self, message: Request, span: Span) -> None:
        if len(message.spans) < MAX_SPANS:
            message.spans.append(span)
        else:
            self._connection.drop()


class ActiveSpan:
    """``with request.span(name)``."""

    __slots__ = ("_name", "_request", "_start_mono_ns")

    def __init__(self, request: ActiveRequest, name: str) -> None:
        self._request = request
        self._name = name
        self._start_mono_ns = 0

    def __enter__(self) -> None:
        self._start_mono_ns = time.monotonic_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._request._record(self._name, self._start_mono_ns)
        except Exception:
            self._request._connection.drop()


class ActiveBatch:
    """``with client.batch(...)``: sent at its end as the work of the thread that ran it."""

    __slots__ = ("_connection", "_given", "_start_mono_ns")

    def __init__(self, connection: Connection, given: tuple[Any, Any, Any, Any]) -> None:
        """``given``: batch id, size, capacity, name."""
        self._connection = connection
        self._given = given
        self._start_mono_ns = 0

    def __enter__(self) -> None:
        self._start_mono_ns = time.monotonic_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            batch_id, size, capacity, name = self._given
            message = Activation(
                ActivationKind.BATCH,
                threading.get_native_id(),
                self._start_mono_ns,
                time.monotonic_ns(),
                uint(batch_id, 64),
                text(name),
                uint(size, 32),
                uint(capacity, 32),
            )
        except Exception:
            self._connection.drop()
        else:
            self._connection.send(message)


def text(value: object) -> str:
    """What the agent would keep of it, fit for UTF-8. None is no text."""
    cut = "" if value is None else str(value)[:MAX_TEXT]
    return cut if cut.isascii() else cut.encode("utf-8", "replace").decode()


def uint(value: Any, bits: int) -> int:
    """An integer (numpy's too) of so many bits; TypeError or ValueError for anything else."""
    number = index(value)
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{number} is no unsigned integer of {bits} bits")
    return number
