"""What the kernel measures of each BPF program (``kernel.bpf_stats_enabled``), and a program that does nothing.

The measure includes the measuring, and the few ns for being called: up to 50 ns a run, by machine. An empty
program reads just that, so it is read in the same round and subtracted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tailspan.collect.bpf import libbpf
from tests.bench.spread import Figures

#: Program -> (ns spent, runs) since it was loaded.
RunTimes = dict[str, tuple[int, int]]

STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
EMPTY = "empty"
#: ``r0 = 0; exit``
_INSTRUCTIONS = bytes.fromhex("b7000000000000009500000000000000")


@contextlib.contextmanager
def bpf_stats() -> Iterator[None]:
    """The kernel measures every BPF program meanwhile; afterwards it is as it was."""
    before = STATS.read_text()
    STATS.write_text("1")
    try:
        yield
    finally:
        STATS.write_text(before)


@contextlib.contextmanager
def empty_program(event: str = "sched_switch") -> Iterator[Callable[[], RunTimes]]:
    """One is attached to this raw tracepoint while this is open; gives what reads its run time."""
    fd = libbpf.load_program(EMPTY, libbpf.PROGRAM_RAW_TRACEPOINT, _INSTRUCTIONS)
    try:
        with contextlib.closing(libbpf.Tracepoint(event, fd)):
            yield lambda: {EMPTY: _run_time(Path(f"/proc/self/fdinfo/{fd}").read_text()) or (0, 0)}
    finally:
        os.close(fd)


def run_times_of(pid: int) -> RunTimes:
    """Every BPF program that this process has open, by its number; what it closes meanwhile is left out."""
    found = {}
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(OSError):
                text = file.read_text()
                if run_time := _run_time(text):
                    found[_fields(text)["prog_id"]] = run_time
    return found


def programs(before: RunTimes, after: RunTimes, events: int) -> dict[str, Figures]:
    """ns a run, and runs per event of the workload, of each program that ran between two readings."""
    found = {}
    for program, (ns, runs) in after.items():
        earlier_ns, earlier_runs = before.get(program, (0, 0))
        if runs > earlier_runs:
            runs -= earlier_runs
            found[program] = {"ns": (ns - earlier_ns) / runs, "runs_per_event": runs / events}
    return found


def _run_time(text: str) -> tuple[int, int] | None:
    """Of what ``/proc/PID/fdinfo`` says of a program; None if it is something else."""
    fields = _fields(text)
    return (int(fields["run_time_ns"]), int(fields["run_cnt"])) if "run_cnt" in fields else None


def _fields(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
