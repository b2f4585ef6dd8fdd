"""A host that we do not have: 256 CPUs, 4,000 followed threads, 5,000 requests/s, through all behind the rings.

Two halves. *Simulated*: some seconds of that host as kernel records (``second.py``), split into the rings of its
CPUs, and as messages on the workers' real socket; a real pipeline, metrics, store and OTLP spool (with a backend
that is not there) take them in, drain by drain, as the daemon does. CPU time is of the one thread that does it, by
stage; nothing is paced, so a stage that is too slow shows as more than one CPU second a second, not as a loss.

*Real*: this machine's agent, told that it has 256 CPUs: their rings are made, and drained while they are empty.

Not in it: the kernel's part (its programs, the walk over all tasks), the names of containers, and what the CPUs of
such a host do to each other's caches. Noise: 10 %.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil

from tailspan import pipeline as stages
from tailspan.attribute.baseline import Baseline
from tailspan.attribute.watch import Watch
from tailspan.collect.bpf import libbpf
from tailspan.collect.bpf.programs import OBJECT, Options
from tailspan.collect.bpf.source import BpfSource
from tailspan.collect.worker import PACKETS_PER_POLL, WorkerServer
from tailspan.config import Config, Export, Store
from tailspan.export.local import SegmentWriter
from tailspan.export.prometheus import Metrics
from tailspan.export.pulse import Pulse
from tailspan.export.tally import Tally
from tailspan.judging import MAX_WAITING
from tailspan.pipeline import MAX_KEPT, MAX_REQUESTS, MIN_VERDICTS, VERDICT_BUDGET_S, Judged, Moment, Pipeline
from tailspan.publisher import Publisher
from tailspan.timeline.evidence import TABLES, Evidence, Meta, Table
from tailspan.timeline.inbox import Inbox, Received
from tailspan.timeline.peers import Peers
from tailspan.timeline.tables import LOSS_WINDOW, join
from tailspan.wire.events import THREAD_EVENT
from tailspan.wire.spans import Activation, ActivationKind, Hello, Request, Span, SpanKind, encode
from tests.bench.page import number, table
from tests.bench.second import FIRST_TID, STRINGS, Shape, evidence, look, receives
from tests.bench.sizing import size
from tests.bench.spread import Figures, spread

CPUS = 256
HOST = Shape(
    handlers=200,
    executors=48,
    sleepers=3_752,
    processes=16,
    cpus=CPUS,
    request_ns=40_000_000,
    turn_ns=5_000_000,
    slice_ns=5_000_000,
)
#: One request in so many is slow.
SLOW = 100
#: ... so much longer, in lengths of the others.
SLOW_BY = 2
CONFIG = Config()
UNIT = Path(__file__).parents[2] / "systemd" / "tailspan.service"
#: What the agent itself takes of it, rings apart: resident under load, see *The worker*.
OWN_MIB = 90
#: Soft limit of files that most shells and containers start a process with.
SHELL_FILES = 1_024

_DONE = object()
_PERCPU_TYPES = (5, 6, 10, 21)  # hash, array, LRU hash, cgroup storage: include/uapi/linux/bpf.h
_RINGS = ("cycles", "slices", "sockets")
_TIMES = {"cycles": "on_mono_ns", "slices": "end_mono_ns", "sockets": "to_mono_ns"}
_CPU = {"cycles": "run_cpu", "slices": "cpu"}

#: What is measured within another stage, where it has that name: (object, function, stage).
_WITHIN: tuple[tuple[Any, str, str], ...] = (
    (Inbox, "rows", "messages"),
    (stages, "find_arrivals", "arrivals"),
    (stages, "join_threads", "arrivals"),
    (stages, "cut", "cut"),
    (stages, "account", "ledgers"),
    (stages, "ledgers", "ledgers"),
    (Baseline, "likes", "baseline"),
    (Baseline, "learn", "baseline"),
    (stages, "narrow", "narrow"),
    (stages, "judge", "verdicts"),
    (SegmentWriter, "append", "store"),
)
STAGES = {
    "read": "messages read from the socket",
    "messages": "messages become rows",
    "join": "records of the rings put together",
    "count": "records counted: metrics, health",
    "take": "records into the window",
    "look": "the look at all threads",
    "arrivals": "when requests arrived",
    "cut": "cut from the window",
    "ledgers": "ledgers of a sample",
    "baseline": "what is normal for each",
    "narrow": "what is kept of slow ones",
    "verdicts": "verdicts",
    "store": "evidence written to disk",
    "judge": "the rest of judging",
    "publish": "metrics, OTLP handed over",
    "report": "window evicted, figures reported",
}


def run(quick: bool) -> Figures:
    return measure(seconds=1.0, cpus=16) if quick else measure(seconds=10.0, cpus=CPUS)


def measure(seconds: float, cpus: int = CPUS, shape: Shape = HOST) -> Figures:
    """``seconds`` of the host; ``cpus`` that this machine's agent is told of."""
    return {
        "host": {
            "cpus": shape.cpus,
            "threads": shape.threads,
            "processes": shape.processes,
            "requests_per_s": shape.handlers / shape.request_ns * 1e9,
            "slow_percent": 100 / SLOW,
        },
        "simulated": simulated(shape, seconds),
        "kernel": _kernel(cpus),
        "limits": _limits(),
    }


# --- the host ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tick:
    """What one drain of the rings and one reading of the socket bring."""

    at_mono_ns: int
    rings: dict[str, list[Table]]  #: one a CPU that has any
    packets: list[bytes]


def _host(shape: Shape, seconds: float) -> tuple[Evidence, list[_Tick]]:
    tick_ns = CONFIG.agent.tick_ms * 1_000_000
    whole = evidence(round(seconds * 1e9 / shape.request_ns) * shape.handlers, shape)
    late = whole.requests[::SLOW]
    late["start_mono_ns"] -= SLOW_BY * shape.request_ns
    whole.sockets = receives(shape, whole.requests)
    packets = _packets(whole)
    last = int(whole.requests["end_mono_ns"].max())
    ends = np.arange(shape.start_ns, last + tick_ns, tick_ns) + tick_ns
    by_ring = {name: _by_tick_and_cpu(name, getattr(whole, name), ends) for name in _RINGS}
    cuts = np.searchsorted([at for at, _ in packets], ends, side="right").tolist()
    ticks = []
    for number_, (end, first, past) in enumerate(zip(ends.tolist(), [0, *cuts], cuts, strict=False)):
        rings = {name: parts[number_] for name, parts in by_ring.items()}
        ticks.append(_Tick(end, rings, [packet for _, packet in packets[first:past]]))
    return whole, ticks


def _by_tick_and_cpu(name: str, rows: Table, ends: np.ndarray) -> list[list[Table]]:
    """For each tick the rows that each CPU's ring holds then."""
    tick = np.searchsorted(ends, rows[_TIMES[name]])
    cpu = rows[_CPU[name]] if name in _CPU else rows["tid"] % CPUS
    order = np.lexsort((rows[_TIMES[name]], cpu, tick))
    rows, ring = rows[order], tick[order] * CPUS + cpu[order]
    bounds = np.flatnonzero(np.diff(ring)) + 1
    found: list[list[Table]] = [[] for _ in range(len(ends) + 1)]
    for part, first in zip(np.split(rows, bounds), [0, *bounds.tolist()], strict=True):
        if len(part):
            found[int(ring[first]) // CPUS].append(part)
    return found


def _packets(whole: Evidence) -> list[tuple[int, bytes]]:
    """Every message of the workers as it goes over the socket, with when it is sent."""
    spans = whole.spans.reshape(len(whole.requests), -1)
    found = [(int(row["end_mono_ns"]), _request(row, own)) for row, own in zip(whole.requests, spans, strict=True)]
    for row in whole.activations:
        start, end = int(row["start_mono_ns"]), int(row["end_mono_ns"])
        message = Activation(
            ActivationKind.BATCH, int(row["tid"]), start, end, int(row["owner"]), "model", int(row["size"]), 8
        )
        found.append((end, encode(message)))
    return sorted(found, key=lambda item: item[0])


def _request(row: np.void, spans: Table) -> bytes:
    trace_id = bytes(row["trace_id"])
    return encode(
        Request(
            *(trace_id, bytes(row["span_id"]), bytes(8), trace_id[-4:].hex(), STRINGS[int(row["name"])]),
            *(int(row["tid"]), int(row["start_mono_ns"]), int(row["end_mono_ns"])),
            model="model",
            model_version="1",
            batch_id=int(row["batch_id"]),
            batch_size=int(row["batch_size"]),
            batch_capacity=int(row["batch_capacity"]),
            spans=[
                Span(STRINGS[name], SpanKind(kind), tid, start, end)
                for start, end, _, name, tid, kind in spans.tolist()
            ],
        )
    )


# --- the simulation ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Stopwatch:
    """CPU ns of this thread by stage; a stage within another one is not counted in that one."""

    ns: Counter[str] = field(default_factory=Counter)
    _open: list[str] = field(default_factory=list)
    _since: int = 0

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._turn()
        self._open.append(stage)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def within(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self(stage):
                return function(*arguments, **named)

        return timed

    def _turn(self) -> None:
        now = time.thread_time_ns()
        if self._open:
            self.ns[self._open[-1]] += now - self._since
        self._since = now


class _Agent:
    """What the daemon does behind the rings, without a kernel, on the host's own clock."""

    def __init__(self, folder: Path, shape: Shape, stack: contextlib.ExitStack) -> None:
        self.config = replace(CONFIG, store=Store(path=str(folder / "store")), export=Export(prometheus=""))
        self.watch = _Stopwatch()
        self.metrics, self.pipeline = Metrics(), Pipeline(self.config)
        self.verdicts = self.unjudged = self.requests = self.slow = 0
        self.lost: Counter[int] = Counter()
        self.turns_s: list[float] = []  #: CPU time of each tick that judges
        self.slices_s: list[float] = []  #: ... and of what it does before it looks at the rings again
        self._shape = shape
        self._health = Watch(self.config.health)
        self._peers = Peers(self.config.follow.peers)
        path = folder / "worker.sock"
        # Its budget is by the clock of this machine, which the host's runs ahead of.
        self._server = WorkerServer(path, packets_per_s=10_000_000)
        stack.callback(self._server.close)
        self._client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.callback(self._client.close)
        self._client.setblocking(False)
        self._client.connect(str(path))
        self._server.accept()
        tally = Tally(folder / "store" / "tally")
        stack.callback(tally.close)
        self._publisher = Publisher(self.config, "bench", self.metrics, tally, Pulse())
        stack.callback(self._publisher.close)
        self._pending: list[Received] = []
        self._judged_ns = shape.start_ns
        self._hello()

    def _hello(self) -> None:
        """Each process says what it serves; the kernel vouches for this one alone, so it is not on the socket."""
        first = FIRST_TID + np.arange(self._shape.processes)
        for tgid in self._shape.tgid(first).tolist():
            self._pending.append(Received(tgid, Hello(tgid, f"service-{tgid}"), self._shape.start_ns))

    def tick(self, tick: _Tick, threads: Table) -> None:
        self._pending += self._read(tick.packets)
        due = tick.at_mono_ns - self._judged_ns >= self.config.agent.judge_ms * 1_000_000
        before = time.thread_time()
        self._drain(tick, due)
        if due:
            self._judge(tick.at_mono_ns, threads)
            self.turns_s.append(time.thread_time() - before)

    def finish(self, threads: Table) -> None:
        """Judge what has come since the last time."""
        self._judge(int(threads["taken_mono_ns"].max()), threads)

    def _read(self, packets: Sequence[bytes]) -> list[Received]:
        found: list[Received] = []
        left = list(reversed(packets))
        while left:
            with contextlib.suppress(BlockingIOError):
                while left:
                    self._client.send(left[-1])
                    left.pop()
            with self.watch("read"):
                found += self._server.read()
        for received in found:  # this process has sent them for all of the host's
            message = received.message
            if isinstance(message, Request | Activation):
                received.tgid = int(self._shape.tgid(np.array(message.tid)))
        return found

    def _drain(self, tick: _Tick, due: bool) -> None:
        with self.watch("join"):
            tables = {name: join(parts, TABLES[name]) for name, parts in tick.rings.items()}
        with self.watch("count"):
            self.metrics.socket_waits(tables["sockets"], add_up=due)
            self.metrics.turns(tables["cycles"], tables["slices"], add_up=due)
            self._health.took(tables["cycles"])
            self._peers.new(tables["cycles"], self.pipeline.threads.processes)
        with self.watch("take"):
            self.pipeline.take(tables, np.empty(0, THREAD_EVENT))

    def _judge(self, now_mono_ns: int, threads: Table) -> None:
        self._judged_ns = now_mono_ns
        with self.watch("look"):
            self.pipeline.threads.see(threads)
            self.pipeline.threads.forget_missing(threads)
        received, self._pending = self._pending, []
        found = self.pipeline.judging(received, Moment(threads, Meta(host="bench", cpu_count=CPUS), lambda _: ""))
        while True:
            before = time.thread_time()
            with self.watch("judge"):
                judged = next(found, _DONE)
            self.slices_s.append(time.thread_time() - before)
            if judged is _DONE:
                break
            if not isinstance(judged, Judged):
                continue
            with self.watch("publish"):
                self._health.served(judged.requests, judged.strings, judged.slow)
                self._publisher.publish(judged, on_verdicts=lambda: None)
            self.requests += len(judged.requests)
            self.slow += int(judged.slow.sum())
            self.verdicts += len(judged.verdicts)
            self.unjudged += len(judged.kept) - len(judged.verdicts)
        with self.watch("report"):
            if self._health.due(now_mono_ns):
                self.metrics.health(self._health.turn(threads, {}, (), now_mono_ns))
            self.pipeline.evict(now_mono_ns)
            for row in self.pipeline.take_losses():
                self.lost[int(row["klass"])] += int(row["count"])
            self.metrics.window({name: column.rows for name, column in self.pipeline.window.columns.items()})
            self._publisher.report()

    def dropped(self) -> dict[str, int]:
        return dict(self._server.dropped + self.pipeline.inbox.dropped)


def simulated(shape: Shape, seconds: float) -> Figures:
    """Needs neither a kernel nor privileges."""
    # All of it has happened already: a message that speaks of the future is refused.
    shape = replace(shape, start_ns=time.monotonic_ns() - round((seconds + 1) * 1e9))
    whole, ticks = _host(shape, seconds)
    threads = look(shape, whole.cycles[:0], shape.start_ns)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nowhere = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
        stack.enter_context(mock.patch.dict(os.environ, nowhere))
        agent = _Agent(folder, shape, stack)
        for owner, name, stage in _WITHIN:
            if hasattr(owner, name):
                timed = agent.watch.within(getattr(owner, name), stage)
                stack.enter_context(mock.patch.object(owner, name, timed))
        rss, others_s = psutil.Process().memory_info().rss, time.process_time() - time.thread_time()
        for tick in ticks:
            threads["taken_mono_ns"] = tick.at_mono_ns
            agent.tick(tick, threads.copy())
            for part in tick.rings["cycles"]:  # they say when the turn began that is open now
                np.maximum.at(threads["run_mono_ns"], part["tid"].astype(np.int64) - FIRST_TID, part["on_mono_ns"])
        agent.finish(threads)
        others_s = time.process_time() - time.thread_time() - others_s
        rss = psutil.Process().memory_info().rss - rss
        window = {name: column.rows for name, column in agent.pipeline.window.columns.items() if column.rows}
        stored = sum(path.stat().st_size for path in (folder / "store").glob("*.tspan"))
        spooled = sum(path.stat().st_size for path in (folder / "store" / "spool").rglob("*") if path.is_file())
    records = sum(len(getattr(whole, name)) for name in _RINGS)
    return {
        "seconds": seconds,
        "requests": agent.requests,
        "turns": len(whole.cycles),
        "records": records,
        "records_per_s": records / seconds,
        "turns_per_s": len(whole.cycles) / seconds,
        "messages_per_s": sum(len(tick.packets) for tick in ticks) / seconds,
        "cpu_s_per_s": {stage: agent.watch.ns[stage] / 1e9 / seconds for stage in STAGES},
        "total_cpu_s_per_s": sum(agent.watch.ns.values()) / 1e9 / seconds,
        "other_threads_cpu_s_per_s": others_s / seconds,
        "judging_ms": spread([1e3 * took for took in agent.turns_s]),
        "slice_ms": spread([1e3 * took for took in agent.slices_s]),
        "slow": agent.slow,
        "verdicts": agent.verdicts,
        "unjudged": agent.unjudged,
        "forgotten": agent.pipeline.forgotten,
        "dropped_messages": agent.dropped(),
        "window_rows": window,
        "window_rows_lost": agent.lost[LOSS_WINDOW],
        "window_bytes": sum(count * TABLES[name].itemsize for name, count in window.items()),
        "window_s": _seconds_of(window["cycles"], len(whole.cycles) / seconds),
        "rss_grown_bytes": rss,
        "stored_bytes_per_s": stored / seconds,
        "spooled_bytes_per_s": spooled / seconds,
    }


def _seconds_of(rows: int, per_s: float) -> float:
    return rows / per_s


# --- this machine's kernel, told of so many CPUs ----------------------------------------------------------------


def _kernel(cpus: int) -> Figures:
    options = Options()
    rings = {name: getattr(options, name) for name in Options.__dataclass_fields__ if name.endswith("_ring_bytes")}
    before_mib, files = _available_mib(), _files()
    began = time.monotonic()
    with mock.patch.object(libbpf, "possible_cpus", lambda: cpus), contextlib.closing(BpfSource()) as source:
        took = time.monotonic() - began
        found = {
            "cpus": cpus,
            "start_ms": took * 1e3,
            "files": _files() - files,
            "used_mib": before_mib - _available_mib(),
            "drain_us": spread(_drains(source, thorough=False)),
            "thorough_us": spread(_drains(source, thorough=True)),
        }
    return found | {"ring_bytes": rings, "maps": _maps()}


def _drains(source: BpfSource, thorough: bool, times: int = 50) -> list[float]:
    """CPU µs of each drain of rings that are empty."""
    found = []
    for _ in range(times):
        before = time.thread_time()
        source.drain(thorough)
        found.append((time.thread_time() - before) * 1e6)
    return found


def _maps() -> Figures:
    """Bytes a CPU of every map that has a value for each, at the most."""
    object_ = libbpf.BpfObject(OBJECT)
    try:
        shapes = object_.shapes()
    finally:
        object_.close()
    found = {
        name: -(-shape.value_size // 8) * 8 * shape.max_entries
        for name, shape in shapes.items()
        if shape.type in _PERCPU_TYPES
    }
    return found | {"cpus": shapes["cpus"].value_size}


def _files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _available_mib() -> float:
    text = Path("/proc/meminfo").read_text()
    return int(re.search(r"MemAvailable:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


def _limits() -> Figures:
    """What the service is allowed."""
    text = UNIT.read_text()

    def of(key: str) -> int:
        match = re.search(rf"^{key}=(\d+)", text, re.M)
        assert match, f"{UNIT} has no {key}="
        return int(match[1])

    return {"memory_mib": of("MemoryMax"), "cpu_percent": of("CPUQuota"), "files": of("LimitNOFILE")}


# --- what is met first ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bound:
    """Something that the agent is bounded by, and at what size of a host of this kind it is met."""

    words: str
    at: float
    then: str  #: what happens beyond it


def of_rate(figures: Figures) -> list[Bound]:
    """By requests a second, the lowest first. What a request causes is what it causes on the simulated host."""
    simulated, host, limits = figures["simulated"], figures["host"], figures["limits"]
    rate = host["requests_per_s"]
    per_s, cpu = simulated["turns_per_s"], simulated["total_cpu_s_per_s"]
    judged_per_s = 1_000 / CONFIG.agent.judge_ms
    verdict_s = simulated["cpu_s_per_s"]["verdicts"] / max(simulated["verdicts"] / simulated["seconds"], 1e-9)
    verdicts_per_s = judged_per_s * max(MIN_VERDICTS, VERDICT_BUDGET_S / max(verdict_s, 1e-9))
    slow_share = simulated["slow"] / simulated["requests"]
    of_a_process = simulated["messages_per_s"] / rate
    found = [
        Bound(
            f"`CPUQuota` of the service, {limits['cpu_percent']} % of a core",
            rate * limits["cpu_percent"] / 100 / cpu,
            "rings run over while it is throttled; losses are counted",
        ),
        Bound(
            "one core: the pipeline is one thread",
            rate / cpu,
            "drains come late, then rings run over and messages wait; counted",
        ),
        Bound(
            f"`window.max_rows` holds {CONFIG.window.seconds} s of turns",
            rate * CONFIG.window.max_rows / CONFIG.window.seconds / per_s,
            "the window is shorter: the oldest rows go, and are counted as lost",
        ),
        Bound(
            f"verdicts, {number(verdicts_per_s)} a second",
            verdicts_per_s / slow_share if slow_share else float("inf"),
            "further slow requests are stored, and judged when they are explained",
        ),
        Bound(
            "`worker.packets_per_s`, if one process serves them all",
            CONFIG.worker.packets_per_s / of_a_process,
            "its packets above it are dropped, and counted",
        ),
        Bound(
            f"{PACKETS_PER_POLL} packets a process and tick",
            PACKETS_PER_POLL * 1_000 / CONFIG.agent.tick_ms / of_a_process,
            "they wait in its socket, and its client counts what does not fit",
        ),
        Bound(
            f"{MAX_KEPT} slow requests kept a turn",
            MAX_KEPT * judged_per_s / slow_share if slow_share else float("inf"),
            "the slowest are kept, the others counted",
        ),
        Bound(
            f"{MAX_WAITING:,} messages between two judgements",
            MAX_WAITING * judged_per_s / of_a_process,
            "new ones are dropped, and counted",
        ),
        Bound(
            f"{MAX_REQUESTS:,} requests judged at once",
            MAX_REQUESTS * judged_per_s,
            "nothing: they are judged in parts",
        ),
    ]
    return sorted(found, key=lambda bound: bound.at)


def of_cpus(figures: Figures) -> list[Bound]:
    """By CPUs of the host (those that the kernel calls possible), the lowest first."""
    kernel, limits = figures["kernel"], figures["limits"]
    files = kernel["files"] / kernel["cpus"]
    ring_mib = ring_bytes(figures) / (1 << 20)
    found = [
        Bound(
            f"a hard limit of {SHELL_FILES:,} open files (`ulimit -Hn`)",
            SHELL_FILES / files,
            "it does not start: each ring has three",
        ),
        Bound(f"`LimitNOFILE={limits['files']}` of the service", limits["files"] / files, "the same"),
        Bound(
            f"`MemoryMax={limits['memory_mib']}M` of the service, beside {OWN_MIB} MiB of its own",
            (limits["memory_mib"] - OWN_MIB) / ring_mib,
            "it does not start: there is no memory for the rings",
        ),
        Bound("1 % of a core, with nothing to do", 0.01 / idle_share(figures) * kernel["cpus"], "it takes more"),
    ]
    return sorted(found, key=lambda bound: bound.at)


def ring_bytes(figures: Figures) -> int:
    """A CPU."""
    return sum(figures["kernel"]["ring_bytes"].values())


def idle_share(figures: Figures) -> float:
    """Of a core, for looking into empty rings on the agent's timer."""
    kernel, agent = figures["kernel"], CONFIG.agent
    judged, ticks = 1_000 / agent.judge_ms, 1_000 / agent.tick_ms
    us = (ticks - judged) * kernel["drain_us"]["median"] + judged * kernel["thorough_us"]["median"]
    return float(us * 1e-6)


# --- the page ---------------------------------------------------------------------------------------------------


def render(figures: Figures) -> str:
    host, simulated = figures["host"], figures["simulated"]
    return f"""## A large host

Simulated: {host["cpus"]} CPUs, {host["threads"]:,} followed threads of {host["processes"]} processes,
{number(host["requests_per_s"])} requests/s in batches of eight, {number(host["slow_percent"])} % of them three
times as long; {number(simulated["turns_per_s"])} turns of threads a second, {number(simulated["records_per_s"])}
records with slices and receives, and {number(simulated["messages_per_s"])} messages on the workers' socket. All
that is behind the rings takes it in as the daemon does, {number(simulated["seconds"])} s of it.

{table(["CPU s a second of the host", ""], _stages(simulated))}

{_judging(simulated)}

{table(["memory and disk", ""], _memory(figures))}

By requests a second, what is met first on hosts of this kind:

{_bounds("requests/s", of_rate(figures))}

By CPUs, those that the kernel calls possible:

{_bounds("CPUs", of_cpus(figures))}

{_first(figures)}"""


def _stages(simulated: Figures) -> list[list[str]]:
    cpu = simulated["cpu_s_per_s"]
    ranked = sorted(STAGES, key=lambda stage: -cpu[stage])
    rows = [[STAGES[stage], number(cpu[stage])] for stage in ranked if cpu[stage] > 0]
    return [
        *rows,
        ["**all of it, one thread**", f"**{number(simulated['total_cpu_s_per_s'])}**"],
        ["other threads: verdicts into spans, spool", number(simulated["other_threads_cpu_s_per_s"])],
    ]


def _judging(simulated: Figures) -> str:
    judging, slices = simulated["judging_ms"], simulated["slice_ms"]
    words = (
        f"A turn that judges comes every {CONFIG.agent.judge_ms} ms and takes {number(judging['median'])} ms of"
        f" CPU ({number(judging['max'])} at the most), in slices of which the longest takes"
        f" {number(slices['max'])} ms: rings and sockets wait as long."
        f" Of {simulated['requests']:,} requests {simulated['slow']:,} were slow:"
        f" {simulated['verdicts']:,} verdicts, {simulated['unjudged']:,} stored without one,"
        f" {simulated['forgotten']:,} not kept."
    )
    dropped = sum(simulated["dropped_messages"].values())
    return f"{words} Messages dropped: {dropped:,}. Rows that the window could not hold: {_lost(simulated)}."


def _lost(simulated: Figures) -> str:
    return f"{simulated['window_rows_lost']:,}"


def _memory(figures: Figures) -> list[list[str]]:
    simulated, kernel = figures["simulated"], figures["kernel"]
    maps = sum(kernel["maps"].values())
    rings = ring_bytes(figures)
    window_s = min(simulated["window_s"], CONFIG.window.seconds)
    return [
        ["the window: rows", f"{sum(simulated['window_rows'].values()):,}"],
        [f"... which is of turns the last {number(window_s)} s, and in bytes", size(simulated["window_bytes"])],
        ["the process has grown meanwhile by", size(simulated["rss_grown_bytes"])],
        [f"rings, {number(rings / 1024)} KiB a CPU, {CPUS} CPUs", size(rings * CPUS)],
        [f"maps by CPU, {CPUS} CPUs, all entries in use", size(maps * CPUS)],
        [
            f"this machine with the rings of {kernel['cpus']} CPUs: memory gone",
            f"{number(kernel['used_mib'])} MiB",
        ],
        ["... open files", f"{kernel['files']:,}"],
        ["... loaded, rings made, attached in", f"{number(kernel['start_ms'])} ms"],
        ["... one drain of them, all empty, CPU", f"{number(kernel['drain_us']['median'])} µs"],
        ["... of a core, on the agent's timer", f"{number(100 * idle_share(figures))} %"],
        ["evidence stored", f"{size(simulated['stored_bytes_per_s'] * 3600)} an hour"],
        [f"... `store.total_mib` ({CONFIG.store.total_mib}) is full after", _full_after(simulated)],
    ]


def _full_after(simulated: Figures) -> str:
    seconds = (CONFIG.store.total_mib << 20) / max(simulated["stored_bytes_per_s"], 1e-9)
    return f"{number(seconds / 60)} min" if seconds < 7_200 else f"{number(seconds / 3600)} h"


def _bounds(unit: str, bounds: Sequence[Bound]) -> str:
    rows = [[bound.words, _rounded(bound.at), bound.then] for bound in bounds]
    return table(["bound", f"met at {unit}", "beyond it"], rows, words=(0, 2))


def _rounded(value: float) -> str:
    return number(float(f"{value:.2g}")) if np.isfinite(value) else "never"


def _first(figures: Figures) -> str:
    rate, cpus, simulated = of_rate(figures), of_cpus(figures), figures["simulated"]
    wanted = figures["host"]["requests_per_s"]
    met = [bound for bound in rate if bound.at < wanted]
    largest = max(simulated["cpu_s_per_s"], key=lambda stage: simulated["cpu_s_per_s"][stage])
    return (
        f"What bounds it: this host takes {number(simulated['total_cpu_s_per_s'])} of a core, in one thread, most"
        f" of it for: {STAGES[largest]}. CPU time is taken to grow with the rate (see *Growth*). Of the"
        f" bounds by rate {len(met)} lie below its {number(wanted)} requests/s; first comes: {rate[0].words}, at"
        f" {_rounded(rate[0].at)} requests/s. By CPUs it is: {cpus[0].words}, at {_rounded(cpus[0].at)}."
    )
