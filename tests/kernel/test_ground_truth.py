"""Our run-queue time against the kernel's own, /proc/PID/task/TID/schedstat, over a minute of load."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tailspan.collect.bpf.source import BpfSource
from tests.workloads import LAST_CPU, cpu_hog, program

pytestmark = pytest.mark.kernel

SECONDS = 60

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
        before = {pid: (totals(source, pid), run_delays(pid)) for pid in pids}

        # WHEN a minute has passed
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            source.drain()
            time.sleep(0.015)

        after = {pid: (totals(source, pid), run_delays(pid)) for pid in pids}

    # THEN every thread's time is the kernel's; its own clock is the less exact one for waits of microseconds
    lines = []
    for pid in pids:
        for tid, (ours_then, _) in before[pid][0].items():
            ours, waits = after[pid][0][tid][0] - ours_then, after[pid][0][tid][1] - before[pid][0][tid][1]
            kernels = after[pid][1][tid][0] - before[pid][1][tid][0]
            lines.append(f"tid {tid}: ours {ours / 1e6:.3f} ms, schedstat {kernels / 1e6:.3f} ms, {waits} waits")
            allowed = 0.005 * kernels if pid == bound.pid else 0.01 * kernels + 4_000 * waits
            assert abs(ours - kernels) <= allowed + 4_000, "\n".join(lines)
    print("\n".join(lines))
    assert len(lines) == 1 + 5
