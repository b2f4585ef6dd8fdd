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

import psutil

from tailspan import __version__, clock, log
from tailspan.collect.bpf.cuda import CudaProbes
from tailspan.collect.bpf.source import BpfSource, Options
from tailspan.collect.bpf.syscalls import SyscallTracing
from tailspan.collect.host import (
    Cgroups,
    boot_id,
    character_majors,
    host_name,
    node_name,
    process_started,
)
from tailspan.collect.identity import Identities
from tailspan.collect.nvml import GpuSampler
from tailspan.collect.otlp.server import OtlpReceiver
from tailspan.collect.samples import CpuSampler, NetTotals
from tailspan.collect.worker import WorkerServer
from tailspan.config import Config
from tailspan.control import ControlServer
from tailspan.errors import ProbeError
from tailspan.export.otlp import configured
from tailspan.export.prometheus import Metrics
from tailspan.export.tally import Tally
from tailspan.pipeline import Pipeline
from tailspan.publisher import Publisher
from tailspan.timeline.evidence import Meta, Table
from tailspan.timeline.handover import Handover
from tailspan.timeline.inbox import Received
from tailspan.timeline.peers import Peers
from tailspan.timeline.tables import LOSS_CLIENT, LOSS_WINDOW
from tailspan.wire.events import RecordClass

logger = logging.getLogger(__name__)

#: Messages waiting to be judged; beyond it new ones are counted and dropped.
MAX_PENDING = 50_000
#: BPF run times are a file read per program; they only move where kernel.bpf_stats_enabled is 1.
RUN_TIMES_EVERY_S = 5.0

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
        self._unsettled: list[Received] = []  # of the workers' socket, neither judged yet nor counted as dropped
        self._records: Counter[str] = Counter()  # by table, since the metrics were told
        self._judged_ns = time.monotonic_ns()
        self._cgroups = Cgroups()
        self._peers = Peers(config.follow.peers)
        self._host, self._boot = host_name(), boot_id()
        self._dropped: dict[str, int] = {}  # what the metrics have been told
        self._process = psutil.Process()
        self._run_times_read_s = 0.0
        self.metrics = Metrics()
        for name in (*LOSS_NAMES.values(), _GPU_ROW):
            self.metrics.lost(name, 0)
        self.pipeline = Pipeline(config)
        with contextlib.ExitStack() as stack:
            self._identities = Identities(node=node_name(os.environ))
            stack.callback(self._identities.close)
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
            tally = Tally(Path(config.store.path, "tally"))
            stack.callback(tally.close)
            self._handover = Handover(tally, process_started, self._boot)
            self._publisher = Publisher(config, self._host, self.metrics, tally)
            stack.callback(self._publisher.close)
            self._receiver = self._open_receiver(config)
            if self._receiver:
                stack.callback(self._receiver.close)
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
        of_workers = self._server.read()
        self._unsettled += of_workers
        self._take(of_workers)
        if self._receiver:
            self._take(self._receiver.read())
            if met := self._receiver.connected():
                self._follow(met)
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
            self._forget_gone()
            self._report()
        self.syscalls.poll()
        self._control.poll()

    def _forget_gone(self) -> None:
        gone = self._server.take_gone()
        if self._receiver:
            self._receiver.ignore({peer.pid for peer in self._server.peers.values()})
            gone |= self._receiver.take_gone(set(self.pipeline.threads.processes()))
        for tgid in gone:
            self.pipeline.inbox.forget(tgid)

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

    def _open_receiver(self, config: Config) -> OtlpReceiver | None:
        if not (config.otlp.grpc or config.otlp.http):
            return None
        if not configured(os.environ):
            logger.warning("what workers send by OTLP is not forwarded: OTEL_EXPORTER_OTLP_ENDPOINT is not set")
        return OtlpReceiver(
            config.otlp.grpc, config.otlp.http, self._publisher.forward, self.source, config.worker.allow_uids
        )

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
        self.metrics.turns(batch.cycles, batch.slices, add_up=thorough)
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
            of_host = self._meta(), self._cgroups.path, self._identities.of
            for judged in self.pipeline.judge(received, open_threads, *of_host):
                self._publisher.publish(judged, on_verdicts=self.syscalls.trigger)
        except Exception:  # whatever one worker has sent, the others are served
            self.pipeline.inbox.dropped["judge_failed"] += len(received)
            logger.exception("%d messages could not be judged", len(received))
        self.pipeline.lose(self._handover.take(self._unsettled))
        self._unsettled = []

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
        self._publisher.report()
        if self._receiver:
            self.metrics.receiver(self._receiver.received, self._receiver.refused, self._receiver.broken)
        if time.monotonic() - self._run_times_read_s >= RUN_TIMES_EVERY_S:
            self._run_times_read_s = time.monotonic()
            times = self.source.run_times()
            self.metrics.bpf_run_time((name, ns / 1e9) for name, (ns, runs) in times.items() if runs)
        usage = self._process.cpu_times()
        self.metrics.agent(usage.user + usage.system, self._process.memory_info().rss)


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
