"""Synthetic evidence: a small language to write down what threads and requests did, in milliseconds."""

from __future__ import annotations

import ipaddress
from collections import defaultdict

import numpy as np

from tailspan.attribute.causes import N_CAUSES
from tailspan.timeline.evidence import TABLES, Evidence, LikeRow, Meta
from tailspan.timeline.tables import ABSENT, FOREVER, GpuEventKind
from tailspan.wire.events import CycleFlags, GpuCallKind, IncidentKind, RunnerFlags, SocketOp, ThreadMode
from tailspan.wire.spans import ActivationKind, SpanKind
from tailspan.wire.syscalls import SYSCALLS

MS = 1_000_000
TASK_INTERRUPTIBLE = 1
#: When the kernel was asked for open turns: after everything.
LOOK = 1_000_000 * MS


class Timeline:
    """Times are milliseconds; threads are followed from time 0 and on a CPU unless told otherwise.


    ``blocks``, ``waits`` and ``moves`` of one thread must be told in time order.
    """

    def __init__(self, tgid: int = 100) -> None:
        self.tgid = tgid
        self._rows: dict[str, list[dict[str, object]]] = defaultdict(list)
        self._on: dict[int, int] = {}  # tid -> since when its current turn runs, ns
        self._mute: set[int] = set()  # threads of which nothing more is heard
        self._strings = [""]
        self.meta = Meta(host="test", unix_offset_ns=1_000_000 * MS, clock_error_ns=50, cpu_count=2)

    def request(self, start: float, end: float, tid: int, **fields: object) -> int:
        """A request; returns its row. String fields are given as text."""
        row = len(self._rows["requests"])
        for name in ("name", "model", "version", "service", "status", "device", "provider"):
            fields[name] = self._string(str(fields.get(name, "")))
        self._rows["requests"].append(
            {
                "trace_id": np.void((row + 1).to_bytes(16, "big")),
                "span_id": np.void((row + 1).to_bytes(8, "big")),
                "start_mono_ns": round(start * MS),
                "end_mono_ns": round(end * MS),
                "tid": tid,
                "tgid": self.tgid,
                "sampled": 1,
                **fields,
            }
        )
        return row

    def span(
        self, request: int, name: str, start: float, end: float, tid: int, kind: SpanKind = SpanKind.SYNC
    ) -> None:
        self._rows["spans"].append(
            {
                "request": request,
                "name": self._string(name),
                "start_mono_ns": round(start * MS),
                "end_mono_ns": round(end * MS),
                "tid": tid,
                "kind": kind,
            }
        )

    def batch(self, batch_id: int, start: float, end: float, tid: int, size: int = 1, capacity: int = 8) -> None:
        self._activation(ActivationKind.BATCH, batch_id, start, end, tid, size=size, capacity=capacity)

    def step(self, request: int, start: float, end: float, tid: int) -> None:
        """An event-loop step for a request (its row), or -1 for none."""
        self._activation(ActivationKind.STEP, request + 1, start, end, tid)

    def blocks(
        self,
        tid: int,
        off: float,
        ready: float,
        on: float,
        syscall: str = "futex",
        waker: int = 0,
        **fields: object,
    ) -> None:
        """The thread sleeps in ``syscall`` from ``off``, is woken at ``ready`` and gets on a CPU at ``on``."""
        self.cycle(
            tid,
            off,
            ready,
            on,
            state=TASK_INTERRUPTIBLE,
            syscall_nr=SYSCALLS.index(syscall),
            waker_tid=waker,
            waker_comm=f"t{waker}".encode() if waker else b"",
            **fields,
        )

    def waits(self, tid: int, off: float, on: float, cpu: int = 0, **fields: object) -> None:
        """The thread is preempted at ``off`` and gets on again at ``on``."""
        flags = CycleFlags.PREEMPTED | int(fields.pop("flags", 0))  # type: ignore[call-overload]
        self.cycle(tid, off, off, on, wait_cpu=cpu, flags=flags, **fields)

    def cycle(self, tid: int, off: float, ready: float, on: float, **fields: object) -> None:
        run = self._on.get(tid, 0)
        self._rows["cycles"].append(
            {
                "run_mono_ns": run,
                "off_mono_ns": round(off * MS),
                "ready_mono_ns": round(ready * MS),
                "on_mono_ns": round(on * MS),
                "tid": tid,
                "tgid": self.tgid,
                "syscall_nr": -1,
                **fields,
            }
        )
        self._on[tid] = round(on * MS)

    def lose_cycle(self, tid: int, on: float) -> None:
        """A record that never came: the next turn begins at ``on``."""
        self._on[tid] = round(on * MS)

    def falls_silent(self, tid: int) -> None:
        """No further record, open turn or exit of the thread: all that came later was lost."""
        self._mute.add(tid)

    def slice(
        self, cpu: int, start: float, end: float, tgid: int, comm: str, cgroup_id: int = 0, kthread: bool = False
    ) -> None:
        runner = np.zeros((), TABLES["slices"]["runner"])
        runner["tid"], runner["tgid"], runner["comm"], runner["cgroup_id"] = tgid, tgid, comm.encode(), cgroup_id
        runner["flags"] = RunnerFlags.KTHREAD if kthread else 0
        self._rows["slices"].append(
            {"cpu": cpu, "start_mono_ns": round(start * MS), "end_mono_ns": round(end * MS), "runner": runner}
        )

    def open(self, tid: int, off: float, ready: float = 0, syscall: str = "futex") -> None:
        """The thread's turn is not over: off the CPU since ``off``."""
        self._rows["open_threads"].append(
            {
                "tid": tid,
                "tgid": self.tgid,
                "taken_mono_ns": LOOK,
                "run_mono_ns": self._on.get(tid, 0),
                "off_mono_ns": round(off * MS),
                "ready_mono_ns": round(ready * MS),
                "mode": ThreadMode.RUNNABLE if ready else ThreadMode.BLOCKED,
                "syscall_nr": SYSCALLS.index(syscall),
            }
        )

    def runs(self, tid: int) -> None:
        """A thread that is on a CPU all the time."""
        self._rows["open_threads"].append(
            {
                "tid": tid,
                "tgid": self.tgid,
                "taken_mono_ns": LOOK,
                "run_mono_ns": self._on.get(tid, 0),
                "mode": ThreadMode.RUNNING,
            }
        )

    def socket(
        self, inode: int, start: float, end: float, tid: int, op: SocketOp = SocketOp.RECEIVE, **fields: object
    ) -> None:
        """What a TCP socket waited for between two operations; fields that end in ``_at`` are milliseconds."""
        for name in [name for name in fields if name.endswith("_at")]:
            fields[f"{name.removesuffix('_at')}_mono_ns"] = round(float(str(fields.pop(name))) * MS)
        remote = ipaddress.IPv6Address("::ffff:10.0.0.7").packed
        self._rows["sockets"].append(
            {
                "socket": inode,
                "from_mono_ns": round(start * MS),
                "to_mono_ns": round(end * MS),
                "tid": tid,
                "tgid": self.tgid,
                "op": op,
                "remote": remote,
                "remote_port": 8080,
                **fields,
            }
        )

    def block_request(
        self, start: float, end: float, tid: int, tgid: int, comm: str, dev: int = 7, kthread: bool = False
    ) -> None:
        """In flight from ``start`` to ``end``."""
        self._rows["blocks"].append(
            {
                "queued_mono_ns": round(start * MS),
                "issued_mono_ns": round(start * MS),
                "completed_mono_ns": round(end * MS),
                "tid": tid,
                "tgid": tgid,
                "comm": comm.encode(),
                "dev": dev,
                "kthread": kthread,
            }
        )

    def incident(self, at: float, kind: IncidentKind, actor: int, target: int, signal: int = 0) -> None:
        self._rows["incidents"].append(
            {
                "mono_ns": round(at * MS),
                "kind": kind,
                "signal": signal,
                "actor_tgid": actor,
                "actor_comm": f"p{actor}".encode(),
                "target_tgid": target,
                "target_comm": f"p{target}".encode(),
            }
        )

    def pause(self, start: float, end: float, tid: int, generation: int = 2) -> None:
        self._rows["pauses"].append(
            {
                "start_mono_ns": round(start * MS),
                "end_mono_ns": round(end * MS),
                "tid": tid,
                "tgid": self.tgid,
                "generation": generation,
            }
        )

    def sample(self, start: float, end: float, cpu: int, busy: float, steal: float) -> None:
        self._rows["samples"].append(
            {
                "start_mono_ns": round(start * MS),
                "end_mono_ns": round(end * MS),
                "cpu": cpu,
                "busy_ns": round(busy * MS),
                "steal_ns": round(steal * MS),
            }
        )

    def gpu_call(self, kind: GpuCallKind, start: float, end: float, tid: int, **fields: object) -> None:
        """``launch_at``: ms of the first launch since the thread's last call."""
        if "launch_at" in fields:
            fields["launch_mono_ns"] = round(float(str(fields.pop("launch_at"))) * MS)
            fields.setdefault("launches", 1)
        self._rows["gpu_calls"].append(
            {
                "kind": kind,
                "enter_mono_ns": round(start * MS),
                "exit_mono_ns": round(end * MS),
                "tid": tid,
                "tgid": self.tgid,
                **fields,
            }
        )

    def gpu_sample(self, start: float, end: float, gpu: int = 0, **fields: object) -> None:
        """Columns of GPU_SAMPLE; those not told are absent. A GPU that the meta does not have yet is made."""
        self._gpu(gpu)
        absent = dict.fromkeys(TABLES["gpu_samples"].names or (), ABSENT)
        if "sm_mhz" in fields:
            fields.setdefault("sm_before_mhz", fields["sm_mhz"])
        self._rows["gpu_samples"].append(
            absent | {"start_mono_ns": round(start * MS), "end_mono_ns": round(end * MS), "gpu": gpu, **fields}
        )

    def gpu_process(
        self, start: float, end: float, tgid: int, comm: str, gpu: int = 0, sm: int = ABSENT, memory: int = ABSENT
    ) -> None:
        self._gpu(gpu)
        self._rows["gpu_processes"].append(
            {
                "start_mono_ns": round(start * MS),
                "end_mono_ns": round(end * MS),
                "gpu": gpu,
                "tgid": tgid,
                "comm": comm.encode(),
                "sm_percent": sm,
                "memory_bytes": memory,
            }
        )

    def gpu_event(self, at: float, kind: GpuEventKind, code: int = 0, gpu: int = 0) -> None:
        self._gpu(gpu)
        self._rows["gpu_events"].append({"mono_ns": round(at * MS), "gpu": gpu, "kind": kind, "code": code})

    def _gpu(self, gpu: int) -> None:
        for index in range(len(self.meta.gpus), gpu + 1):
            self.meta.gpus.append({"uuid": f"GPU-{index}", "name": "Test GPU", "index": str(index)})

    def loss(self, start: float, end: float, count: int) -> None:
        self._rows["losses"].append(
            {"start_mono_ns": round(start * MS), "end_mono_ns": round(end * MS), "count": count}
        )

    def evidence(self, like: LikeRow | None = None) -> Evidence:
        told = {row["tid"] for row in self._rows["open_threads"]}
        for tid in self._on.keys() - told - self._mute:
            self.runs(tid)
        tables = {name: _table(name, self._rows[name]) for name in TABLES}
        tables["cycles"] = tables["cycles"][np.lexsort((tables["cycles"]["run_mono_ns"], tables["cycles"]["tid"]))]
        order = np.lexsort((tables["slices"]["start_mono_ns"], tables["slices"]["cpu"]))
        tables["slices"] = tables["slices"][order]
        tids = sorted({int(r["tid"]) for name in ("cycles", "open_threads") for r in tables[name]})
        named = {int(tid) for name in ("requests", "spans", "activations") for tid in tables[name]["tid"]}
        tables["threads"] = _table("threads", [self._thread(tid, tid in named) for tid in tids])
        likes = [like or LikeRow(0, 0, 0, 0, [0] * N_CAUSES)] * len(tables["requests"])
        return Evidence(**tables, strings=self._strings, likes=likes, meta=self.meta)

    def _thread(self, tid: int, named: bool) -> dict[str, object]:
        return {
            "tid": tid,
            "tgid": self.tgid,
            "ns_tid": tid,
            "gone_mono_ns": FOREVER,
            "named": named,
            "comm": f"t{tid}".encode(),
        }

    def _activation(
        self, kind: ActivationKind, owner: int, start: float, end: float, tid: int, **fields: object
    ) -> None:
        self._rows["activations"].append(
            {
                "kind": kind,
                "owner": owner,
                "start_mono_ns": round(start * MS),
                "end_mono_ns": round(end * MS),
                "tid": tid,
                "tgid": self.tgid,
                **fields,
            }
        )

    def _string(self, text: str) -> int:
        if text not in self._strings:
            self._strings.append(text)
        return self._strings.index(text)


def _table(name: str, rows: list[dict[str, object]]) -> np.ndarray:
    table = np.zeros(len(rows), TABLES[name])
    for index, row in enumerate(rows):
        for field, value in row.items():
            table[field][index] = value
    return table
