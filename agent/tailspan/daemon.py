"""The one place that wires the stages together: sources -> timeline -> attribution -> exporters, on one timer.

One thread does it all, in bounded steps; only exporters that talk to a network have threads of their own. Order
in a tick matters: worker messages are read before the rings are drained, so that every kernel record of a request
that is known to have ended is already in the window when it is judged.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

from tailspan import __version__, clock, log
from tailspan.collect.bpf.cuda import CudaProbes
from tailspan.collect.bpf.source import BpfSource, Options
from tailspan.collect.bpf.syscalls import SyscallTracing
from tailspan.collect.host import Cgroups, boot_id, character_majors, host_name
from tailspan.collect.nvml import GpuSampler
from tailspan.collect.samples import CpuSampler, NetTotals
from tailspan.collect.worker import WorkerServer
from tailspan.config import Config
from tailspan.control import ControlServer
from tailspan.errors import ProbeError
from tailspan.export import otlp
from tailspan.export.local import SegmentWriter
from tailspan.export.prometheus import Metrics
from tailspan.export.scrape import MetricsServer
from tailspan.export.segment import IndexRow
from tailspan.pipeline import Judged, Pipeline
from tailspan.timeline.arrivals import began
from tailspan.timeline.evidence import Meta, Table
from tailspan.timeline.inbox import Received
from tailspan.timeline.peers import Peers
from tailspan.timeline.tables import LOSS_CLIENT, LOSS_WINDOW
from tailspan.wire.events import RecordClass

logger = logging.getLogger(__name__)

#: Messages waiting to be judged; beyond it new ones are counted and dropped.
MAX_PENDING = 50_000
#: BPF run times are a file read per program; they only move where kernel.bpf_stats_enabled is 1.
RUN_TIMES_EVERY_S = 5.0
#: How often stored segments are looked through for those that are too old.
EXPIRE_EVERY_S = 60.0

LOSS_NAMES = {
    **{int(klass): klass.name.lower() for klass in RecordClass if klass is not RecordClass.COUNT},
    LOSS_CLIENT: "client_message",
    LOSS_WINDOW: "window_row",
}
#: What NVML said and nobody took in time.
_GPU_ROW = "gpu_row"


class Agent:
    """Opens everything in the constructor (raises what cannot be had), works in :meth:`tick`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._pending: list[Received] = []
        self._records: Counter[str] = Counter()  # by table, since the metrics were told
        self._judged_ns = time.monotonic_ns()
        self._cgroups = Cgroups()
        self._peers = Peers(config.follow.peers)
        self._host, self._boot = host_name(), boot_id()
        self._dropped: dict[str, int] = {}  # what the metrics have been told
        self._process = psutil.Process()
        self._run_times_read_s = 0.0
        self._expired_s = 0.0
        self.metrics = Metrics()
        for name in (*LOSS_NAMES.values(), _GPU_ROW):
            self.metrics.lost(name, 0)
        self.pipeline = Pipeline(config)
        with contextlib.ExitStack() as stack:
            self.source = BpfSource(_options(config))
            stack.callback(self.source.close)
            self._cpus = CpuSampler()
            stack.callback(self._cpus.close)
            self._net = NetTotals()
            stack.callback(self._net.close)
            self._gpus = GpuSampler(config.gpu.sample_ms, config.gpu.budget) if config.gpu.nvml == "on" else None
            if self._gpus:
                stack.callback(self._gpus.close)
            self._cuda = CudaProbes(self.source, config.gpu.calls_per_s)
            stack.callback(self._cuda.close)
            self.syscalls = SyscallTracing(self.source, config.probes.syscalls, config.probes.syscalls_seconds)
            self._server = _worker_server(config)
            stack.callback(self._server.close)
            self._control = ControlServer(Path(config.agent.control), self.syscalls.answer)
            stack.callback(self._control.close)
            self._store = SegmentWriter(
                Path(config.store.path),
                host=self._host,
                max_segment_bytes=config.store.segment_mib << 20,
                max_total_bytes=config.store.total_mib << 20,
                max_age_s=config.store.days * 86_400,
            )
            stack.callback(self._store.close)
            if config.export.prometheus:
                host, _, port = config.export.prometheus.rpartition(":")
                scrape = MetricsServer(self.metrics.registry, host.strip("[]"), int(port))
                stack.callback(scrape.close)
            self._otlp = otlp.OtlpExporter(self._host) if otlp.configured(os.environ) else None
            if self._otlp:
                stack.callback(self._otlp.close)
            if config.follow.pids:
                self._follow(list(config.follow.pids))
            self._cleanup = stack.pop_all()

    def close(self) -> None:
        self._cleanup.close()

    def finish(self) -> None:
        """Judge what has come in: the last requests before a stop are explained too."""
        self._judged_ns = 0
        self.tick()

    def tick(self) -> None:
        """Drain everything once; judge when it is time to."""
        accepted = self._server.accept()
        if accepted:
            self._follow([peer.pid for peer in accepted])
        self._take(self._server.read())
        due = time.monotonic_ns() - self._judged_ns >= self._config.agent.judge_ms * 1_000_000
        # Look at open intervals before the rings are drained: a turn that ends in between is then in a record.
        open_threads = self.source.threads() if due and self._pending else None
        self._drain(thorough=due)
        if due:
            self._judged_ns = time.monotonic_ns()
            self.pipeline.window.samples.append(self._cpus.take(self._judged_ns))
            self._look_at_gpus()
            if open_threads is not None:
                self.pipeline.threads.see(open_threads)
                self.pipeline.threads.forget_missing(open_threads)
                self._judge(open_threads)
            for tgid in self._server.take_gone():
                self.pipeline.inbox.forget(tgid)
            self._report()
        self.syscalls.poll()
        self._control.poll()

    def _look_at_gpus(self) -> None:
        if self._config.gpu.calls == "on":
            self._cuda.poll(self.pipeline.threads.processes())
        if self._gpus:
            taken = self._gpus.take()
            self.metrics.lost(_GPU_ROW, taken.dropped)
            self.pipeline.window.gpu_samples.append(taken.samples)
            self.pipeline.window.gpu_processes.append(taken.processes)
            self.pipeline.window.gpu_events.append(taken.events)

    def _take(self, received: list[Received]) -> None:
        room = MAX_PENDING - len(self._pending)
        if len(received) > room:
            self.pipeline.inbox.dropped["backlog"] += len(received) - room
        self._pending += received[:room]

    def _follow(self, pids: list[int], only_threads: bool = False) -> None:
        try:
            states = self.source.follow(pids, only_threads)
        except ProbeError as error:
            log.once_per(60, "follow", logger, "cannot follow pids %s: %s", pids, error)
            return
        self.pipeline.threads.see(states)
        found = set(states["tgid"].tolist())
        for pid in pids:
            if pid in found:
                logger.info("following pid %d (%d threads)", pid, int((states["tgid"] == pid).sum()))
            else:
                logger.warning("pid %d is not there to follow", pid)

    def _drain(self, thorough: bool) -> None:
        batch = self.source.drain(thorough)
        tables = {
            "cycles": batch.cycles,
            "slices": batch.slices,
            "sockets": batch.sockets,
            "blocks": batch.blocks,
            "incidents": batch.incidents,
            "gpu_calls": batch.gpu_calls,
        }
        counted = tables | {"threads": batch.thread_events, "syscalls": batch.syscalls}
        for name, rows in (counted | {"connections": batch.connections}).items():
            self._records[name] += len(rows)
        self.metrics.socket_waits(batch.sockets)
        self.metrics.gpu_calls(batch.gpu_calls)
        if thorough:
            self.metrics.records({name.removesuffix("s"): count for name, count in self._records.items()})
            self._records.clear()
            self.metrics.connections(batch.connections)
            if self.source.status["incidents"].attached:
                self.metrics.incidents(batch.incidents)
            self.syscalls.keep(batch.syscalls)
        self.pipeline.take(tables | {"losses": batch.losses}, batch.thread_events)
        peers = self._peers.new(batch.cycles, self.pipeline.threads.processes)
        if peers:
            self._follow(peers, only_threads=True)
        if self._peers.refused and self._config.follow.peers:
            log.once_per(3600, "peers", logger, "follow.peers is reached: others that end waits are not followed")

    def _judge(self, open_threads: Table) -> None:
        received, self._pending = self._pending, []
        try:
            for judged in self.pipeline.judge(received, open_threads, self._meta(), self._cgroups.path):
                self._publish(judged)
        except Exception:  # whatever one worker has sent, the others are served
            self.pipeline.inbox.dropped["judge_failed"] += len(received)
            logger.exception("%d messages could not be judged", len(received))

    def _publish(self, judged: Judged) -> None:
        now = time.monotonic_ns()
        self._count(judged)
        for verdict in judged.verdicts.values():
            latency_ns = now - verdict.request.start_mono_ns - verdict.request.wall_ns
            self.metrics.verdict(verdict.cause, verdict.outcome, latency_ns / 1e9)
            if self._otlp:
                self._otlp.submit(verdict, judged.evidence.meta.resources.get(str(verdict.request.pid), {}))
        for _ in range(len(judged.kept) - len(judged.verdicts)):
            self.metrics.unjudged()
        if judged.verdicts:
            self.syscalls.trigger()
            self._store.append(judged.evidence, [_index_row(judged, row) for row in range(len(judged.kept))])

    def _count(self, judged: Judged) -> None:
        """Every request, slow or not, in the metrics."""
        requests, strings = judged.requests, judged.strings
        kept = judged.kept.tolist()
        trace_ids = {kept[row]: verdict.request.trace_id for row, verdict in judged.verdicts.items()}
        walls_s = ((requests["end_mono_ns"] - began(requests)) / 1e9).tolist()
        labels = requests[["name", "model", "version", "status"]].tolist()
        for row, (wall_s, of_request) in enumerate(zip(walls_s, labels, strict=True)):
            name, model, version, status = (strings[index] for index in of_request)
            self.metrics.request(name, model, version, status, wall_s, trace_ids.get(row, ""))
        for index in np.unique(requests["name"]).tolist():
            self.metrics.ledger(strings[index], judged.ledgers[requests["name"] == index].sum(axis=0).tolist())

    def _meta(self) -> Meta:
        offset = clock.measure()
        return Meta(
            host=self._host,
            boot_id=self._boot,
            agent_version=__version__,
            unix_offset_ns=offset.offset_ns,
            clock_error_ns=offset.error_ns,
            cpu_count=os.cpu_count() or 0,
            missing_probes={
                name: status.why
                for name, status in self.source.status.items()
                if status.probe.default and (status.why or not status.attached)
            },
            resources={str(tgid): resource for tgid, resource in self.pipeline.inbox.resources.items()},
            gpus=self._gpus.gpus() if self._gpus else [],
            gpu_majors=character_majors("nvidia"),
            runtime_locks={str(tgid): ranges for tgid, ranges in self.pipeline.inbox.runtime_locks.items()},
        )

    def _report(self) -> None:
        """Everything that is counted elsewhere goes to the metrics."""
        self.pipeline.evict(time.monotonic_ns())
        self.metrics.host_tcp(self._net.read())
        for row in self.pipeline.take_losses():
            self.metrics.lost(LOSS_NAMES[int(row["klass"])], int(row["count"]))
        for reason, total in (self._server.dropped + self.pipeline.inbox.dropped).items():
            self.metrics.dropped_messages(reason, total - self._dropped.get(reason, 0))
            self._dropped[reason] = total
        if self._gpus:
            self.metrics.gpus(self._gpus.host(), time.monotonic_ns())
        if self.source.status["gpu"].attached:
            cuda = self._cuda.status()
            self.metrics.gpu_probes(cuda.hits, cuda.attached, cuda.off)
        self.metrics.forgotten(self.pipeline.forgotten)
        self.metrics.probes({name: status.attached for name, status in self.source.status.items()})
        self.metrics.window({name: column.rows for name, column in self.pipeline.window.columns.items()})
        if time.monotonic() - self._expired_s >= EXPIRE_EVERY_S:
            self._expired_s = time.monotonic()
            self._store.expire()
        self.metrics.exporter("local", self._store.appended, self._store.dropped)
        if self._otlp:
            stats = self._otlp.stats()
            self.metrics.exporter("otlp", stats.exported, stats.dropped)
        if time.monotonic() - self._run_times_read_s >= RUN_TIMES_EVERY_S:
            self._run_times_read_s = time.monotonic()
            times = self.source.run_times()
            self.metrics.bpf_run_time((name, ns / 1e9) for name, (ns, runs) in times.items() if runs)
        usage = self._process.cpu_times()
        self.metrics.agent(usage.user + usage.system, self._process.memory_info().rss)


def _index_row(judged: Judged, row: int) -> IndexRow:
    verdict = judged.verdicts.get(row)
    return IndexRow.of(verdict) if verdict else IndexRow.unjudged(judged.evidence, row)


def run(config: Config, seconds: float | None = None) -> int:
    """Run until SIGTERM or SIGINT, or for ``seconds``. Returns the exit code."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: stopping.append(signum))
    started = time.monotonic()
    agent = Agent(config)
    logger.info(
        "ready in %.0f ms, workers connect to %s", (time.monotonic() - started) * 1e3, config.worker.socket
    )
    _notify_systemd("READY=1")
    try:
        while not stopping and (seconds is None or time.monotonic() - started < seconds):
            agent.tick()
            time.sleep(config.agent.tick_ms / 1000)
        agent.finish()
    finally:
        _notify_systemd("STOPPING=1")
        agent.close()
    return 0


def _notify_systemd(state: str) -> None:
    """sd_notify(3): one datagram to the socket that systemd named, if it did."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def _options(config: Config) -> Options:
    return Options(
        disabled=frozenset(config.probes.disabled),
        cycle_ring_bytes=config.probes.ring_kib << 10,
        slice_ring_bytes=config.probes.ring_kib << 9,
        short_wait_ns=config.probes.short_wait_us * 1000,
        syscall_floor_ns=config.probes.syscall_floor_us * 1000,
    )


def _worker_server(config: Config) -> WorkerServer:
    worker = config.worker
    return WorkerServer(
        Path(worker.socket), int(worker.mode, 8), worker.group, tuple(worker.allow_uids), worker.max_connections
    )
