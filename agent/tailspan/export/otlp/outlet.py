"""One signal's way out: spool, breaker, transport, and the thread between them."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from tailspan.export.otlp.breaker import Breaker, State
from tailspan.export.otlp.record import Batch
from tailspan.export.otlp.spool import Spool
from tailspan.export.otlp.transport import Accepted, Answer, Failed, Refused, Transport
from tailspan.log import once_per
from tailspan.wire.otlp import Origin, Signal

log = logging.getLogger(__name__)

REFUSED = "refused"  #: the backend will never take it
REJECTED = "rejected"  #: the backend took the rest of its batch


@dataclass(slots=True)
class OutletStats:
    """Since start. Items are spans, data points or log records; each that was put is delivered, dropped or queued.

    What a process before has left in the spool counts as put.
    """

    sent_bytes: int = 0  #: that the backend has taken, before compression
    items: Counter[Origin] = field(default_factory=Counter)  #: that the backend has taken
    dropped: Counter[tuple[Origin, str]] = field(default_factory=Counter)  #: items, by origin and reason
    failures: Counter[str] = field(default_factory=Counter)  #: attempts that are repeated, by reason
    queued_bytes: int = 0
    queued_items: int = 0
    limit_bytes: int = 0
    age_s: float = 0.0  #: for how long the oldest has waited
    breaker: State = State.CLOSED
    verdicts: int = 0  #: that the backend has taken
    dropped_verdicts: Counter[str] = field(default_factory=Counter)
    queued_verdicts: int = 0


class Outlet:
    """Thread-safe; nothing raises. The thread begins with the first batch, also one of a process before."""

    def __init__(self, signal: Signal, transport: Transport, spool: Spool, breaker: Breaker | None = None) -> None:
        self._signal = signal
        self._transport = transport
        self._spool = spool
        self._breaker = breaker or Breaker()
        self._changed = threading.Condition()
        self._stats = OutletStats(limit_bytes=spool.max_bytes)
        self._fresh = False  # something was put since the thread looked
        self._closing = self._stopped = False
        self._thread: threading.Thread | None = None
        if spool.state().waiting.batches:
            self._start()

    def put(self, batch: Batch) -> None:
        """When it returns, the batch is in the spool, or counted. Waits for the disk, never for the backend."""
        self._spool.put(batch)
        with self._changed:
            self._fresh = True
            alive = self._thread is not None and self._thread.is_alive()
            if not alive and not self._closing:
                self._start()
            self._changed.notify_all()

    def stats(self) -> OutletStats:
        with self._changed:
            stats, spool = self._stats, self._spool.state()
            age_ns = time.time_ns() - spool.oldest_unix_ns if spool.oldest_unix_ns else 0
            return OutletStats(
                sent_bytes=stats.sent_bytes,
                items=stats.items.copy(),
                dropped=stats.dropped + spool.dropped,
                failures=stats.failures.copy(),
                queued_bytes=spool.size_bytes,
                queued_items=spool.waiting.own + spool.waiting.forwarded,
                limit_bytes=stats.limit_bytes,
                age_s=max(0, age_ns) * 1e-9,
                breaker=self._breaker.state,
                verdicts=stats.verdicts,
                dropped_verdicts=stats.dropped_verdicts + spool.dropped_verdicts,
                queued_verdicts=spool.waiting.verdicts,
            )

    def begin_closing(self) -> None:
        """Deliver what waits as long as the backend takes it, then end. Does not wait for that."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self, flush_until_s: float, end_until_s: float) -> None:
        """End, both by time.monotonic(): no more is sent after the first, it returns by the second.

        What is not delivered then stays in the spool, for the next start.
        """
        self.begin_closing()
        self._join(flush_until_s)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        try:
            self._transport.close()  # ends a call in flight
        except Exception:
            log.warning("OTLP's connection failed to close", exc_info=True)
        self._join(end_until_s)
        self._spool.close()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"tailspan-otlp-{self._signal}", daemon=True)
        self._thread.start()

    def _join(self, until_s: float) -> None:
        if self._thread is not None:
            self._thread.join(max(0.0, until_s - time.monotonic()))

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            answer = self._send(batch)
            with self._changed:
                if self._stopped and not isinstance(answer, Accepted):
                    return
            self._settle(batch, answer)

    def _next(self) -> Batch | None:
        """The batch to send now, once there is one and the backend may be tried. None: it is time to end."""
        while True:
            batch = self._spool.peek()
            with self._changed:
                wait_s = self._breaker.wait_s() if batch else None
                if self._stopped or (self._closing and wait_s != 0):
                    return None
                if wait_s == 0:
                    return batch
                if batch is not None:
                    self._changed.wait(wait_s)
                elif not self._fresh:
                    self._changed.wait()
                self._fresh = False

    def _send(self, batch: Batch) -> Answer:
        try:
            return self._transport.send(batch.payload, batch.is_json)
        except Exception as error:  # whatever a library does: the batch waits, and the thread lives
            log.debug("OTLP failed", exc_info=True)
            return Failed("unexpected", repr(error))

    def _settle(self, batch: Batch, answer: Answer) -> None:
        if isinstance(answer, Failed):
            self._fail(answer)
            return
        if isinstance(answer, Refused):
            rejected, reason, detail = batch.items, REFUSED, answer.detail
        else:
            rejected, reason, detail = min(answer.rejected, batch.items), REJECTED, answer.message
        if rejected or detail:
            key, words = f"otlp {self._signal} {reason}", "the backend has not taken %d of %d %s: %s"
            once_per(60, key, log, words, rejected, batch.items, self._signal, detail)
        with self._changed:
            self._breaker.succeeded()
            self._count(batch, rejected, reason)
            if isinstance(answer, Accepted):
                self._stats.sent_bytes += len(batch.payload)
            self._spool.done()

    def _fail(self, failed: Failed) -> None:
        key = f"otlp {self._signal} {failed.reason}"
        once_per(60, key, log, "%s wait for the backend: %s %s", self._signal, failed.reason, failed.detail)
        with self._changed:
            self._stats.failures[failed.reason] += 1
            self._breaker.failed(failed.after_s)

    def _count(self, batch: Batch, rejected: int, reason: str) -> None:
        stats = self._stats
        if rejected:
            stats.dropped[batch.origin, reason] += rejected
        if batch.items > rejected:
            stats.items[batch.origin] += batch.items - rejected
        if batch.verdicts and rejected and rejected == batch.items:
            stats.dropped_verdicts[reason] += batch.verdicts
        else:
            stats.verdicts += batch.verdicts
