"""Our figures against the kernel's own: run-queue time (schedstat, over SECONDS), quota (cpu.stat)."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import numpy as np
import pytest

from tailspan.collect.bpf import btf
from tailspan.collect.bpf.source import BpfSource
from tests.kernel.conftest import Recorder
from tests.workloads import LAST_CPU, cpu_cgroup, cpu_hog, program

pytestmark = pytest.mark.kernel

SECONDS = float(os.environ.get("TAILSPAN_SCHEDSTAT_S", "24"))
#: They are compared piece by piece: one in which the hypervisor takes a CPU, or a wait ends between our
#: reading and the kernel's, says nothing of the others.
PIECES = 12

#: Tries to read both while no wait ends. Among many short waits one always may.
READINGS = 7

#: Threads that sleep, work a little, and hand each other a byte: many short waits.
MIXED = """
def nap(ms):
    while True:
        time.sleep(ms / 1000)
        until = time.monotonic() + ms / 4000
        while time.monotonic() < until: pass
for ms in (1, 2, 3, 5): threading.Thread(target=nap, args=(ms,), daemon=True).start()
time.sleep(1000)
"""


def run_delays(pid: int) -> dict[int, tuple[int, int]]:
    """tid -> (ns waited for a CPU, times it got one), by the kernel's account."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        _, delay_ns, count = (task / "schedstat").read_text().split()
        found[int(task.name)] = (int(delay_ns), int(count))
    return found


def readings_of(source: BpfSource, tids: dict[int, int]) -> dict[int, tuple[int, int, int]]:
    """tid -> (ns waited and waits by our count, ns waited by the kernel's). ``tids``: with their processes."""
    ours, kernels = {}, {}
    for pid in set(tids.values()):
        for _ in range(READINGS):
            before, of_kernel = totals(source, pid), run_delays(pid)
            if totals(source, pid) == before:
                break
        ours |= before
        kernels |= of_kernel
    return {tid: (*ours[tid], kernels[tid][0]) for tid in tids}


def totals(source: BpfSource, pid: int) -> dict[int, tuple[int, int]]:
    """tid -> (ns waited, waits), by ours."""
    states = source.threads()
    return {
        int(row["tid"]): (int(row["total_runq_ns"]), int(row["total_waits"]))
        for row in states[states["tgid"] == pid]
    }


@pytest.mark.timeout(180)
def test_run_queue_time_is_the_kernels_own(source: BpfSource) -> None:
    # GIVEN a thread that shares its CPU with two hogs, and a process of threads with many short waits
    with (
        cpu_hog(LAST_CPU),
        cpu_hog(LAST_CPU),
        program("while True: pass", cpu=LAST_CPU) as bound,
        program(MIXED) as mixed,
    ):
        bound.go()
        mixed.go()
        pids = (bound.pid, mixed.pid)
        source.follow(list(pids))
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and len(totals(source, mixed.pid)) < 5:
            source.drain()
        tids = dict.fromkeys(totals(source, bound.pid), bound.pid)
        tids |= dict.fromkeys(totals(source, mixed.pid), mixed.pid)

        # WHEN these seconds have passed
        readings = [readings_of(source, tids)]
        for _ in range(PIECES):
            until = time.monotonic() + SECONDS / PIECES
            while time.monotonic() < until:
                source.drain()
                time.sleep(0.015)
            readings.append(readings_of(source, tids))

    # THEN every thread's time is the kernel's; its own clock is the less exact one for waits of microseconds
    assert len(tids) == 1 + 5
    lines, right = [], dict.fromkeys(tids, 0)
    for before, after in itertools.pairwise(readings):
        for tid, pid in tids.items():
            ours, waits, kernels = (int(now - then) for then, now in zip(before[tid], after[tid], strict=True))
            lines.append(f"tid {tid}: ours {ours / 1e6:.3f} ms, schedstat {kernels / 1e6:.3f} ms, {waits} waits")
            allowed = 0.005 * kernels if pid == bound.pid else 0.01 * kernels + 8_000 * waits
            right[tid] += abs(ours - kernels) <= allowed + 4_000
    print("\n".join(lines))
    assert all(pieces >= 0.75 * PIECES for pieces in right.values()), right


#: One thread a CPU: cpu.stat counts each CPU's run queue once, however many threads it holds.
BUSY = """
import hashlib
def busy(cpu):
    os.sched_setaffinity(0, {cpu})
    until = time.monotonic() + 3
    while time.monotonic() < until: hashlib.pbkdf2_hmac("sha256", b"x", b"y", 20000)
threads = [threading.Thread(target=busy, args=(cpu,)) for cpu in os.sched_getaffinity(0)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.mark.parametrize("neighbour", [False, True])
def test_throttled_time_is_cpu_stats_even_beside_a_neighbour(
    source: BpfSource, recorder: Recorder, neighbour: bool
) -> None:
    spin = "while True: pass"
    with cpu_cgroup("throttled") as group, program(BUSY) as busy, program(spin, cpu=LAST_CPU) as hog:
        quota = group / "cpu.cfs_quota_us"
        if quota.exists():
            quota.write_text("40000")
        else:
            (group / "cpu.max").write_text("40000 100000")
        (group / "cgroup.procs").write_text(str(busy.pid))
        source.follow([busy.pid])
        if neighbour:
            hog.go()
        busy.go()
        while busy.process.poll() is None:
            recorder.drain()
            time.sleep(0.02)
        recorder.drain()
        stat = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())

    kernel_ms = (
        int(stat["throttled_time"]) / 1e6 if "throttled_time" in stat else int(stat["throttled_usec"]) / 1e3
    )
    cycles = recorder.table("cycles")
    cycles = cycles[cycles["tgid"] == busy.pid]
    ours_ms = float(cycles["throttled_ns"].sum()) / 1e6
    print(f"throttled {ours_ms:.1f} ms, cpu.stat {kernel_ms:.1f} ms ({ours_ms / kernel_ms - 1:+.2%})")
    assert kernel_ms > 500
    # Before 6.6 there is no clock of it per queue: what a thread waits for its CPU after the quota counts as well.
    has_clock = bool(btf.kernel_has(["throttled_clock_self_time"]))
    assert -0.05 < ours_ms / kernel_ms - 1 < (0.05 if has_clock else 0.15)
    waited = cycles["on_mono_ns"] - cycles["ready_mono_ns"]
    assert np.all(cycles["throttled_ns"] <= waited)
