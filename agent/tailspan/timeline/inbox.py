"""Worker messages become rows: tids translated to the host's, strings interned, everything bounded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from tailspan.timeline.evidence import Table
from tailspan.timeline.tables import ACTIVATION, LOSS, LOSS_CLIENT, PAUSE, REQUEST, SPAN, Join
from tailspan.timeline.threads import Threads
from tailspan.timeline.window import Strings
from tailspan.wire.spans import Activation, Drops, Hello, Message, Pause, Request

#: A request, activation or pause longer than this is refused: its start is long out of any window.
MAX_REQUEST_NS = 600 * 1_000_000_000


@dataclass(slots=True)
class Received:
    tgid: int  #: the sender, as the kernel vouches for it
    message: Message
    mono_ns: int  #: when the agent read it


#: Field of :class:`Rows` -> its table's type.
ROWS = {"requests": REQUEST, "spans": SPAN, "activations": ACTIVATION, "losses": LOSS, "pauses": PAUSE}


@dataclass(slots=True)
class Rows:
    requests: Table
    spans: Table
    activations: Table
    losses: Table
    pauses: Table


class Inbox:
    """``dropped`` counts refused messages by reason."""

    def __init__(self, threads: Threads, strings: Strings) -> None:
        self._threads = threads
        self._strings = strings
        self._services: dict[int, str] = {}
        self.resources: dict[int, dict[str, str]] = {}  # tgid -> OpenTelemetry resource of the worker
        self.runtime_locks: dict[int, list[list[int]]] = {}  # tgid -> [first, past) of its interpreter's own locks
        self._drops: dict[int, tuple[int, int]] = {}  # tgid -> (cumulative, when last heard)
        self.dropped: Counter[str] = Counter()

    def rows(self, received: list[Received]) -> Rows:
        """The rows of these messages; a span's ``request`` indexes the requests returned here."""
        requests: list[tuple[object, ...]] = []
        spans: list[tuple[object, ...]] = []
        activations: list[tuple[object, ...]] = []
        losses: list[tuple[object, ...]] = []
        pauses: list[tuple[object, ...]] = []
        for item in received:
            message = item.message
            if isinstance(message, Request):
                self._request(item, message, requests, spans)
            elif isinstance(message, Activation):
                self._activation(item, message, activations)
            elif isinstance(message, Pause):
                self._pause(item, message, pauses)
            elif isinstance(message, Hello):
                self._hello(item.tgid, message)
            else:
                self._client_drops(item, message, losses)
        return Rows(
            np.array(requests, REQUEST),
            np.array(spans, SPAN),
            np.array(activations, ACTIVATION),
            np.array(losses, LOSS),
            np.array(pauses, PAUSE),
        )

    def forget(self, tgid: int) -> None:
        """The process is gone."""
        for table in (self._services, self.resources, self.runtime_locks, self._drops):
            table.pop(tgid, None)

    def _request(
        self,
        item: Received,
        request: Request,
        requests: list[tuple[object, ...]],
        spans: list[tuple[object, ...]],
    ) -> None:
        if not self._possible(item, request):
            return
        intern, row = self._strings.index, len(requests)
        tid = self._tid(item.tgid, request.tid)
        requests.append(
            (
                request.trace_id,
                request.span_id,
                request.parent_id,
                request.request_id.encode()[:48],
                0,  # when it arrived is the kernel's to say
                request.start_mono_ns,
                request.end_mono_ns,
                item.mono_ns,
                request.batch_id,
                min(request.batch_size, 0xFFFFFFFF),
                min(request.batch_capacity, 0xFFFFFFFF),
                intern(request.name),
                intern(request.model),
                intern(request.model_version),
                intern(self._services.get(item.tgid, "")),
                intern(request.status),
                intern(request.device),
                intern(request.provider),
                tid,
                item.tgid,
                0,  # set where its thread is inferred
                min(request.broken, 0xFFFF),
                request.peer_port,
                request.sampled,
                request.asynchronous,
                Join.SAID if tid else Join.NONE,
            )
        )
        for span in request.spans:
            of_span = self._tid(item.tgid, span.tid)
            spans.append((span.start_mono_ns, span.end_mono_ns, row, intern(span.name), of_span, span.kind))

    def _activation(self, item: Received, activation: Activation, rows: list[tuple[object, ...]]) -> None:
        if not self._possible(item, activation):
            return
        rows.append(
            (
                activation.start_mono_ns,
                activation.end_mono_ns,
                activation.owner,
                self._tid(item.tgid, activation.tid),
                item.tgid,
                activation.kind,
                self._strings.index(activation.name),
                min(activation.size, 0xFFFFFFFF),
                min(activation.capacity, 0xFFFFFFFF),
            )
        )

    def _pause(self, item: Received, pause: Pause, rows: list[tuple[object, ...]]) -> None:
        if self._possible(item, pause):
            tid = self._tid(item.tgid, pause.tid)
            rows.append((pause.start_mono_ns, pause.end_mono_ns, tid, item.tgid, pause.kind, pause.generation))

    def _possible(self, item: Received, message: Request | Activation | Pause) -> bool:
        """Whether its times can be true; counted where not."""
        if message.end_mono_ns - message.start_mono_ns > MAX_REQUEST_NS:
            self.dropped["too_long"] += 1
        elif message.end_mono_ns > item.mono_ns:
            self.dropped["future"] += 1
        else:
            return True
        return False

    def _hello(self, tgid: int, hello: Hello) -> None:
        self._services[tgid] = hello.service
        resource = {"service.name": hello.service, "process.pid": str(tgid)}
        if hello.service_version:
            resource["service.version"] = hello.service_version
        self.resources[tgid] = resource | hello.resource
        self.runtime_locks[tgid] = hello.runtime_locks

    def _client_drops(self, item: Received, drops: Drops, losses: list[tuple[object, ...]]) -> None:
        before, since = self._drops.get(item.tgid, (0, item.mono_ns))
        if drops.count < before:  # overtaken by what another connection of the process says
            return
        if drops.count > before:
            losses.append((since, item.mono_ns, drops.count - before, LOSS_CLIENT, 0))
        self._drops[item.tgid] = (drops.count, item.mono_ns)

    def _tid(self, tgid: int, ns_tid: int) -> int:
        """The host's tid; 0 (a thread nobody followed) where the worker named none or a wrong one."""
        if not ns_tid:
            return 0
        tid = self._threads.host_tid(tgid, ns_tid)
        if not tid:
            self.dropped["unknown_tid"] += 1
        self._threads.name(tid)
        return tid
