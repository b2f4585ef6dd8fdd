"""What each probe costs, by threads that do nothing but what it looks at (``calls.c``).

Three measures:

* throughput, as in :mod:`tests.bench.switch`: paired with the agent's programs absent, interleaved, as fast as it
  goes. *Core* is what is left with ``probes.disabled`` = block, incidents, stalls, tcp
* the kernel's own (``kernel.bpf_stats_enabled``), in passes of their own: ns a run of each program. It includes
  the measuring. What an empty program reads is taken from one that only compares: ``on_signal``, for a signal
  that it does not care for
* the same of ``on_switch`` alone, by what a thread goes to sleep on. All waits are folded there (no floor is high
  enough to write one), so that what differs is finding out the object

Everything is as hot as it gets: caches are kept by the loop, and a worker that does other things between two
events pays more for each. Noise: 2 to 5 % for throughput, 10 % for a program that runs in 30 ns.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tailspan.collect.bpf.probes import BY_NAME
from tailspan.collect.bpf.programs import Options
from tailspan.collect.bpf.source import BpfSource
from tailspan.collect.elf import function_offsets, open_file
from tailspan.wire.events import GpuCallKind
from tests.bench.measured import bpf_stats, programs
from tests.bench.page import interval, number, span, table
from tests.bench.spread import Figures, ratio, spread, turns
from tests.bench.storm import Storm, build, storm

#: Without these an agent still has sched, lifecycle and irq, and says less.
REFINING = frozenset({"block", "gpu", "incidents", "stalls", "tcp"})

FILE_BYTES = 32 << 20
MEMORY_BYTES = 8 << 20  #: what a cgroup may keep of that file, of which every other MiB is read


#: Rings that lose nothing: a lost record is cheaper than one that is written.
ROOMY = Options(
    cycle_ring_bytes=16 << 20,
    slice_ring_bytes=4 << 20,
    syscall_ring_bytes=1 << 20,
    socket_ring_bytes=8 << 20,
    connection_ring_bytes=4 << 20,
    block_ring_bytes=1 << 20,
    incident_ring_bytes=16 << 20,
    gpu_call_ring_bytes=8 << 20,
)
#: No wait is long enough for a record of its own.
FOLDED = replace(ROOMY, short_wait_ns=1 << 40)


@dataclass(frozen=True, slots=True)
class Workload:
    words: str
    kind: str  #: of ``calls.c``
    threads: int = 0  #: 0: a pair a CPU
    probes: tuple[str, ...] = ()  #: that see it
    programs: tuple[str, ...] = ()  #: of theirs that run then
    counted_by: str = ""  #: the program that runs once an event; "": the workload counts itself


@dataclass(frozen=True, slots=True)
class Arm:
    followed: bool = True
    disabled: frozenset[str] = frozenset()
    syscalls: bool = False
    probed: bool = False  #: the programs that go into libraries are in the workload's function


EXCHANGE = Workload(
    "a loopback request and its answer",
    kind="tcp",
    probes=("tcp", "irq"),
    programs=("on_tcp_send", "on_tcp_receive", "on_tcp_segment", "on_softirq_entry", "on_softirq_exit"),
)
CONNECTION = Workload(
    "a connection, from SYN to reset",
    kind="connect",
    threads=1,
    probes=("tcp",),
    programs=("on_tcp_state", "on_tcp_reset_received"),
)
READ = Workload(
    "a read past the page cache",
    kind="read",
    threads=1,
    probes=("block", "irq"),
    programs=("on_block_insert", "on_block_issue", "on_block_complete", "on_irq_entry", "on_irq_exit"),
)
LOCK = Workload(
    "a contended lock in `mmap`",
    kind="map",
    threads=4,
    probes=("stalls",),
    programs=("on_contention_begin", "on_contention_end"),
    counted_by="on_contention_begin",
)
RECLAIM = Workload(
    "a reclaim in a full memory cgroup",
    kind="cached",
    threads=1,
    probes=("stalls",),
    programs=("on_memcg_reclaim_begin", "on_memcg_reclaim_end"),
    counted_by="on_memcg_reclaim_begin",
)
CONTINUE = Workload("SIGCONT", kind="cont", threads=1, probes=("incidents",), programs=("on_signal",))
OTHER_SIGNAL = Workload(
    "a signal of no interest", kind="winch", threads=1, probes=("incidents",), programs=("on_signal",)
)
CALL = Workload(
    "a system call", kind="getppid", threads=1, probes=("syscalls",), programs=("on_sys_enter", "on_sys_exit")
)
GPU_CALL = Workload(
    "a CUDA call", kind="gpu_call", threads=1, probes=("gpu",), programs=("on_gpu_call", "on_gpu_return")
)
GPU_LAUNCH = Workload("a CUDA launch", kind="gpu_launch", threads=1, probes=("gpu",), programs=("on_gpu_launch",))
GPU_STEPPED = Workload(
    "a CUDA launch, single-stepped", kind="gpu_stepped", threads=1, probes=("gpu",), programs=("on_gpu_launch",)
)
GPU = (GPU_CALL, GPU_LAUNCH, GPU_STEPPED)
EVENTS = (EXCHANGE, CONNECTION, READ, LOCK, RECLAIM, CONTINUE, OTHER_SIGNAL, CALL, *GPU)

SLEEPS = (
    Workload("nothing that is looked up (`sigwaitinfo`)", kind="signal"),
    Workload("a futex", kind="futex"),
    Workload("a pipe", kind="pipe"),
    Workload("a pipe, in `poll`", kind="poll"),
    Workload("a TCP socket", kind="tcp"),
    Workload("a regular file", kind="read", threads=1),
)

KINDS = {"not followed": False, "followed": True}

ABSENT = "absent"
CORE, ALL = "core, followed", "all, followed"
UNFOLLOWED_CALLS = "all and syscalls, not followed"
PROBED = "all, followed, in its function"
ARMS: dict[str, Arm | None] = {
    ABSENT: None,
    "absent again": None,
    "all, not followed": Arm(followed=False),
    CORE: Arm(disabled=REFINING),
    ALL: Arm(),
}
SYSCALL_ARMS: dict[str, Arm | None] = {
    ABSENT: None,
    "absent again": None,
    ALL: Arm(),
    UNFOLLOWED_CALLS: Arm(followed=False, syscalls=True),
    "all and syscalls, followed": Arm(syscalls=True),
}
GPU_ARMS: dict[str, Arm | None] = {
    ABSENT: None,
    "absent again": None,
    ALL: Arm(),
    PROBED: Arm(probed=True),
}
RATES = (
    (EXCHANGE, ARMS),
    (READ, ARMS),
    (CALL, SYSCALL_ARMS),
    *((workload, GPU_ARMS) for workload in GPU),
)


def run(quick: bool) -> Figures:
    return measure(rounds=2, seconds=0.2) if quick else measure(rounds=10, seconds=0.6)


def measure(rounds: int, seconds: float) -> Figures:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="tailspan-bench-") as name:  # /tmp may be memory
        bench = _Bench(Path(name), seconds)
        rates = {workload.words: bench.rates(workload, arms, rounds) for workload, arms in RATES}
        with bpf_stats():
            events = {kind: bench.programs(EVENTS, followed, ROOMY) for kind, followed in KINDS.items()}
            sleeps = {kind: bench.programs(SLEEPS, followed, FOLDED) for kind, followed in KINDS.items()}
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "rounds": rounds,
        "seconds_per_round": seconds,
        "rates": rates,
        "events": events,
        "sleeps": sleeps,
    }


class _Bench:
    def __init__(self, folder: Path, seconds: float) -> None:
        self._seconds = seconds
        self._binary = build(folder, "calls")
        self._file = folder / "file"
        self._file.write_bytes(os.urandom(FILE_BYTES))

    def rates(self, workload: Workload, arms: dict[str, Arm | None], rounds: int) -> Figures:
        per_s: dict[str, list[float]] = {name: [] for name in arms}
        lost = dict.fromkeys(arms, 0)
        with self._running(workload) as one:
            one.run(self._seconds)  # caches and clocks warm up
            for names in turns(tuple(arms), rounds):
                for name in names:
                    rate, missed = self._rate(workload, arms[name], one)
                    per_s[name].append(rate)
                    lost[name] += missed
        return {
            "per_s": {name: spread(values) for name, values in per_s.items()},
            "ratio": {name: ratio(values, per_s[ABSENT]) for name, values in per_s.items() if name != ABSENT},
            "refining": ratio(per_s[ALL], per_s[CORE]) if CORE in arms else None,
            "lost": sum(lost.values()),
        }

    def _rate(self, workload: Workload, arm: Arm | None, one: Storm) -> tuple[float, int]:
        """(times a second, records lost)"""
        if arm is None:
            return one.run(self._seconds).per_s, 0
        with contextlib.closing(BpfSource(replace(ROOMY, disabled=arm.disabled))) as source:
            if arm.syscalls:
                source.attach("syscalls")
            if arm.followed:
                source.follow([one.pid])
            uprobes = self._uprobes(source, workload, one.pid) if arm.probed else contextlib.nullcontext()
            lost = 0

            def drain() -> None:
                nonlocal lost
                lost += int(source.drain().losses["count"].sum())

            with uprobes:
                return one.run(self._seconds, drain).per_s, lost

    @contextlib.contextmanager
    def _uprobes(self, source: BpfSource, workload: Workload, pid: int) -> Iterator[None]:
        """The workload's programs that go into libraries, in the function that it is named after."""
        file = open_file(self._binary)
        offset = function_offsets(file, [workload.kind])[workload.kind]
        os.close(file)
        kind = GpuCallKind.LAUNCH if "on_gpu_launch" in workload.programs else GpuCallKind.SYNC
        source.count_gpu_calls(pid, kind)
        with contextlib.ExitStack() as stack:
            for program in reversed(workload.programs):
                stack.callback(source.attach_functions(program, pid, self._binary, [(offset, int(kind))]).close)
            yield

    def programs(self, workloads: tuple[Workload, ...], followed: bool, options: Options) -> Figures:
        """Workload -> program -> what :func:`tests.bench.measured.programs` says of it."""
        found: Figures = {}
        with contextlib.closing(BpfSource(options)) as source:
            for workload in workloads:
                with self._running(workload) as one:
                    for probe in workload.probes:
                        source.attach(probe)
                    before = source.run_times()
                    if followed:
                        source.follow([one.pid])
                    there = workload in GPU and source.status["gpu"].attached
                    with self._uprobes(source, workload, one.pid) if there else contextlib.nullcontext():
                        done = one.run(self._seconds, lambda: source.drain(thorough=False)).count
                    after, counter = source.run_times(), workload.counted_by
                    if counter:
                        done = after[counter][1] - before[counter][1]
                    found[workload.words] = programs(before, after, done) if done else {}
                    source.detach("syscalls")
        return found

    @contextlib.contextmanager
    def _running(self, workload: Workload) -> Iterator[Storm]:
        threads = workload.threads or len(os.sched_getaffinity(0))
        with storm(self._binary, workload.kind, threads, self._file) as one:
            if workload.kind == "cached":
                with _memory_limit(one.pid):
                    self._forget_file()
                    yield one
            else:
                yield one

    def _forget_file(self) -> None:
        """What is in the page cache already is on somebody else's account."""
        descriptor = os.open(self._file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _memory_limit(pid: int) -> Iterator[None]:
    """``pid`` in a cgroup of little memory, v1 or v2; where there is no such controller, it stays where it is."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, limit = (v1, "memory.limit_in_bytes") if v1.is_dir() else (v2, "memory.max")
    group = root / f"tailspan-bench-{os.getpid()}"
    group.mkdir()
    try:
        if (group / limit).exists():
            (group / limit).write_text(str(MEMORY_BYTES))
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        (root / "cgroup.procs").write_text(str(pid))
        group.rmdir()


def render(figures: Figures) -> str:
    rates, events, empty = figures["rates"], figures["events"], _empty_ns(figures)
    exchange = rates[EXCHANGE.words]
    tcp, block = (
        _added(figures, workload, probe, "not followed", 0)
        for workload, probe in ((EXCHANGE, "tcp"), (READ, "block"))
    )
    opened = events["followed"][EXCHANGE.words]["iter_sockets"]
    return f"""## The probes

Threads that do nothing but one thing that a probe looks at, as fast as they can: upper bounds, as for the context
switch. {figures["rounds"]} rounds of {number(figures["seconds_per_round"])} s of each kind, in turn. *Core* is an
agent with `probes.disabled` = {", ".join(sorted(REFINING))}: the probes sched, lifecycle and irq alone. *All* has
the default ones. *Followed*: the threads are the worker's.

{_rates_table(figures)}

*ns more each* comes from the median ratio. *{EXCHANGE.words.capitalize()}*: {figures["cpus"]} pairs of threads,
one a CPU, exchange {exchange["per_s"][ABSENT]["median"] / 1e3:,.0f} thousand requests and answers of 101 bytes a
second, with no network and no work: nothing but the kernel's own path is left to compare with. Of the two
receives, the one on the side that accepted the connection writes a record. All divided by core:
{interval(exchange["refining"])} for this, {interval(rates[READ.words]["refining"])} for reads. Records lost:
{sum(rate["lost"] for rate in rates.values()):,}.

What each probe adds to one event, from what the kernel measures, ns: the sum over its programs, less
{number(empty)} ns a run, which is what a program reads that only compares: the measuring, and some ns for being
called.

{_added_table(figures)}

The programs themselves, ns a run with the measuring in it, and how often they run for one event. `iter_sockets`
runs once for every open file of the host when a process is followed: {number(opened["ns"])} ns each.

{_programs_table(figures)}

What a thread goes to sleep on is found out when it leaves the CPU. `on_switch`, ns a sleep with the measuring in
it; waits are folded, so that no record is written. A thread that reads a file leaves its CPU idle: two switches a
sleep, with caches that have cooled meanwhile.

{_sleeps_table(figures)}

What is on, and what is off. `syscalls` is **off by default**: while it is attached, every system call of every
task of the host takes the kernel's slow path, followed or not. That is
{_ns_more(figures, CALL, UNFOLLOWED_CALLS)} ns more here for a call of
{number(_event_ns(figures, CALL))} ns, at rates that no other probe sees, and the blocking part of a system call is
in the ledger without it. With `probes.syscalls` = triggered it is attached for some seconds when somebody asks.
`tcp` is on: sockets that nobody follows cost a look-up for each operation and segment, with the measuring
{number(tcp)} ns for a whole exchange that takes {number(_event_ns(figures, EXCHANGE))} ns of CPU time, and without
it accept queue, unread bytes, the network and an upstream cannot be told apart. `block` is on: its table entry is
{number(block)} ns for each request, followed or not and with the measuring, of the
{number(_event_ns(figures, READ))} ns that a request takes here. `stalls` runs only where a thread waits for a
contended lock or reclaims memory, `incidents` only for signals. None is sampled: a sample would miss the one slow
request that is asked about.

`gpu` is on, and goes into the CUDA libraries of followed processes alone: nobody else pays. What it costs is the
breakpoint: {_ns_more(figures, GPU_CALL, PROBED)} ns more for a call, which has two and writes a record, and
{_ns_more(figures, GPU_LAUNCH, PROBED)} ns for a launch. Where a function begins with an instruction that the
kernel cannot do itself, a launch is {_ns_more(figures, GPU_STEPPED, PROBED)} ns dearer. The functions here do
nothing; a launch takes some microseconds. A kind of call that comes more than `gpu.calls_per_s` times a second in
a process is not probed there."""


def _empty_ns(figures: Figures) -> float:
    ns: float = figures["events"]["not followed"][OTHER_SIGNAL.words]["on_signal"]["ns"]
    return ns


def _event_ns(figures: Figures, workload: Workload) -> float:
    """Time that one event takes one thread, or one pair on its CPU, with the agent absent."""
    at_once = workload.threads or figures["cpus"]
    per_s: float = figures["rates"][workload.words]["per_s"][ABSENT]["median"]
    return at_once * 1e9 / per_s


def _ns_more(figures: Figures, workload: Workload, arm: str) -> str:
    median = figures["rates"][workload.words]["ratio"][arm]["median"]
    return number(_event_ns(figures, workload) * (1 / median - 1))


def _rates_table(figures: Figures) -> str:
    rows = []
    for workload, arms in RATES:
        rate = figures["rates"][workload.words]
        for name in arms:
            given = rate["ratio"].get(name)
            rows.append(
                [
                    workload.words if name == ABSENT else "",
                    name,
                    span(rate["per_s"][name]),
                    interval(given) if given else "1",
                    _ns_more(figures, workload, name) if given else "",
                ]
            )
    return table(["", "agent's programs", "a second", "ratio to absent", "ns more each"], rows)


def _added(figures: Figures, workload: Workload, probe: str, kind: str, less_ns: float) -> float:
    """ns for one event, of each run so much less."""
    measured = figures["events"][kind][workload.words]
    added: float = sum(
        max(0.0, measured[program]["ns"] - less_ns) * measured[program]["runs_per_event"]
        for program in workload.programs
        if program in measured and program in BY_NAME[probe].programs
    )
    return added


def _added_table(figures: Figures) -> str:
    events, empty = figures["events"], _empty_ns(figures)
    rows = [
        [
            f"`{probe}`",
            workload.words,
            *(number(_added(figures, workload, probe, kind, empty)) for kind in events),
        ]
        for workload in EVENTS
        if workload is not OTHER_SIGNAL and all(by_workload[workload.words] for by_workload in events.values())
        for probe in workload.probes
    ]
    return table(["probe", "event", *events], rows)


def _programs_table(figures: Figures) -> str:
    events = figures["events"]
    rows = []
    for workload in EVENTS:
        measured = {kind: by_workload[workload.words] for kind, by_workload in events.items()}
        for program in workload.programs:
            if all(program in found for found in measured.values()):
                each = measured["followed"][program]["runs_per_event"]
                rows.append(
                    [
                        f"`{program}`, {workload.words}",
                        f"{each:.2f}",
                        *(number(found[program]["ns"]) for found in measured.values()),
                    ]
                )
    return table(["program", "runs an event", *events], rows)


def _sleeps_table(figures: Figures) -> str:
    def ns(kind: str, workload: Workload) -> float:
        measured = figures["sleeps"][kind][workload.words]["on_switch"]
        sleeps = 1 if workload.threads else 2  # a pair's threads both sleep once a round trip
        return float(measured["ns"] * measured["runs_per_event"] / sleeps)

    rows = [[workload.words, *(number(ns(kind, workload)) for kind in figures["sleeps"])] for workload in SLEEPS]
    return table(["it sleeps on", *figures["sleeps"]], rows)
