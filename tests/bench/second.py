"""One synthetic second of a busy inference host, as the evidence that the daemon would cut from its window.

40 handler threads take 10,000 requests, 10 executor threads run them in 1,250 batches of eight, on 16 CPUs.
Each request is preprocessed, queued, run in a batch and postprocessed in 4 ms. Each thread goes off the CPU
2,000 times: half of it sleeps in a futex until one of the others wakes it, half of it is preempted. Fewer
requests are a shorter stretch of the same.
"""

from __future__ import annotations

import numpy as np

from tailspan.attribute.causes import N_CAUSES
from tailspan.timeline.evidence import TABLES, Evidence, LikeRow, Meta, Table
from tailspan.timeline.tables import FOREVER
from tailspan.wire.events import CycleFlags
from tailspan.wire.spans import ActivationKind, SpanKind
from tailspan.wire.syscalls import SYSCALLS

HANDLERS, EXECUTORS, CPUS = 40, 10, 16
BATCH = 8
GROUPS = HANDLERS // BATCH  #: the handlers of a group share a batch
REQUEST_NS = 4_000_000
TURN_NS = 500_000
START_NS = 1_000_000_000_000
TGID = 100
FIRST_TID = 1_000
STRINGS = ["", "POST /v1/infer", "model", "1", "worker", "ok", "preprocess", "queue", "run", "postprocess"]
FUTEX = SYSCALLS.index("futex")
TASK_INTERRUPTIBLE = 1

SPANS = (  # name, kind, from, to (of a request's 4 ms), on the executor
    ("preprocess", SpanKind.SYNC, 0.05, 0.15, False),
    ("queue", SpanKind.QUEUED, 0.15, 0.40, True),
    ("run", SpanKind.SYNC, 0.40, 0.90, True),
    ("postprocess", SpanKind.SYNC, 0.90, 0.98, False),
)


def evidence(requests: int) -> Evidence:
    """So many requests, rounded up to whole periods of all handlers; ten turns of threads for each."""
    periods = -(-requests // HANDLERS)
    random = np.random.default_rng(0)
    rows = _requests(periods)
    cycles = _cycles(periods * REQUEST_NS, random)
    return Evidence(
        requests=rows,
        spans=_spans(rows),
        activations=_batches(periods),
        cycles=cycles,
        slices=_slices(periods * REQUEST_NS, random),
        threads=_threads(),
        strings=STRINGS,
        likes=[LikeRow(500, REQUEST_NS // 2, REQUEST_NS, REQUEST_NS, [0] * N_CAUSES)] * len(rows),
        meta=Meta(host="bench", cpu_count=CPUS),
    )


def _requests(periods: int) -> Table:
    """Sorted by time; request ``n`` is of handler ``n % HANDLERS``, whose groups begin one after the other."""
    n = np.arange(periods * HANDLERS)
    period, handler = n // HANDLERS, n % HANDLERS
    rows = np.zeros(len(n), TABLES["requests"])
    rows["start_mono_ns"] = START_NS + period * REQUEST_NS + handler // BATCH * (REQUEST_NS // GROUPS)
    rows["end_mono_ns"] = rows["start_mono_ns"] + REQUEST_NS
    rows["received_mono_ns"] = rows["end_mono_ns"]
    rows["tid"] = FIRST_TID + handler
    rows["tgid"] = TGID
    rows["batch_id"] = _batch_id(period, handler // BATCH)
    rows["batch_size"] = rows["batch_capacity"] = BATCH
    for name, text in (("name", 1), ("model", 2), ("version", 3), ("service", 4), ("status", 5)):
        rows[name] = text
    ids = (n + 1).astype(">u8")
    rows["span_id"] = ids.view("V8")
    rows["trace_id"] = np.stack((ids, ids), axis=1).reshape(-1).view("V16")
    return rows


def _spans(requests: Table) -> Table:
    rows = np.zeros((len(requests), len(SPANS)), TABLES["spans"])
    for at, (name, kind, from_, to, on_executor) in enumerate(SPANS):
        column = rows[:, at]
        column["start_mono_ns"] = requests["start_mono_ns"] + int(from_ * REQUEST_NS)
        column["end_mono_ns"] = requests["start_mono_ns"] + int(to * REQUEST_NS)
        column["request"] = np.arange(len(requests))
        column["name"] = STRINGS.index(name)
        column["kind"] = kind
        column["tid"] = _executor(requests["batch_id"]) if on_executor else requests["tid"]
    return rows.reshape(-1)


def _batches(periods: int) -> Table:
    """One activation for every batch: the ``run`` spans of its eight requests."""
    period, group = (part.reshape(-1) for part in np.mgrid[:periods, :GROUPS])
    rows = np.zeros(len(period), TABLES["activations"])
    begun = START_NS + period * REQUEST_NS + group * (REQUEST_NS // GROUPS)
    rows["start_mono_ns"] = begun + int(0.40 * REQUEST_NS)
    rows["end_mono_ns"] = begun + int(0.90 * REQUEST_NS)
    rows["owner"] = _batch_id(period, group)
    rows["tid"], rows["tgid"] = _executor(rows["owner"]), TGID
    rows["kind"] = ActivationKind.BATCH
    rows["name"] = STRINGS.index("model")
    rows["size"] = rows["capacity"] = BATCH
    return rows


def _batch_id(period: np.ndarray, group: np.ndarray) -> np.ndarray:
    found: np.ndarray = period * GROUPS + group + 1
    return found


def _executor(batch_id: np.ndarray) -> np.ndarray:
    return FIRST_TID + HANDLERS + batch_id.astype(np.int64) % EXECUTORS


def _cycles(length_ns: int, random: np.random.Generator) -> Table:
    """Turns that tile each thread's time without a seam, sorted by (tid, run_mono_ns)."""
    threads, turns = HANDLERS + EXECUTORS, length_ns // TURN_NS
    shape = (threads, turns)
    rows = np.zeros(shape, TABLES["cycles"])
    edges = START_NS + np.arange(turns + 1) * TURN_NS + random.integers(0, TURN_NS // 4, (threads, turns + 1))
    asleep = random.random(shape) < 0.5
    ran = random.integers(TURN_NS // 4, TURN_NS // 2, shape)
    slept = np.where(asleep, random.integers(TURN_NS // 20, TURN_NS // 5, shape), 0)
    rows["run_mono_ns"], rows["on_mono_ns"] = edges[:, :-1], edges[:, 1:]
    rows["off_mono_ns"] = rows["run_mono_ns"] + ran
    rows["ready_mono_ns"] = rows["off_mono_ns"] + slept
    rows["irq_ns"] = random.integers(0, 2_000, shape)
    rows["short_blocked_ns"] = random.integers(0, 2_000, shape)
    rows["short_runq_ns"] = random.integers(0, 2_000, shape)
    rows["tid"] = (FIRST_TID + np.arange(threads))[:, None]
    rows["tgid"] = TGID
    rows["state"] = np.where(asleep, TASK_INTERRUPTIBLE, 0)
    rows["syscall_nr"] = np.where(asleep, FUTEX, -1)
    rows["waker_tid"] = np.where(asleep, FIRST_TID + random.integers(0, threads, shape), 0)
    rows["waker_comm"] = np.where(asleep, b"handler", b"")
    rows["run_cpu"] = rows["wait_cpu"] = random.integers(0, CPUS, shape)
    known = random.random(shape) < 0.5
    rows["flags"] = np.where(asleep, 0, CycleFlags.PREEMPTED) | np.where(known, CycleFlags.RUNNER, 0)
    rows["runner_since_mono_ns"] = np.where(known, rows["ready_mono_ns"], 0)
    rows["runner"]["tid"] = rows["runner"]["tgid"] = np.where(known, 9_000 + random.integers(0, 20, shape), 0)
    rows["runner"]["comm"] = np.where(known, b"neighbour", b"")
    return rows.reshape(-1)


def _slices(length_ns: int, random: np.random.Generator) -> Table:
    """Each CPU's time in slices of a quarter of a turn, sorted by (cpu, start_mono_ns)."""
    slice_ns = TURN_NS // 4
    shape = (CPUS, length_ns // slice_ns)
    rows = np.zeros(shape, TABLES["slices"])
    rows["start_mono_ns"] = START_NS + np.arange(shape[1]) * slice_ns
    rows["end_mono_ns"] = rows["start_mono_ns"] + slice_ns
    rows["cpu"] = np.arange(CPUS)[:, None]
    rows["runner"]["tid"] = rows["runner"]["tgid"] = 9_000 + random.integers(0, 20, shape)
    rows["runner"]["comm"] = b"neighbour"
    return rows.reshape(-1)


def _threads() -> Table:
    rows = np.zeros(HANDLERS + EXECUTORS, TABLES["threads"])
    rows["tid"] = rows["ns_tid"] = FIRST_TID + np.arange(len(rows))
    rows["tgid"], rows["gone_mono_ns"] = TGID, FOREVER
    rows["comm"] = b"handler"
    rows["comm"][HANDLERS:] = b"executor"
    return rows
