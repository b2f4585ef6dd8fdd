"""The one place that wires the stages together: sources -> timeline -> attribution -> exporters, on one timer.

One thread does it all, in bounded steps; only exporters that talk to a network have threads of their own. Order
in a tick matters: worker messages are read before the rings are drained, so that every kernel record of a request
that is known to have ended is already in the window when it is judged.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailspan import __version__, clock, log, privileges, service, tls
from tailspan import config as configuration
from tailspan.attribute.watch import LONGEST_S, Watch
from tailspan.collect.bpf.cuda import CudaProbes
from tailspan.collect.bpf.programs import Programs
from tailspan.collect.bpf.source import BpfSource
from tailspan.collect.bpf.syscalls import SyscallTracing
from tailspan.collect.following import OTLP, PEER, SOCKET, Following
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
from tailspan.collect.samples import CpuSampler, NetTotals
from tailspan.collect.targets import Target, Targets
from tailspan.collect.worker import WorkerServer
from tailspan.config import Config
from tailspan.control import ControlServer, Pending
from tailspan.cost.price import Price
from tailspan.errors import TailspanError
from tailspan.export.otlp import configured
from tailspan.export.prometheus import Metrics
from tailspan.export.pulse import Pulse
from tailspan.export.tally import Tally
from tailspan.judging import Judging
from tailspan.pipeline import Judged, Moment, Pipeline
from tailspan.probing import Probing
from tailspan.publisher import Publisher
from tailspan.timeline.evidence import Meta, Table
from tailspan.timeline.handover import Handover
from tailspan.timeline.peers import Peers
from tailspan.timeline.tables import LOSS_CLIENT, LOSS_WINDOW
from tailspan.wire.events import RecordClass

if TYPE_CHECKING:
    from tailspan.collect.otlp.server import OtlpReceiver

logger = logging.getLogger(__name__)

#: What a tick shall find: a share of a ring, or so many messages of workers. Twice that share wakes it.
SHALL_FILL, SHALL_READ = 1 / 4, 32
#: The longest rest for it, in ``agent.tick_ms``.
RELAXED = 4
#: The longest rest where nobody is followed: until somebody connects.
ALONE_S = 0.25
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
    """Opens everything in the constructor (raises what cannot be had), works in :meth:`tick`.

    ``programs``: being loaded, with the configuration's options. ``lasting``: it gives up what it needs for that
    alone, and the whole process does.
    """

    def __init__(self, config: Config, programs: Programs, lasting: bool = False) -> None:
        self._config = config
        self._records: Counter[str] = Counter()  # by table, since the metrics were told
        self._judged_ns = 0  # the first tick says all that there is to say
        self._ticked_s = time.monotonic()
        self._took_s = 0.0  # from the tick before the last to the last
        self._found = 0.0  # by the last; 1 is what a tick shall find
        self._cgroups = Cgroups()
        self._peers = Peers(config.follow.peers)
        self._host, self._boot = host_name(), boot_id()
        self._dropped: dict[str, int] = {}  # what the metrics have been told
        self._run_times_read_s = 0.0
        self.metrics = Metrics()
        for name in (*LOSS_NAMES.values(), _GPU_ROW):
            self.metrics.lost(name, 0)
        self.pipeline = Pipeline(config)
        self._pulse = Pulse()
        self._watch = Watch(config.health, config.slow.slo_ms, min(config.window.seconds, LONGEST_S))
        with contextlib.ExitStack() as stack:
            self.source = BpfSource(programs=programs)
            stack.callback(self.source.close)
            self.syscalls = SyscallTracing(self.source, config.probes.syscalls, config.probes.syscalls_seconds)
            self._server = _worker_server(config)
            stack.callback(self._server.close)
            self._control = ControlServer(Path(config.agent.control), self._answer)
            stack.callback(self._control.close)
            self._doors = select.poll()
            for door in (self._server, self._control):
                self._doors.register(door.fileno(), select.POLLIN)
            self._tls = tls.server(config.tls)
            if lasting:
                self._give_up_privileges()  # before anything below starts a thread, which would keep them
            self._identities = Identities(node=node_name(os.environ))
            stack.callback(self._identities.close)
            self._following = Following(self.source, self.pipeline.threads)
            self._targets = Targets(self.source, self._identities, config.follow)
            stack.callback(self._targets.close)
            self._cpus = CpuSampler()
            stack.callback(self._cpus.close)
            self._net = NetTotals()
            stack.callback(self._net.close)
            self._gpus = GpuSampler(config.gpu.sample_ms, config.gpu.budget) if config.gpu.nvml == "on" else None
            if self._gpus:
                stack.callback(self._gpus.close)
            self._cuda = CudaProbes(self.source, config.gpu.calls_per_s)
            stack.callback(self._cuda.close)
            parts = self.source, self.syscalls, self._cuda, self._following, self.pipeline
            self._probing = Probing(*parts, config.probes.short_wait_us * 1000)
            self._price = Price(self._probing, config.budget, config.window.seconds)
            tally = Tally(Path(config.store.path, "tally"))
            stack.callback(tally.close)
            handover = Handover(tally, process_started, self._boot)
            self._judging = Judging(self.pipeline, self._publish, handover.take)
            self._publisher = Publisher(config, self._host, self.metrics, tally, self._pulse, self._tls)
            stack.callback(self._publisher.close)
            self._receiver = self._open_receiver(config)
            if self._receiver:
                stack.callback(self._receiver.close)
            if pids := self._targets.rules.pids:
                self._following.fit({pid: Target(0, reason) for pid, reason in pids.items()}, set(pids.values()))
            self._cleanup = stack.pop_all()

    @property
    def config(self) -> Config:
        """The one that is in force."""
        return self._config

    def close(self) -> None:
        self._cleanup.close()

    def reload(self, load: Callable[[], Config]) -> None:
        """Apply what ``load`` returns, as far as that can be done without a restart; never raises."""
        try:
            wanted = load()
            changed = configuration.changed(self._config, wanted)
            later = [key for key in changed if configuration.needs_restart(key)]
            self._apply(configuration.reloaded(self._config, wanted))
        except Exception as error:
            self.metrics.reloaded(ok=False)
            unforeseen = not isinstance(error, TailspanError)
            logger.error("not reloaded, the old configuration stays: %s", error, exc_info=unforeseen)
            return
        self.metrics.reloaded(ok=True)
        applied = [key for key in changed if key not in later]
        logger.info("configuration reloaded: changed: %s", ", ".join(applied) or "nothing")
        if later:
            logger.warning("changed, and needs a restart: %s", ", ".join(later))

    def _apply(self, config: Config) -> None:
        old, self._config = self._config, config
        worker = config.worker
        self._server.limit(worker.allow_uids, worker.max_connections, worker.packets_per_s)
        if self._receiver:
            self._receiver.allow(worker.allow_uids)
        if config.follow != old.follow:
            self._targets.change(config.follow)
            self._peers.limit = config.follow.peers
        if config.probes != old.probes:
            self.syscalls.change(config.probes.syscalls, config.probes.syscalls_seconds)
        if self._gpus:
            self._gpus.pace(config.gpu.sample_ms, config.gpu.budget)
        self.pipeline.change(config)
        self._watch.change(config.health, config.slow.slo_ms)
        self._price.change(config.budget)
        self._publisher.change(config)

    def _answer(self, request: dict[str, Any]) -> Pending:
        if request.get("do") == "cost":
            return self._price.answer(request)
        return self._pulse.answer if request.get("do") == "health" else self.syscalls.answer(request)

    def finish(self) -> None:
        """Judge what has come in: the last requests before a stop are explained too."""
        self._pulse.stopping()
        self._price.stop()
        self._judging.finish()
        self._judged_ns = 0
        self.tick()
        self._judging.finish()
        self._report()  # what was dropped of the last ones too

    def tick(self) -> None:
        """Drain everything once; judge when it is time to."""
        self._pulse.beat()
        last_s, self._ticked_s = self._ticked_s, time.monotonic()
        self._took_s = self._ticked_s - last_s
        accepted = self._server.accept()
        if accepted:
            self._probing.hear([peer.pid for peer in accepted], SOCKET)
        of_workers = self._server.read()
        self._found = len(of_workers) / SHALL_READ
        self._judging.take(of_workers, of_socket=True)
        if self._receiver:
            self._judging.take(self._receiver.read(), of_socket=False)
            if met := self._receiver.connected():
                self._probing.hear(met, OTLP)
        due = time.monotonic_ns() - self._judged_ns >= self._config.agent.judge_ms * 1_000_000
        to_judge = due and self._judging.is_due()
        # Look at open intervals before the rings are drained: a turn that ends in between is then in a record.
        paused = self._probing.is_off
        to_grade = due and not paused and self._watch.due(time.monotonic_ns())
        open_threads = self._probing.look() if to_grade or (to_judge and self._judging.waits) else None
        self._drain(thorough=due)
        if due:
            self._judged_ns = time.monotonic_ns()
            self.pipeline.window.samples.append(self._cpus.take(self._judged_ns))
            self._look_at_gpus()
            self.pipeline.lose(self._server.take_losses())
            self._look_for_gone()
            if to_judge and open_threads is not None:
                if not paused:
                    self.pipeline.threads.see(open_threads)
                    self.pipeline.threads.forget_missing(open_threads)
                self._judging.begin(Moment(open_threads, self._meta(), self._cgroups.path, self._identities.of))
            if to_grade and open_threads is not None:
                self._grade(open_threads)
            if not paused:
                self._look_for_targets()
            self._report()
        if not paused:
            self.syscalls.poll()
        self._price.poll()
        self._judging.go_on()
        self._control.poll()

    def rest(self) -> None:
        """Until the next tick has enough to find, by what came last; shorter while there is something to judge."""
        tick_s = self._config.agent.tick_ms / 1000
        if self.is_alone:
            time.sleep(tick_s)  # however many connect and go, no more ticks than a busy worker makes
            due_ns = self._judged_ns + self._config.agent.judge_ms * 1_000_000 - time.monotonic_ns()
            self._doors.poll(max(0, min(due_ns / 1e6, ALONE_S * 1e3)))
            return
        enough_s = self._took_s / self._found if self._found else math.inf
        self.source.wait(tick_s if self._judging.is_on else max(tick_s, min(enough_s, RELAXED * tick_s)))

    @property
    def is_alone(self) -> bool:
        """Nobody is followed, connected or asks, and nothing is left to judge; nor may somebody come by OTLP."""
        there = self._server.peers or self._control.is_asked or self._following.anybody or self._receiver
        return not (self._judging.is_on or there)

    def _grade(self, open_threads: Table) -> None:
        services = {tgid: said.get("service.name", "") for tgid, said in self.pipeline.inbox.resources.items()}
        gpus = self._gpus.host().gpus if self._gpus else ()
        health = self._watch.turn(open_threads, services, gpus, time.monotonic_ns())
        there = os.access(self._config.worker.socket, os.F_OK)
        missing = "" if there else f"{self._config.worker.socket} is gone: workers cannot connect"
        self._pulse.turn(health, self._publisher.not_stored(), missing)
        self.metrics.health(health)

    def _look_for_gone(self) -> None:
        gone = self._server.take_gone()
        if self._receiver:
            self._receiver.ignore({peer.pid for peer in self._server.peers.values()})
            gone |= self._receiver.take_gone(set(self.pipeline.threads.processes()))
        self._judging.gone(gone)

    def _look_for_targets(self) -> None:
        self._following.forget_ended()
        targets = self._targets.take()
        if targets is not None:
            self._following.fit(targets, self._targets.rules.reasons())

    def _look_at_gpus(self) -> None:
        if self._config.gpu.calls == "on":
            self._probing.look_for_cuda()
        if self._gpus:
            taken = self._gpus.take()
            self.metrics.lost(_GPU_ROW, taken.dropped)
            self.pipeline.window.gpu_samples.append(taken.samples)
            self.pipeline.window.gpu_processes.append(taken.processes)
            self.pipeline.window.gpu_events.append(taken.events)

    def _give_up_privileges(self) -> None:
        asks = privileges.kernel_asks(self.source)
        privileges.give_up(privileges.needed(self._config, asks, self.source.uprobes_are_perf_events))

    def _open_receiver(self, config: Config) -> OtlpReceiver | None:
        if not (config.otlp.grpc or config.otlp.http):
            return None
        if not configured(os.environ):
            logger.warning("what workers send by OTLP is not forwarded: OTEL_EXPORTER_OTLP_ENDPOINT is not set")
        from tailspan.collect.otlp.server import OtlpReceiver  # gRPC, HTTP and protobuf: for those who listen

        return OtlpReceiver(
            config.otlp.grpc,
            config.otlp.http,
            self._publisher.forward,
            self.source,
            config.worker.allow_uids,
            self._tls,
        )

    def _drain(self, thorough: bool) -> None:
        batch = self.source.drain(thorough)
        self._found = max(self._found, batch.fill / SHALL_FILL)
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
        self.metrics.socket_waits(batch.sockets, add_up=thorough)
        self.metrics.gpu_calls(batch.gpu_calls)
        self.metrics.turns(batch.cycles, batch.slices, add_up=thorough)
        if thorough:
            records = {name.removesuffix("s"): count for name, count in self._records.items()}
            self.metrics.records(records)
            self._price.meter.took(records)
            self._pulse.drained(self._records.total(), int(batch.losses["count"].sum()))
            self._records.clear()
            self.metrics.connections(batch.connections)
            if self.source.status["incidents"].attached:
                self.metrics.incidents(batch.incidents)
            self.syscalls.keep(batch.syscalls)
        self.pipeline.take(tables, batch.thread_events)
        self.pipeline.lose(batch.losses)
        self._watch.took(batch.cycles)
        self._following.born(batch.thread_events)
        peers = self._peers.new(batch.cycles, self.pipeline.threads.processes)
        if peers:
            self._probing.hear(peers, PEER)
        if self._peers.refused and self._config.follow.peers:
            log.once_per(3600, "peers", logger, "follow.peers is reached: others that end waits are not followed")

    def _publish(self, judged: Judged) -> None:
        self._watch.served(judged.requests, judged.strings, judged.slow)
        self._price.served(judged.requests)
        self._publisher.publish(judged, on_verdicts=self.syscalls.trigger)

    def _meta(self) -> Meta:
        offset, now_ns = clock.measure(), time.monotonic_ns()
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
            probes_off=self._price.probes_off(now_ns),
            shed=self._price.shed_when(now_ns),
        )

    def _report(self) -> None:
        """Everything that is counted elsewhere goes to the metrics."""
        self.pipeline.evict(time.monotonic_ns())
        self.metrics.host_tcp(self._net.read())
        for row in self.pipeline.take_losses():
            self.metrics.lost(LOSS_NAMES[int(row["klass"])], int(row["count"]))
            self._price.meter.lost(LOSS_NAMES[int(row["klass"])], int(row["count"]))
        for reason, total in (self._server.dropped + self.pipeline.inbox.dropped).items():
            self.metrics.dropped_messages(reason, total - self._dropped.get(reason, 0))
            self._dropped[reason] = total
        if self._gpus:
            self.metrics.gpus(self._gpus.host(), time.monotonic_ns())
        if self.source.status["gpu"].attached:
            cuda = self._cuda.status()
            self.metrics.gpu_probes(cuda.hits, cuda.attached, cuda.off)
        self.metrics.forgotten(self.pipeline.forgotten)
        self.metrics.followed(self._following.counts())
        self.metrics.probes({name: status.attached for name, status in self.source.status.items()})
        self.metrics.window({name: column.rows for name, column in self.pipeline.window.columns.items()})
        self._publisher.report()
        if self._receiver:
            self.metrics.receiver(self._receiver.received, self._receiver.refused, self._receiver.broken)
        if time.monotonic() - self._run_times_read_s >= RUN_TIMES_EVERY_S:
            self._run_times_read_s = time.monotonic()
            times = self.source.run_times()
            self.metrics.bpf_run_time((name, ns / 1e9) for name, (ns, runs) in times.items() if runs)
        if self._tls:
            self.metrics.tls(self._tls.reloads, self._tls.expires_unix_s)
        if reading := self._price.turn():
            self.metrics.agent(reading)
            self.metrics.budget(self._price.budget.cpu, self._price.budget.rss_mib << 20)
            self.metrics.shed(self._price.shed, self._price.changes)
            self._pulse.shed(self._price.shed)
        if of_probes := self._price.take_measured():
            self.metrics.measured(of_probes)


def _worker_server(config: Config) -> WorkerServer:
    worker = config.worker
    path = Path(worker.socket)
    return WorkerServer(
        path,
        int(worker.mode, 8),
        worker.group,
        tuple(worker.allow_uids),
        worker.max_connections,
        worker.packets_per_s,
        service.inherited(path, socket.SOCK_SEQPACKET),
    )
