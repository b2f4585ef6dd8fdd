"""Spans of a process, in whatever order and pieces they come, become requests. No I/O; the caller tells the time.

A *local root* (no parent, or one in another process) is the request. The spans below it in this process are its
spans; the SDKs export a span when it ends, so that they mostly come before it. A request is complete when its root
is there, and no span within its time and trace lacks its parent; else it waits :data:`SETTLE_NS`, and then takes
those spans with it. The other spans without a root wait :data:`WAIT_NS`.

Every span ends as a request, as a span of one, or in ``broken``:

================= =============================================================================================
``bad_id``        its ids are no ids
``unended``       it has no end
``backwards``     it ends before it starts
``too_long``      it lasts longer than the agent looks back
``future``        it ends after it came: the worker's wall clock is not this host's
``before_boot``   it starts before this host did
``duplicate``     it came before: a sender that got no answer sends again
``no_parent``     its parent never came; the span is in the request all the same if it lies within
``no_root``       the request's own span never came
``trace_changed`` its trace id is not its parent's; the span is in the request all the same
``late``          its request was complete without it
``too_many``      its request has more than it may have, and others of it are longer
``overflow``      too many waited for their root; the oldest went
``bad_value``     one of its attributes is not what its name says (the span itself is taken)
================= =============================================================================================
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from tailspan.collect.otlp.spans import ERROR_TYPE, GEN_AI_MODEL, REQUEST_ID_HEADER, Parentage, WorkerSpan
from tailspan.timeline.inbox import MAX_REQUEST_NS, Received
from tailspan.wire import span_attributes as names
from tailspan.wire.spans import MAX_SPANS, Request, Span, SpanKind

#: Spans of one trace in one process, of one process, and of all, that wait for their root.
MAX_OF_TRACE = 1024
MAX_OF_PROCESS = 4096
MAX_HELD = 16_384
#: For how long a span waits for its root.
WAIT_NS = 60 * 1_000_000_000
#: For how long a root waits for parents that are missing: an SDK exports every five seconds.
SETTLE_NS = 6 * 1_000_000_000
#: By how much the two clocks may seem to differ.
CLOCK_ERROR_NS = 1_000_000
#: Spans, and traces, are remembered for so long when their request is complete, and so many, to know what comes
#: late or twice: exporters of SDKs repeat what was not taken for about a minute.
REMEMBER_NS = 120 * 1_000_000_000
MAX_REMEMBERED = 16_384

_TRACE_ID_BYTES = 16
_SPAN_ID_BYTES = 8

Id = tuple[bytes, bytes]  #: trace id, span id
#: What is known of processes, by what it is about -> when; oldest first.
Memory = OrderedDict[tuple[int, Hashable], int]


@dataclass(slots=True)
class _Held:
    span: WorkerSpan
    start_mono_ns: int
    end_mono_ns: int
    came_mono_ns: int

    @property
    def id(self) -> Id:
        return self.span.trace_id, self.span.span_id

    @property
    def is_root(self) -> bool:
        return self.span.parentage is not Parentage.LOCAL

    @property
    def wall_ns(self) -> int:
        return self.end_mono_ns - self.start_mono_ns

    def contains(self, other: _Held) -> bool:
        return self.start_mono_ns <= other.start_mono_ns and other.end_mono_ns <= self.end_mono_ns


@dataclass(slots=True)
class _Process:
    """The spans of one process that wait."""

    held: OrderedDict[Id, _Held] = field(default_factory=OrderedDict)  #: oldest first
    traces: dict[bytes, dict[Id, _Held]] = field(default_factory=dict)
    children: dict[bytes, dict[Id, _Held]] = field(default_factory=dict)  #: by the parent's span id, of any trace
    roots: dict[bytes, dict[Id, _Held]] = field(default_factory=dict)  #: by trace id
    changed: set[bytes] = field(default_factory=set)  #: traces to which spans have come since take()

    def hold(self, item: _Held) -> None:
        self.held[item.id] = item
        self.changed.add(item.span.trace_id)
        for table, key in self._places(item):
            table.setdefault(key, {})[item.id] = item

    def release(self, item: _Held) -> None:
        del self.held[item.id]
        for table, key in self._places(item):
            del table[key][item.id]
            if not table[key]:
                del table[key]

    def below(self, top: _Held) -> dict[Id, _Held]:
        """What hangs below it; also what says another trace, if it has no parent there."""
        found: dict[Id, _Held] = {}
        stack = [top]
        while stack:
            parent = stack.pop()
            for child in self.children.get(parent.span.span_id, {}).values():
                own = child.span.trace_id == parent.span.trace_id or not self._has_parent(child)
                if own and child.id not in found:
                    found[child.id] = child
                    stack.append(child)
        return found

    def orphans(self, trace_id: bytes) -> dict[Id, _Held]:
        """Spans of the trace, no roots, whose parents are not there."""
        return {
            item.id: item
            for item in self.traces.get(trace_id, {}).values()
            if not item.is_root and not self._has_parent(item)
        }

    def _places(self, item: _Held) -> tuple[tuple[dict[bytes, dict[Id, _Held]], bytes], ...]:
        of_trace = (self.traces, item.span.trace_id)
        if item.is_root:
            return of_trace, (self.roots, item.span.trace_id)
        return of_trace, (self.children, item.span.parent_id)

    def _has_parent(self, item: _Held) -> bool:
        return (item.span.trace_id, item.span.parent_id) in self.held


class Assembler:
    """``broken`` counts spans by the reasons above."""

    def __init__(
        self,
        max_of_process: int = MAX_OF_PROCESS,
        max_held: int = MAX_HELD,
        wait_ns: int = WAIT_NS,
        settle_ns: int = SETTLE_NS,
    ) -> None:
        self._max_of_process = max_of_process
        self._max_held = max_held
        self._wait_ns = wait_ns
        self._settle_ns = settle_ns
        self._processes: dict[int, _Process] = {}
        self._remembered: Memory = OrderedDict()  # ids
        self._finished_traces: Memory = OrderedDict()
        self._count = 0
        self.broken: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Spans that wait now."""
        return self._count

    def add(self, tgid: int, spans: Iterable[WorkerSpan], came_mono_ns: int, unix_offset_ns: int) -> None:
        """Spans of one message. ``unix_offset_ns``: CLOCK_REALTIME less CLOCK_MONOTONIC when it came."""
        process = self._processes.setdefault(tgid, _Process())
        for span in spans:
            start, end = span.start_unix_ns - unix_offset_ns, span.end_unix_ns - unix_offset_ns
            item = _Held(span, start, end, came_mono_ns)
            reason = _impossible(item) or self._repeated(tgid, process, item)
            if reason:
                self.broken[reason] += 1
                continue
            item.end_mono_ns = min(item.end_mono_ns, came_mono_ns)
            item.start_mono_ns = min(item.start_mono_ns, came_mono_ns)
            process.hold(item)
            self._count += 1
            self._bound(process, process.traces[span.trace_id])

    def take(self, now_mono_ns: int) -> list[Received]:
        """The requests that are complete; spans that have waited too long go."""
        complete: list[Received] = []
        for tgid, process in list(self._processes.items()):
            for trace_id in list(process.roots):
                roots = list(process.roots[trace_id].values())
                # nothing new in it: only time can complete it
                if trace_id in process.changed or any(self._is_due(root, now_mono_ns) for root in roots):
                    complete += self._finish(tgid, process, trace_id, roots, now_mono_ns)
            process.changed.clear()
            self._expire(tgid, process, now_mono_ns)
            if not process.held:
                del self._processes[tgid]
        for table in (self._remembered, self._finished_traces):
            _forget_before(table, now_mono_ns - REMEMBER_NS)
        return complete

    def forget(self, tgid: int) -> None:
        """The process is gone; what of it has no root will never have one."""
        process = self._processes.pop(tgid, None)
        if process:
            self.broken["no_root"] += len(process.held)
            self._count -= len(process.held)

    def _repeated(self, tgid: int, process: _Process, item: _Held) -> str:
        if item.id in process.held or (tgid, item.id) in self._remembered:
            return "duplicate"
        parent = (item.span.trace_id, item.span.parent_id)
        return "late" if not item.is_root and (tgid, parent) in self._remembered else ""

    def _bound(self, process: _Process, trace: dict[Id, _Held]) -> None:
        if len(trace) > MAX_OF_TRACE:
            self._drop(process, next(iter(trace.values())), "overflow")
        if len(process.held) > self._max_of_process:
            self._drop(process, next(iter(process.held.values())), "overflow")
        if self._count > self._max_held:
            fullest = max(self._processes.values(), key=lambda one: len(one.held))
            self._drop(fullest, next(iter(fullest.held.values())), "overflow")

    def _drop(self, process: _Process, item: _Held, reason: str) -> None:
        process.release(item)
        self._count -= 1
        self.broken[reason] += 1

    def _is_due(self, root: _Held, now_mono_ns: int) -> bool:
        return now_mono_ns - root.came_mono_ns >= self._settle_ns

    def _finish(
        self, tgid: int, process: _Process, trace_id: bytes, roots: list[_Held], now_mono_ns: int
    ) -> list[Received]:
        """Of these roots of one trace those that need not wait for more."""
        orphans = process.orphans(trace_id)
        complete: list[Received] = []
        # the inner ones first: what lies in two requests' times is the inner one's
        for root in sorted(roots, key=lambda item: (item.wall_ns, item.id)):
            below = process.below(root)
            missing = [item for item in orphans.values() if root.contains(item) and item.id not in below]
            if missing and not self._is_due(root, now_mono_ns):
                continue
            for orphan in missing:
                below |= {orphan.id: orphan} | process.below(orphan)
            changed = sum(item.span.trace_id != trace_id for item in below.values())
            self._count_broken("no_parent", len(missing))
            self._count_broken("trace_changed", changed)
            for item in (root, *below.values()):
                process.release(item)
                orphans.pop(item.id, None)
                self._remember(tgid, item, now_mono_ns)
            self._count -= 1 + len(below)
            request = self._request(root, list(below.values()), len(missing) + changed)
            complete.append(Received(tgid, request, root.came_mono_ns))
        return complete

    def _remember(self, tgid: int, item: _Held, now_mono_ns: int) -> None:
        _note(self._remembered, (tgid, item.id), now_mono_ns)
        _note(self._finished_traces, (tgid, item.span.trace_id), now_mono_ns)

    def _request(self, root: _Held, below: list[_Held], broken: int) -> Request:
        below.sort(key=lambda item: (-item.wall_ns, item.start_mono_ns, item.id))
        self._count_broken("too_many", max(0, len(below) - MAX_SPANS))
        below = sorted(below[:MAX_SPANS], key=lambda item: (item.start_mono_ns, -item.end_mono_ns, item.id))
        span = root.span
        request = Request(
            trace_id=span.trace_id,
            span_id=span.span_id,
            parent_id=span.parent_id if span.parentage is not Parentage.NONE else bytes(_SPAN_ID_BYTES),
            request_id=_text(span, names.REQUEST_ID) or _text(span, REQUEST_ID_HEADER),
            name=span.name,
            tid=self._uint(span, names.THREAD_TID, 32),
            start_mono_ns=root.start_mono_ns,
            end_mono_ns=root.end_mono_ns,
            status=(_text(span, ERROR_TYPE) or "error") if span.failed else "ok",
            spans=[self._span(item) for item in below],
            peer_port=self._peer_port(span),
            broken=broken,
        )
        for item in (root, *below):
            self._read_attributes(request, item.span)
        return request

    def _span(self, item: _Held) -> Span:
        tid = self._uint(item.span, names.THREAD_TID, 32)
        return Span(item.span.name, SpanKind.SYNC, tid, item.start_mono_ns, item.end_mono_ns)

    def _read_attributes(self, request: Request, span: WorkerSpan) -> None:
        """Model and batch are the first's that tells them."""
        model = _text(span, names.MODEL_NAME) or _text(span, GEN_AI_MODEL)
        if model and not request.model:
            request.model, request.model_version = model, _text(span, names.MODEL_VERSION)
        if names.BATCH_ID in span.attributes and not request.batch_id:
            request.batch_id = self._uint(span, names.BATCH_ID, 64)
            request.batch_size = self._uint(span, names.BATCH_SIZE, 32)
            request.batch_capacity = self._uint(span, names.BATCH_CAPACITY, 32)

    def _peer_port(self, span: WorkerSpan) -> int:
        """0 when the span does not say, or is a caller's: the port is then of the server that it calls."""
        named = () if span.is_caller else (name for name in names.PEER_PORTS if name in span.attributes)
        return next((self._uint(span, name, 16) for name in named), 0)

    def _uint(self, span: WorkerSpan, name: str, bits: int) -> int:
        value = span.attributes.get(name, 0)
        if isinstance(value, int) and 0 <= value < 1 << bits:
            return value
        self.broken["bad_value"] += 1
        return 0

    def _expire(self, tgid: int, process: _Process, now_mono_ns: int) -> None:
        while process.held:
            oldest = next(iter(process.held.values()))
            if now_mono_ns - oldest.came_mono_ns < self._wait_ns:
                break
            finished = (tgid, oldest.span.trace_id) in self._finished_traces
            self._drop(process, oldest, "no_parent" if finished else "no_root")

    def _count_broken(self, reason: str, count: int) -> None:
        if count:
            self.broken[reason] += count


def _note(table: Memory, key: tuple[int, Hashable], now_mono_ns: int) -> None:
    table[key] = now_mono_ns
    table.move_to_end(key)
    if len(table) > MAX_REMEMBERED:
        table.popitem(last=False)


def _forget_before(table: Memory, mono_ns: int) -> None:
    while table and next(iter(table.values())) < mono_ns:
        table.popitem(last=False)


def _impossible(item: _Held) -> str:
    """Why the span cannot be what it says; "" where it can."""
    span = item.span
    parent_is_id = span.parentage is Parentage.NONE or _is_id(span.parent_id, _SPAN_ID_BYTES)
    if not (_is_id(span.trace_id, _TRACE_ID_BYTES) and _is_id(span.span_id, _SPAN_ID_BYTES) and parent_is_id):
        return "bad_id"
    if not span.end_unix_ns:
        return "unended"
    if item.wall_ns < 0:
        return "backwards"
    if item.wall_ns > MAX_REQUEST_NS:
        return "too_long"
    if item.end_mono_ns > item.came_mono_ns + CLOCK_ERROR_NS:
        return "future"
    return "before_boot" if item.start_mono_ns < 0 else ""


def _is_id(value: bytes, length: int) -> bool:
    return len(value) == length and any(value)


def _text(span: WorkerSpan, name: str) -> str:
    value = span.attributes.get(name, "")
    return value if isinstance(value, str) else str(value)
