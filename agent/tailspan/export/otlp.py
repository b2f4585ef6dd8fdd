"""Slow requests leave as OTLP spans, through OpenTelemetry's own encoder and transport.

The official exporter reads the standard ``OTEL_EXPORTER_OTLP_*`` variables (endpoint, headers, TLS,
compression, timeout) and retries with back-off. In front of it stands a bounded queue of our own, because the
SDK's batch processor loses bursts uncounted and can hold a shutdown for 23 s.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tailspan.attribute.verdict import Verdict
from tailspan.errors import UsageError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

QUEUE_FULL = "queue_full"  #: the oldest verdict made room for a newer one
EXPORT_FAILED = "export_failed"  #: the backend refused it, or could not be reached within its timeout
INVALID = "invalid"  #: no spans can be made of it
SHUTDOWN = "shutdown"  #: submitted too late, or not delivered within the time that close() had

#: Verdicts sent in one request: some 20 spans each, far below gRPC's 4 MiB.
BATCH = 32
#: Of close()'s time, how much may be spent on delivering what is queued; the rest ends the transport.
FLUSH_SHARE = 0.7

Item = tuple[Verdict, Mapping[str, str]]


@dataclass(slots=True)
class OtlpStats:
    """Verdicts since start. Every submitted one is in exactly one place: exported, dropped or queued."""

    exported: int = 0
    spans: int = 0  #: in the exported ones
    dropped: Counter[str] = field(default_factory=Counter)  #: by reason
    queued: int = 0  #: including those on the wire now


def configured(environ: Mapping[str, str]) -> bool:
    """True where an endpoint is named: no variable, no export, as the agent must not invent a backend."""
    return bool(environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))


class OtlpExporter:
    """Thread-safe. Construction raises :class:`UsageError` where a variable is wrong; nothing else raises."""

    def __init__(self, host: str, capacity: int = 512) -> None:
        from tailspan.export.verdict_spans import spans_of  # imports the SDK, which only an exporter needs

        self._spans_of = spans_of
        self._host = host
        self._capacity = capacity
        self._transport = _official_exporter()
        self._pending: deque[Item] = deque()
        self._sending = 0  # verdicts taken from pending whose fate is open
        self._closing = False
        self._stats = OtlpStats()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="tailspan-otlp", daemon=True)
        self._thread.start()

    def submit(self, verdict: Verdict, resource: Mapping[str, str]) -> None:
        """Queue a verdict and its worker's resource attributes. Never blocks; when full, the oldest goes."""
        with self._changed:
            if self._closing:
                self._stats.dropped[SHUTDOWN] += 1
                return
            if len(self._pending) >= self._capacity:
                self._pending.popleft()
                self._stats.dropped[QUEUE_FULL] += 1
            self._pending.append((verdict, resource))
            self._changed.notify_all()

    def stats(self) -> OtlpStats:
        with self._changed:
            return OtlpStats(
                self._stats.exported,
                self._stats.spans,
                self._stats.dropped.copy(),
                len(self._pending) + self._sending,
            )

    def close(self, timeout_s: float = 5.0) -> None:
        """Deliver what is queued, then end. Returns within ``timeout_s``, dead backend or not."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._pending and not self._sending, timeout_s * FLUSH_SHARE)
        try:
            self._transport.shutdown()  # wakes a retry from its back-off and cancels a call in flight
        except Exception:
            log.warning("the OTLP exporter failed to shut down", exc_info=True)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            if undelivered := len(self._pending) + self._sending:
                self._stats.dropped[SHUTDOWN] += undelivered
            self._pending.clear()
            self._sending = 0

    def _run(self) -> None:
        while batch := self._take():
            spans, invalid = self._encode(batch)
            self._settle(len(batch), invalid, len(spans), bool(spans) and self._deliver(spans))

    def _take(self) -> list[Item]:
        """Wait for work. An empty list means: closing, and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing)
            batch = [self._pending.popleft() for _ in range(min(BATCH, len(self._pending)))]
            self._sending = len(batch)
            return batch

    def _encode(self, batch: list[Item]) -> tuple[list[ReadableSpan], int]:
        """The batch's spans, and how many of its verdicts have none."""
        spans: list[ReadableSpan] = []
        invalid = 0
        for verdict, resource in batch:
            try:
                spans += self._spans_of(verdict, resource, self._host)
            except Exception:
                log.warning("a verdict cannot be exported as spans", exc_info=True)
                invalid += 1
        return spans, invalid

    def _deliver(self, spans: list[ReadableSpan]) -> bool:
        try:
            return self._transport.export(spans).name == "SUCCESS"
        except Exception:  # grpc raises ValueError on a channel that close() has closed meanwhile
            log.debug("OTLP export failed", exc_info=True)
            return False

    def _settle(self, verdicts: int, invalid: int, spans: int, delivered: bool) -> None:
        with self._changed:
            if not self._sending:
                return  # close() ran out of time and has counted them as lost
            self._sending = 0
            if invalid:
                self._stats.dropped[INVALID] += invalid
            if delivered:
                self._stats.exported += verdicts - invalid
                self._stats.spans += spans
            elif verdicts > invalid:
                self._stats.dropped[SHUTDOWN if self._closing else EXPORT_FAILED] += verdicts - invalid
            self._changed.notify_all()


def _official_exporter() -> SpanExporter:
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL"
    )
    try:
        if protocol in (None, "", "grpc"):  # the Python SDK's own default
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

            return Grpc()
        if protocol == "http/protobuf":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

            return Http()
    except Exception as error:  # a bad timeout, compression or certificate: each raises a type of its own
        raise UsageError(f"OTEL_EXPORTER_OTLP_* is wrong: {error!r}") from None
    raise UsageError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: only grpc and http/protobuf are supported")
