"""One synthetic second of a busy inference host, as the evidence that the daemon would cut from its window.

40 handler threads take 10,000 requests, 10 executor threads run them in 1,250 batches of eight, on 16 CPUs.
Each request is preprocessed, queued, run in a batch and postprocessed in 4 ms. Each thread goes off the CPU
2,000 times: half of it sleeps in a futex until one of the others wakes it, half of it is preempted. Fewer
requests are a shorter stretch of the same; a :class:`Shape` is another host.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tailspan.attribute.causes import N_CAUSES
from tailspan.timeline.evidence import TABLES, Evidence, LikeRow, Meta, Table
from tailspan.timeline.tables import FOREVER
from tailspan.wire.events import CycleFlags, SocketFlags, SocketOp, ThreadMode
from tailspan.wire.spans import ActivationKind, SpanKind
from tailspan.wire.syscalls import SYSCALLS

BATCH = 8
START_NS = 1_000_000_000_000
TGID = 100
FIRST_TID = 1_000
FIRST_PORT = 1_024
STRINGS = ["", "POST /v1/infer", "model", "1", "worker", "ok", "preprocess", "queue", "run", "postprocess"]
FUTEX = SYSCALLS.index("futex")
TASK_INTERRUPTIBLE = 1

SPANS = (  # name, kind, from, to (of a request's time), on the executor
    ("preprocess", SpanKind.SYNC, 0.05, 0.15, False),
    ("queue", SpanKind.QUEUED, 0.15, 0.40, True),
    ("run", SpanKind.SYNC, 0.40, 0.90, True),
    ("postprocess", SpanKind.SYNC, 0.90, 0.98, False),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A host. Its handlers are never idle: ``handlers / request_ns`` is the rate of its requests."""

    handlers: int = 40  #: whole batches of them
    executors: int = 10  #: as many in each process
    sleepers: int = 0  #: further followed threads, that do not wake up
    processes: int = 1  #: that batches of handlers, executors and sleepers are dealt to in turn
    cpus: int = 16
    request_ns: int = 4_000_000
    turn_ns: int = 500_000  #: of each thread but the sleepers
    slice_ns: int = 125_000  #: of each CPU
    start_ns: int = START_NS

    @property
    def busy(self) -> int:
        return self.handlers + self.executors

    @property
    def threads(self) -> int:
        return self.busy + self.sleepers

    @property
    def groups(self) -> int:
        """The handlers of a group share a batch."""
        return self.handlers // BATCH

    def tgid(self, tid: np.ndarray) -> np.ndarray:
        number = np.asarray(tid, np.int64) - FIRST_TID
        dealt = np.where(number < self.handlers, number // BATCH, number - self.handlers)
        found: np.ndarray = TGID + dealt % self.processes
        return found


SECOND = Shape()


def evidence(requests: int, shape: Shape = SECOND) -> Evidence:
    """So many requests, rounded up to whole periods of all handlers. In :data:`SECOND` ten turns for each."""
    periods = -(-requests // shape.handlers)
    length_ns = periods * shape.request_ns
    random = np.random.default_rng(0)
    rows = _requests(shape, periods)
    cycles = _cycles(shape, length_ns, random)
    return Evidence(
        requests=rows,
        spans=_spans(shape, rows),
        activations=_batches(shape, periods),
        cycles=cycles,
        slices=_slices(shape, length_ns, random),
        open_threads=look(shape, cycles, int(rows["end_mono_ns"].max())),
        threads=_threads(shape),
        strings=STRINGS,
        likes=[LikeRow(500, shape.request_ns // 2, shape.request_ns, shape.request_ns, [0] * N_CAUSES)]
        * len(rows),
        meta=Meta(host="bench", cpu_count=shape.cpus),
    )


def look(shape: Shape, cycles: Table, at_mono_ns: int) -> Table:
    """What asking the kernel for all followed threads gives at that time (THREAD_STATE rows)."""
    rows = np.zeros(shape.threads, TABLES["open_threads"])
    rows["tid"] = rows["ns_tid"] = FIRST_TID + np.arange(len(rows))
    rows["tgid"] = rows["ns_tgid"] = shape.tgid(rows["tid"])
    rows["taken_mono_ns"], rows["followed_mono_ns"] = at_mono_ns, shape.start_ns
    rows["run_mono_ns"], rows["comm"] = shape.start_ns, b"handler"
    np.maximum.at(rows["run_mono_ns"], cycles["tid"].astype(np.int64) - FIRST_TID, cycles["on_mono_ns"])
    rows["mode"], rows["syscall_nr"] = ThreadMode.RUNNING, -1
    asleep = rows[shape.busy :]
    asleep["mode"], asleep["state"], asleep["syscall_nr"] = ThreadMode.BLOCKED, TASK_INTERRUPTIBLE, FUTEX
    asleep["off_mono_ns"], asleep["comm"] = shape.start_ns + 1, b"sleeper"
    return rows


def receives(shape: Shape, requests: Table) -> Table:
    """The receive that began each request (SOCKET_WAIT rows), in order of its end."""
    rows = np.zeros(len(requests), TABLES["sockets"])
    rows["to_mono_ns"] = requests["start_mono_ns"] - 20_000
    rows["arrived_mono_ns"] = rows["to_mono_ns"] - 30_000
    rows["from_mono_ns"] = rows["to_mono_ns"] - shape.request_ns // 4
    rows["tid"], rows["tgid"], rows["op"] = requests["tid"], requests["tgid"], SocketOp.RECEIVE
    rows["socket"] = rows["remote_port"] = FIRST_PORT + requests["tid"] - FIRST_TID
    rows["flags"] = SocketFlags.ACCEPTED | SocketFlags.MESSAGE
    return rows


def _requests(shape: Shape, periods: int) -> Table:
    """Sorted by time; request ``n`` is of handler ``n % handlers``, whose groups begin one after the other."""
    n = np.arange(periods * shape.handlers)
    period, handler = n // shape.handlers, n % shape.handlers
    group = handler // BATCH
    rows = np.zeros(len(n), TABLES["requests"])
    rows["start_mono_ns"] = shape.start_ns + period * shape.request_ns
    rows["start_mono_ns"] += group * (shape.request_ns // shape.groups)
    rows["end_mono_ns"] = rows["start_mono_ns"] + shape.request_ns
    rows["received_mono_ns"] = rows["end_mono_ns"]
    rows["tid"] = FIRST_TID + handler
    rows["tgid"] = shape.tgid(rows["tid"])
    rows["batch_id"] = _batch_id(shape, period, group)
    rows["batch_size"] = rows["batch_capacity"] = BATCH
    for name, text in (("name", 1), ("model", 2), ("version", 3), ("service", 4), ("status", 5)):
        rows[name] = text
    ids = (n + 1).astype(">u8")
    rows["span_id"] = ids.view("V8")
    rows["trace_id"] = np.stack((ids, ids), axis=1).reshape(-1).view("V16")
    return rows


def _spans(shape: Shape, requests: Table) -> Table:
    rows = np.zeros((len(requests), len(SPANS)), TABLES["spans"])
    for at, (name, kind, from_, to, on_executor) in enumerate(SPANS):
        column = rows[:, at]
        column["start_mono_ns"] = requests["start_mono_ns"] + int(from_ * shape.request_ns)
        column["end_mono_ns"] = requests["start_mono_ns"] + int(to * shape.request_ns)
        column["request"] = np.arange(len(requests))
        column["name"] = STRINGS.index(name)
        column["kind"] = kind
        column["tid"] = _executor(shape, requests["batch_id"]) if on_executor else requests["tid"]
    return rows.reshape(-1)


def _batches(shape: Shape, periods: int) -> Table:
    """One activation for every batch: the ``run`` spans of its eight requests."""
    period, group = (part.reshape(-1) for part in np.mgrid[:periods, : shape.groups])
    rows = np.zeros(len(period), TABLES["activations"])
    begun = shape.start_ns + period * shape.request_ns + group * (shape.request_ns // shape.groups)
    rows["start_mono_ns"] = begun + int(0.40 * shape.request_ns)
    rows["end_mono_ns"] = begun + int(0.90 * shape.request_ns)
    rows["owner"] = _batch_id(shape, period, group)
    rows["tid"] = _executor(shape, rows["owner"])
    rows["tgid"] = shape.tgid(rows["tid"])
    rows["kind"] = ActivationKind.BATCH
    rows["name"] = STRINGS.index("model")
    rows["size"] = rows["capacity"] = BATCH
    return rows


def _batch_id(shape: Shape, period: np.ndarray, group: np.ndarray) -> np.ndarray:
    found: np.ndarray = period * shape.groups + group + 1
    return found


def _executor(shape: Shape, batch_id: np.ndarray) -> np.ndarray:
    """One of the same process."""
    batch_id = batch_id.astype(np.int64)
    of_process = batch_id // shape.processes % (shape.executors // shape.processes)
    group = (batch_id - 1) % shape.groups
    nth: np.ndarray = of_process * shape.processes + group % shape.processes
    return FIRST_TID + shape.handlers + nth


def _cycles(shape: Shape, length_ns: int, random: np.random.Generator) -> Table:
    """Turns that tile each thread's time without a seam, sorted by (tid, run_mono_ns)."""
    threads, turn_ns = shape.busy, shape.turn_ns
    size = (threads, turns := max(1, length_ns // turn_ns))
    rows = np.zeros(size, TABLES["cycles"])
    edges = (
        shape.start_ns + np.arange(turns + 1) * turn_ns + random.integers(0, turn_ns // 4, (threads, turns + 1))
    )
    asleep = random.random(size) < 0.5
    ran = random.integers(turn_ns // 4, turn_ns // 2, size)
    slept = np.where(asleep, random.integers(turn_ns // 20, turn_ns // 5, size), 0)
    rows["run_mono_ns"], rows["on_mono_ns"] = edges[:, :-1], edges[:, 1:]
    rows["off_mono_ns"] = rows["run_mono_ns"] + ran
    rows["ready_mono_ns"] = rows["off_mono_ns"] + slept
    rows["irq_ns"] = random.integers(0, 2_000, size)
    rows["short_blocked_ns"] = random.integers(0, 2_000, size)
    rows["short_runq_ns"] = random.integers(0, 2_000, size)
    rows["tid"] = (FIRST_TID + np.arange(threads))[:, None]
    rows["tgid"] = shape.tgid(rows["tid"])
    rows["state"] = np.where(asleep, TASK_INTERRUPTIBLE, 0)
    rows["syscall_nr"] = np.where(asleep, FUTEX, -1)
    rows["waker_tid"] = np.where(asleep, _handler(shape, rows["tgid"] - TGID, random), 0)
    rows["waker_tgid"] = np.where(asleep, rows["tgid"], 0)
    rows["waker_comm"] = np.where(asleep, b"handler", b"")
    rows["run_cpu"] = rows["wait_cpu"] = random.integers(0, shape.cpus, size)
    known = random.random(size) < 0.5
    rows["flags"] = np.where(asleep, 0, CycleFlags.PREEMPTED) | np.where(known, CycleFlags.RUNNER, 0)
    rows["runner_since_mono_ns"] = np.where(known, rows["ready_mono_ns"], 0)
    rows["runner"]["tid"] = rows["runner"]["tgid"] = np.where(known, 9_000 + random.integers(0, 20, size), 0)
    rows["runner"]["comm"] = np.where(known, b"neighbour", b"")
    return rows.reshape(-1)


def _handler(shape: Shape, process: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Any of the same process."""
    nth = random.integers(0, shape.groups // shape.processes, process.shape)
    group = process.astype(np.int64) + nth * shape.processes
    found: np.ndarray = FIRST_TID + group * BATCH + random.integers(0, BATCH, process.shape)
    return found


def _slices(shape: Shape, length_ns: int, random: np.random.Generator) -> Table:
    """Each CPU's time in slices, sorted by (cpu, start_mono_ns)."""
    size = (shape.cpus, length_ns // shape.slice_ns)
    rows = np.zeros(size, TABLES["slices"])
    rows["start_mono_ns"] = shape.start_ns + np.arange(size[1]) * shape.slice_ns
    rows["end_mono_ns"] = rows["start_mono_ns"] + shape.slice_ns
    rows["cpu"] = np.arange(shape.cpus)[:, None]
    rows["runner"]["tid"] = rows["runner"]["tgid"] = 9_000 + random.integers(0, 20, size)
    rows["runner"]["comm"] = b"neighbour"
    return rows.reshape(-1)


def _threads(shape: Shape) -> Table:
    rows = np.zeros(shape.threads, TABLES["threads"])
    rows["tid"] = rows["ns_tid"] = FIRST_TID + np.arange(len(rows))
    rows["tgid"], rows["gone_mono_ns"] = shape.tgid(rows["tid"]), FOREVER
    rows["followed_mono_ns"] = shape.start_ns
    rows["named"][: shape.busy] = 1
    rows["comm"] = b"handler"
    rows["comm"][shape.handlers : shape.busy] = b"executor"
    rows["comm"][shape.busy :] = b"sleeper"
    return rows
