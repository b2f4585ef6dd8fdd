"""All that leaves by OTLP: one outlet a signal, for those that have an endpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tailspan.export.otlp.outlet import Outlet, OutletStats
from tailspan.export.otlp.record import Batch
from tailspan.export.otlp.spool import SHUTDOWN, Spool
from tailspan.export.otlp.transport import configured, open_transport
from tailspan.wire.otlp import Origin, Signal

NO_ENDPOINT = "no_endpoint"  #: no variable names a backend for its signal

#: Of close()'s time, how much may be spent on delivering what is queued; the rest ends the connections.
FLUSH_SHARE = 0.7


class Outlets:
    """Thread-safe. Construction raises UsageError and CannotError, as :func:`open_transport` does; nothing else
    raises. Each signal's spool is a folder below ``folder``, of at most ``max_bytes``.
    """

    def __init__(self, environ: Mapping[str, str], folder: Path, max_bytes: int) -> None:
        transports = {signal: open_transport(signal, environ) for signal in Signal if configured(environ, signal)}
        self._outlets = {
            signal: Outlet(signal, transport, Spool(folder / signal, max_bytes))
            for signal, transport in transports.items()
        }
        self._lock = threading.Lock()
        self._closed = False
        self._refused = {signal: OutletStats() for signal in Signal}  # what no spool has seen

    def put(
        self,
        signal: Signal,
        payload: bytes,
        items: int,
        origin: Origin,
        *,
        is_json: bool = False,
        verdicts: int = 0,
    ) -> None:
        """Send an encoded Export*ServiceRequest, as it is. It is on disk when this returns, or counted.

        ``items``: its spans, data points or log records. ``verdicts``: how many verdicts they tell of.
        """
        with self._lock:
            reason = SHUTDOWN if self._closed else "" if signal in self._outlets else NO_ENDPOINT
            if reason:
                refused = self._refused[signal]
                refused.dropped[origin, reason] += items
                refused.dropped_verdicts[reason] += verdicts
                return
        self._outlets[signal].put(Batch(payload, items, origin, is_json, verdicts))

    def stats(self) -> dict[Signal, OutletStats]:
        return {signal: self._stats(signal) for signal in Signal}

    def close(self, timeout_s: float = 5.0) -> None:
        """Deliver what the backends take in time; the rest stays in the spools, for the next start."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        now_s = time.monotonic()
        for outlet in self._outlets.values():
            outlet.begin_closing()
        for outlet in self._outlets.values():
            outlet.close(now_s + timeout_s * FLUSH_SHARE, now_s + timeout_s)

    def _stats(self, signal: Signal) -> OutletStats:
        outlet = self._outlets.get(signal)
        stats = outlet.stats() if outlet else OutletStats()
        with self._lock:
            refused = self._refused[signal]
            stats.dropped = stats.dropped + refused.dropped
            stats.dropped_verdicts = stats.dropped_verdicts + refused.dropped_verdicts
        return stats
