"""For a worker that already traces with the OpenTelemetry SDK: one line makes its spans tailspan's.

::

    provider.add_span_processor(TailspanSpanProcessor(tailspan.client.connect("resnet")))

A *local root* (no parent, or one in another process) is the request; the spans below it in this process are its
spans. Times and thread ids are taken as the spans start and end, not converted from the SDK's wall clock. A span
that its sampler dropped never gets here, so that request stays unseen.

Where the agent takes OTLP (``[otlp]`` in its configuration), a worker may instead export its spans there with the
SDK's own exporter. The agent then infers which thread served a request, unless the spans say it::

    provider.add_span_processor(ThreadIdSpanProcessor())  # before the exporter's
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.trace import SpanContext, StatusCode
from opentelemetry.trace import SpanKind as OtelSpanKind

from tailspan.client import Client, aio
from tailspan.client.request import text, uint
from tailspan.wire.span_attributes import (
    BATCH_CAPACITY,
    BATCH_ID,
    BATCH_SIZE,
    MODEL_NAME,
    MODEL_VERSION,
    PEER_PORTS,
    THREAD_TID,
)
from tailspan.wire.spans import MAX_SPANS, Request, Span, SpanKind

__all__ = [
    "BATCH_CAPACITY",
    "BATCH_ID",
    "BATCH_SIZE",
    "MAX_OPEN",
    "MODEL_NAME",
    "MODEL_VERSION",
    "PEER_PORTS",
    "THREAD_TID",
    "TailspanSpanProcessor",
    "ThreadIdSpanProcessor",
]

#: Requests followed at once; beyond, the oldest is forgotten: its root was probably never ended.
MAX_OPEN = 1024


@dataclass(slots=True)
class _Start:
    tid: int
    mono_ns: int


@dataclass(slots=True)
class _Open:
    """A request whose root span has not ended."""

    message: Request
    pid: int
    owner_before: int = 0
    #: every span of the request by its id; None once it has ended
    starts: dict[int, _Start | None] = field(default_factory=dict)


class TailspanSpanProcessor(SpanProcessor):
    """Bounded, never blocks and never raises; what is lost is counted in the client's ``dropped``."""

    def __init__(self, client: Client, max_open: int = MAX_OPEN) -> None:
        self._connection = client.connection
        self._max_open = max_open
        # Single dict operations only, which are atomic: no lock is held when another thread forks.
        self._open: dict[int, _Open] = {}  # by root span id, oldest first
        self._by_span: dict[int, _Open] = {}  # by the id of every span of those

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        try:
            start = _Start(threading.get_native_id(), time.monotonic_ns())
            if span.parent is None or span.parent.is_remote:
                self._begin(span, start)
            else:
                self._follow(span, span.parent, start)
        except Exception:
            self._connection.drop()

    def on_end(self, span: ReadableSpan) -> None:
        try:
            request = self._by_span.get(span.context.span_id)
            if request is None or request.pid != self._connection.pid:
                return  # counted when it was not followed, or when its request was forgotten; or the parent's
            self._read_attributes(request.message, span)
            if span.context.span_id in self._open:
                self._end(request, span)
            else:
                self._end_child(request, span)
        except Exception:
            self._connection.drop()

    def shutdown(self) -> None:
        """The client is the worker's, and outlives the SDK."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True  # nothing waits here

    def _begin(self, span: SdkSpan, start: _Start) -> None:
        self._connection.ready()
        context, parent = span.context, span.parent
        message = Request(
            context.trace_id.to_bytes(16, "big"),
            context.span_id.to_bytes(8, "big"),
            (parent.span_id if parent else 0).to_bytes(8, "big"),
            request_id="",
            name="",
            tid=start.tid,
            start_mono_ns=start.mono_ns,
            end_mono_ns=0,
            sampled=context.trace_flags.sampled,
            asynchronous=aio.loop_is_running(),
        )
        request = _Open(message, self._connection.pid)
        if message.asynchronous:
            request.owner_before = aio.take_over(context.span_id)
        self._open[context.span_id] = request
        self._track(request, context, start)
        while len(self._open) > self._max_open:
            self._forget(next(iter(self._open)))
            self._connection.drop()

    def _follow(self, span: SdkSpan, parent: SpanContext, start: _Start) -> None:
        request = self._by_span.get(parent.span_id)
        if request is None or len(request.starts) > MAX_SPANS:
            self._connection.drop()
        else:
            self._track(request, span.context, start)

    def _track(self, request: _Open, context: SpanContext, start: _Start) -> None:
        request.starts[context.span_id] = start
        self._by_span[context.span_id] = request

    def _end_child(self, request: _Open, span: ReadableSpan) -> None:
        end_mono_ns = time.monotonic_ns()
        start = request.starts[span.context.span_id]
        if start is None:
            return
        request.starts[span.context.span_id] = None
        tid = threading.get_native_id()
        kind = SpanKind.SYNC
        if tid != start.tid:
            tid = 0  # begun by one thread, ended by another: which of them worked is not known
        elif aio.loop_is_running() and not aio.within_one_step(start.mono_ns):
            kind = SpanKind.AWAIT
        request.message.spans.append(Span(text(span.name), kind, tid, start.mono_ns, end_mono_ns))

    def _end(self, request: _Open, span: ReadableSpan) -> None:
        message = request.message
        message.end_mono_ns = time.monotonic_ns()
        message.name = text(span.name)  # instrumentation often learns the route after the start
        message.peer_port = self._peer_port(span)
        message.status = "error" if span.status.status_code is StatusCode.ERROR else "ok"
        self._forget(span.context.span_id)
        if message.asynchronous:
            aio.take_over(request.owner_before)
        for start in list(request.starts.values())[1:]:
            if start is not None:
                self._connection.drop()  # still open: it ends too late to be told
        self._connection.send(message)

    def _peer_port(self, span: ReadableSpan) -> int:
        """0 when the span does not say, or is a caller's: the port is then of the server that it calls."""
        attributes = span.attributes
        if attributes and span.kind not in (OtelSpanKind.CLIENT, OtelSpanKind.PRODUCER):
            for name in PEER_PORTS:
                if name in attributes:
                    try:
                        return uint(attributes[name], 16)
                    except (TypeError, ValueError):
                        self._connection.drop()
                        return 0
        return 0

    def _forget(self, root_span_id: int) -> None:
        request = self._open.pop(root_span_id, None)
        for span_id in list(request.starts) if request else ():
            self._by_span.pop(span_id, None)

    def _read_attributes(self, message: Request, span: ReadableSpan) -> None:
        attributes = span.attributes
        if not attributes:
            return
        if MODEL_NAME in attributes:
            message.model = text(attributes[MODEL_NAME])
            message.model_version = text(attributes.get(MODEL_VERSION))
        if BATCH_ID in attributes:
            try:
                batch = (
                    uint(attributes[BATCH_ID], 64),
                    uint(attributes.get(BATCH_SIZE, 0), 32),
                    uint(attributes.get(BATCH_CAPACITY, 0), 32),
                )
            except (TypeError, ValueError):
                self._connection.drop()
            else:
                message.batch_id, message.batch_size, message.batch_capacity = batch


class ThreadIdSpanProcessor(SpanProcessor):
    """Says on each span which thread began it, as the kernel numbers it (:data:`THREAD_TID`).

    For synchronous workers: a span that is begun by one thread and ended by another is taken for the first one's.
    """

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        span.set_attribute(THREAD_TID, threading.get_native_id())

    def on_end(self, span: ReadableSpan) -> None:
        """Nothing is to be said by then."""

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True  # nothing waits here
