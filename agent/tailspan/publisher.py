"""Out: what was judged goes to disk, to OTLP and into the metrics; what workers send by OTLP goes on as it is."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tailspan.attribute.verdict import Outcome
from tailspan.config import Config
from tailspan.export import otlp
from tailspan.export.local import SegmentWriter
from tailspan.export.otlp_metrics import MetricsPusher, agent_resource, interval_s, metrics_configured
from tailspan.export.prometheus import Metrics
from tailspan.export.pulse import Pulse
from tailspan.export.scrape import MetricsServer
from tailspan.export.segment import IndexRow
from tailspan.export.tally import Tally
from tailspan.pipeline import Judged
from tailspan.timeline.arrivals import began
from tailspan.tls import ServerTls
from tailspan.wire.otlp import Origin, Signal

#: How often stored segments are looked through for those that are too old.
EXPIRE_EVERY_S = 60.0
#: For what is queued when the agent ends: to be encoded, and to be delivered. What is left waits in the spool.
ENCODE_S, DELIVER_S = 1.0, 3.5


class Publisher:
    """Opens its files and sockets in the constructor (raises what cannot be had); nothing raises after that."""

    def __init__(
        self,
        config: Config,
        host: str,
        metrics: Metrics,
        tally: Tally,
        pulse: Pulse,
        tls: ServerTls | None = None,
    ) -> None:
        self._metrics = metrics
        self._expired_s = 0.0
        self._unattributed_ns: dict[str, int] = {}  # wall time by name of requests
        self._store = SegmentWriter(
            Path(config.store.path),
            host=host,
            max_segment_bytes=config.store.segment_mib << 20,
            max_total_bytes=config.store.total_mib << 20,
            max_age_s=config.store.days * 86_400,
        )
        with contextlib.ExitStack() as stack:
            stack.callback(self._store.close)
            spool = Path(config.store.path, "spool")
            self._outlets = otlp.Outlets(os.environ, spool, config.export.spool_mib << 20)
            stack.callback(self._outlets.close, DELIVER_S)
            self._verdicts = (
                otlp.VerdictExporter(self._outlets, host, tally)
                if otlp.configured(os.environ, Signal.TRACES)
                else None
            )
            if self._verdicts:
                stack.callback(self._verdicts.close, ENCODE_S)
            if metrics_configured(os.environ):
                stack.callback(self._pusher(host).close)
            if config.export.prometheus:
                address, _, port = config.export.prometheus.rpartition(":")
                scrape = MetricsServer(metrics.registry, address.strip("[]"), int(port), tls, pulse)
                stack.callback(scrape.close)
            self._cleanup = stack.pop_all()

    def change(self, config: Config) -> None:
        """Keep as much as its ``store`` says from now on."""
        store = config.store
        self._store.bound(store.segment_mib << 20, store.total_mib << 20, store.days * 86_400)

    def close(self) -> None:
        """Within 5 s, dead backend or not."""
        self._cleanup.close()

    def forward(self, signal: Signal, payload: bytes, items: int, is_json: bool) -> None:
        """Send on what a worker has sent. From any thread."""
        self._outlets.put(signal, payload, items, Origin.FORWARDED, is_json=is_json)

    def publish(self, judged: Judged, on_verdicts: Callable[[], None]) -> None:
        """``on_verdicts`` is called if there are any."""
        now_mono_ns = time.monotonic_ns()
        self._count(judged)
        for verdict in judged.verdicts.values():
            request = verdict.request
            latency_ns = now_mono_ns - request.start_mono_ns - request.wall_ns
            self._metrics.verdict(
                verdict.cause,
                verdict.outcome,
                latency_ns / 1e9,
                verdict.excess_ns / 1e9,
                *([verdict.culprit.kind] if verdict.culprit else []),
            )
            if self._verdicts:
                self._verdicts.submit(verdict, judged.evidence.meta.resources.get(str(request.pid), {}))
        without = np.setdiff1d(judged.kept, judged.kept[list(judged.verdicts)])
        for _ in range(np.count_nonzero(judged.slow[without])):
            self._metrics.unjudged()
        if judged.verdicts:
            on_verdicts()
        if len(judged.kept):
            self._store.append(judged.evidence, [_index_row(judged, row) for row in range(len(judged.kept))])

    def not_stored(self) -> Mapping[str, int]:
        """Evidence that never reached the disk, in total, by reason."""
        return self._store.dropped

    def report(self) -> None:
        """What the ways out have counted goes to the metrics; old segments go."""
        if time.monotonic() - self._expired_s >= EXPIRE_EVERY_S:
            self._expired_s = time.monotonic()
            self._store.expire()
        self._metrics.exporter("local", self._store.appended, self._store.dropped)
        self._metrics.outlets(self._outlets.stats())
        if self._verdicts:
            stats = self._verdicts.stats()
            self._metrics.exporter("otlp", stats.exported, stats.dropped)

    def _pusher(self, host: str) -> MetricsPusher:
        def put(payload: bytes, points: int) -> None:
            self._outlets.put(Signal.METRICS, payload, points, Origin.OWN)

        resource: Mapping[str, str] = agent_resource(host, os.environ)
        return MetricsPusher(self._metrics.registry, resource, interval_s(os.environ), put)

    def _count(self, judged: Judged) -> None:
        """Every request, slow or not, in the metrics."""
        requests, strings = judged.requests, judged.strings
        rows = {row: judged.verdicts.get(at) for at, row in enumerate(judged.kept.tolist())}
        walls_s = ((requests["end_mono_ns"] - began(requests)) / 1e9).tolist()
        labels = requests[["name", "model", "version", "status"]].tolist()
        for row, (wall_s, of_request) in enumerate(zip(walls_s, labels, strict=True)):
            name, model, version, status = (strings[index] for index in of_request)
            verdict = rows.get(row)
            if verdict:
                ids = verdict.request.trace_id, verdict.request.span_id
                self._metrics.request(name, model, version, status, wall_s, *ids, verdict.outcome, verdict.cause)
            else:
                outcome = Outcome.UNJUDGED if row in rows and judged.slow[row] else None
                self._metrics.request(name, model, version, status, wall_s, outcome=outcome)
        self._count_parts(judged)
        self._metrics.joined(requests["join"])

    def _count_parts(self, judged: Judged) -> None:
        """Ledgers of the sample stand for those of all requests of their name; the wall time is that of all."""
        requests, strings = judged.requests, judged.strings
        walls_ns = requests["end_mono_ns"] - began(requests)
        sampled = requests["name"][judged.sample]
        for index in np.unique(requests["name"]).tolist():
            name = strings[index]
            wall_ns = self._unattributed_ns.pop(name, 0) + int(walls_ns[requests["name"] == index].sum())
            parts_ns = judged.ledgers[sampled == index].sum(axis=0)
            if parts_ns.any():
                self._metrics.ledger(name, (parts_ns * (wall_ns / parts_ns.sum())).tolist())
            else:  # none is in the sample: they count with the next one that is
                self._unattributed_ns[name] = wall_ns


def _index_row(judged: Judged, row: int) -> IndexRow:
    verdict = judged.verdicts.get(row)
    return IndexRow.of(verdict) if verdict else IndexRow.unjudged(judged.evidence, row)
