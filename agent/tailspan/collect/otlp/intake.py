"""What both servers do with a message, on whichever of their threads has it."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tailspan import clock, log
from tailspan.collect.otlp.decode import decode
from tailspan.collect.otlp.senders import Peer, Process, Senders
from tailspan.collect.otlp.spans import Resource, WorkerSpan, resource, worker_spans
from tailspan.errors import MessageError
from tailspan.wire.otlp import Signal

logger = logging.getLogger(__name__)

#: signal, the message as it came but for its compression, its items, whether it is JSON
Forward = Callable[[Signal, bytes, int, bool], None]

#: Spans and resources that wait for the daemon's thread, which takes some of them about 60 times a second.
MAX_QUEUED = 32_768
#: Of those, from one process: the rest is for others.
MAX_QUEUED_OF_ONE = MAX_QUEUED // 2
#: What it takes at a time, about 20 ms of it; the spans of a resource are not parted.
MAX_DRAINED = 2048


#: A process of this host, or the address of another one.
Sender = int | bytes


class Turns:
    """Messages that are worked on at a time, in all and of one sender; for any thread."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most, self._most_of_one = most, most_of_one
        self._changed = threading.Condition()
        self._taken: Counter[Sender] = Counter()

    @contextmanager
    def of(self, sender: Sender, wait_s: float) -> Iterator[None]:
        """Raises :class:`MessageError` with reason ``busy`` where none is free within that time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_one(sender), wait_s):
                raise MessageError(
                    "busy", f"{self._taken.total()} messages are being read, {self._taken[sender]} yours"
                )
            self._taken[sender] += 1
        try:
            yield
        finally:
            with self._changed:
                self._taken -= Counter([sender])
                self._changed.notify_all()

    def _has_one(self, sender: Sender) -> bool:
        return self._taken.total() < self._most and self._taken[sender] < self._most_of_one


@dataclass(frozen=True, slots=True)
class Told:
    """The spans of one resource in one message, and whose they are."""

    tgid: int
    resource: Resource
    spans: list[WorkerSpan]
    came_mono_ns: int
    unix_offset_ns: int

    @property
    def weight(self) -> int:
        return 1 + len(self.spans)


class Intake:
    """Forwards messages, and queues what they say for the daemon's thread."""

    def __init__(self, forward: Forward, senders: Senders, allow_uids: tuple[int, ...]) -> None:
        self.senders = senders
        self._forward = forward
        self._allow_uids = allow_uids
        self._lock = threading.Lock()
        # A message may take 30 times its length: one at a time, and on one thread, since each keeps what it freed.
        self._decoder = ThreadPoolExecutor(1, "tailspan-otlp-decode")
        self._queue: deque[Told] = deque()
        self._queued = 0
        self._queued_of: Counter[int] = Counter()  # by process
        self._refused: Counter[str] = Counter()
        self._received: Counter[Signal] = Counter()

    @property
    def refused(self) -> Counter[str]:
        with self._lock:
            return self._refused.copy()

    @property
    def received(self) -> Counter[Signal]:
        with self._lock:
            return self._received.copy()

    def allow(self, uids: tuple[int, ...]) -> None:
        """Whose messages are taken from now on; all, where it is empty."""
        self._allow_uids = uids

    def sender(self, peer: Peer | None) -> Sender:
        """Who shares in what there is for one: the process, or another host."""
        holders = self.senders.holders(peer) if peer else ()
        return holders[0].tgid if holders else peer.address if peer else b""

    def count(self, reason: str) -> None:
        with self._lock:
            self._refused[reason] += 1

    def take(self, signal: Signal, body: bytes, is_json: bool, peer: Peer | None) -> None:
        """One message, decompressed. Raises :class:`MessageError` where it is refused; the caller counts it."""
        came = time.monotonic_ns()
        holders = self.senders.holders(peer) if peer else ()
        allowed = self._allow_uids
        if allowed and not (holders and holders[0].uid in allowed):
            who = f"user {holders[0].uid}" if holders else "a sender that is no process of this host"
            self._say_foreign(holders)
            raise MessageError("foreign_uid", f"worker.allow_uids does not have {who}")
        items, told = self._decoder.submit(self._read, signal, body, is_json, holders, came).result()
        self._forward(signal, body, items, is_json)
        with self._lock:
            self._received[signal] += items
            for one in told:
                of_one = self._queued_of[one.tgid] + one.weight
                if self._queued + one.weight > MAX_QUEUED or of_one > MAX_QUEUED_OF_ONE:
                    self._refused["backlog"] += 1
                else:
                    self._queue.append(one)
                    self._queued += one.weight
                    self._queued_of[one.tgid] = of_one

    def failed(self) -> None:
        """In an except clause: an error that is ours."""
        self.count("failed")
        log.once_per(60, "otlp", logger, "an OTLP message could not be taken: %s", traceback.format_exc())

    def drain(self) -> list[Told]:
        """Some of what waits, oldest first: no more than the caller makes requests of in a tick or two."""
        told: list[Told] = []
        with self._lock:
            left = self._queued - MAX_DRAINED
            while self._queue and self._queued > left:
                one = self._queue.popleft()
                told.append(one)
                self._queued -= one.weight
                self._queued_of[one.tgid] -= one.weight
                if not self._queued_of[one.tgid]:
                    del self._queued_of[one.tgid]
        return told

    def close(self) -> None:
        """When nobody sends any more."""
        self._decoder.shutdown()

    def _say_foreign(self, holders: tuple[Process, ...]) -> None:
        who = (
            f"pid {holders[0].tgid} of user {holders[0].uid}"
            if holders
            else "a sender that is no process of this host"
        )
        log.once_per(60, "otlp foreign_uid", logger, "refused %s: worker.allow_uids does not have it", who)

    def _read(
        self, signal: Signal, body: bytes, is_json: bool, holders: tuple[Process, ...], came: int
    ) -> tuple[int, list[Told]]:
        message, items = decode(signal, body, is_json)
        return items, self._told(message, holders, came) if isinstance(message, ExportTraceServiceRequest) else []

    def _told(self, message: ExportTraceServiceRequest, holders: tuple[Process, ...], came: int) -> list[Told]:
        offset_ns = clock.measure().offset_ns
        resources = [resource(one) for one in message.resource_spans]
        several = any(of != resources[0] for of in resources)
        found: list[Told] = []
        for one, of in zip(message.resource_spans, resources, strict=True):
            owner = self._owner(holders, of.pid, several)
            if owner:
                found.append(Told(owner.tgid, of, worker_spans(one), came, offset_ns))
        if len(found) < len(resources):
            self.count("unknown_sender")
        return found

    def _owner(self, holders: tuple[Process, ...], pid: int, several: bool) -> Process | None:
        """Whose spans they are: the sender's, or those of the process for which it relays them.

        ``pid``: what the resource says, 0 if nothing; ``several``: the message has several resources, so that the
        sender is a relay, and nothing tells whose are those without a pid.
        """
        if not holders:
            return None
        if not pid:
            return None if several else holders[0]
        for holder in holders:
            if pid in (holder.ns_tgid, holder.tgid):
                return holder
        sender = holders[0]
        if sender.ns_tgid != sender.tgid:
            return None  # a relay in a container: the pid is of a namespace that nobody can name
        named = self.senders.process(pid)
        return named if named and named.uid == sender.uid else None
