"""Slow requests leave as OTLP spans: from a verdict to bytes in the spool, on a thread of its own.

Encoding costs some 20 µs a span: too much for the pipeline's thread when a hundred requests are slow at once.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tailspan.attribute.verdict import Verdict
from tailspan.export.otlp.outlets import Outlets
from tailspan.export.otlp.spool import KILLED, SHUTDOWN
from tailspan.export.tally import Tally
from tailspan.wire.otlp import Origin, Signal

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

log = logging.getLogger(__name__)

QUEUE_FULL = "queue_full"  #: the oldest verdict made room for a newer one
INVALID = "invalid"  #: no spans can be made of it

#: Verdicts that one batch tells of: some 20 spans each.
BATCH = 32
#: Beyond it a batch is split: gRPC servers refuse 4 MiB, and the smallest spool has one.
BATCH_BYTES = 1_000_000
#: For how long the first verdict of a batch waits for more.
GATHER_S = 0.1

#: Keys of the tally. What was submitted and is neither spooled nor lost died with its process.
SUBMITTED, SPOOLED, LOST = "verdicts.submitted", "verdicts.spooled", "verdicts.lost"

Item = tuple[Verdict, Mapping[str, str]]
Payload = tuple[bytes, int, int]  #: encoded, spans, verdicts


@dataclass(slots=True)
class ExporterStats:
    """Verdicts since start. Every submitted one is exported, dropped or queued; while it moves it may be in two.

    Those that a process before has left in the spool count too; those that died with it are dropped as ``killed``.
    """

    exported: int = 0  #: the backend has taken them
    dropped: Counter[str] = field(default_factory=Counter)  #: by reason
    queued: int = 0  #: in memory, and in the spool


class VerdictExporter:
    """Thread-safe; nothing raises. A verdict is in the spool at most 200 ms after it was submitted, on a host that
    has the CPU for it.
    """

    def __init__(self, outlets: Outlets, host: str, tally: Tally, capacity: int = 512) -> None:
        from tailspan.export.verdict_spans import spans_of  # imports the SDK, which only an exporter needs

        self._spans_of: Callable[[Verdict, Mapping[str, str], str], list[ReadableSpan]] = spans_of
        self._outlets = outlets
        self._host = host
        self._tally = tally
        self._capacity = capacity
        self._pending: deque[Item] = deque()
        self._encoding = 0  # verdicts taken from pending that are in no spool yet
        self._closing = False
        self._dropped: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._count_killed()
        self._thread = threading.Thread(target=self._run, name="tailspan-verdicts", daemon=True)
        self._thread.start()

    def submit(self, verdict: Verdict, resource: Mapping[str, str]) -> None:
        """Queue a verdict and its worker's resource attributes. Never blocks; when full, the oldest goes."""
        with self._changed:
            self._tally.add(SUBMITTED)
            if self._closing:
                self._drop(SHUTDOWN)
                return
            if len(self._pending) >= self._capacity:
                self._pending.popleft()
                self._drop(QUEUE_FULL)
            self._pending.append((verdict, resource))
            self._changed.notify_all()

    def stats(self) -> ExporterStats:
        with self._changed:  # first, so that what moves on meanwhile is not missed
            here, dropped = len(self._pending) + self._encoding, self._dropped.copy()
        traces = self._outlets.stats()[Signal.TRACES]
        return ExporterStats(traces.verdicts, dropped + traces.dropped_verdicts, here + traces.queued_verdicts)

    def close(self, timeout_s: float = 1.0) -> None:
        """Put what is queued into the spool, then end. Comes before :meth:`Outlets.close`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            self._drop(SHUTDOWN, len(self._pending))
            self._pending.clear()

    def _run(self) -> None:
        while batch := self._take():
            for payload, spans, verdicts in self._payloads(batch):
                self._outlets.put(Signal.TRACES, payload, spans, Origin.OWN, verdicts=verdicts)
                with self._changed:
                    self._encoding -= verdicts
                    self._tally.add(SPOOLED, verdicts)

    def _take(self) -> list[Item]:
        """Wait for work, and a little longer for more of it. Empty: closing, and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing)
            self._changed.wait_for(lambda: len(self._pending) >= BATCH or self._closing, GATHER_S)
            batch = [self._pending.popleft() for _ in range(min(BATCH, len(self._pending)))]
            self._encoding = len(batch)
            return batch

    def _payloads(self, batch: list[Item]) -> Iterator[Payload]:
        told = []
        for verdict, resource in batch:
            try:
                told.append(self._spans_of(verdict, resource, self._host))
            except Exception:
                log.warning("a verdict cannot be exported as spans", exc_info=True)
                self._give_up(1)
        yield from self._encoded(told)

    def _encoded(self, told: list[list[ReadableSpan]]) -> Iterator[Payload]:
        """``told``: the spans of each verdict."""
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

        if not told:
            return
        try:
            payload = encode_spans([span for spans in told for span in spans]).SerializeToString()
        except Exception:
            if len(told) == 1:
                log.warning("a verdict's spans cannot be encoded", exc_info=True)
                self._give_up(1)
                return
            payload = b""
        if len(told) > 1 and not 0 < len(payload) <= BATCH_BYTES:
            half = len(told) // 2
            yield from self._encoded(told[:half])
            yield from self._encoded(told[half:])
            return
        yield payload, sum(len(spans) for spans in told), len(told)

    def _give_up(self, verdicts: int) -> None:
        with self._changed:
            self._encoding -= verdicts
            self._drop(INVALID, verdicts)

    def _drop(self, reason: str, verdicts: int = 1) -> None:
        if verdicts:
            self._dropped[reason] += verdicts
            self._tally.add(LOST, verdicts)

    def _count_killed(self) -> None:
        killed = self._tally.get(SUBMITTED) - self._tally.get(SPOOLED) - self._tally.get(LOST)
        if killed > 0:
            self._drop(KILLED, killed)
