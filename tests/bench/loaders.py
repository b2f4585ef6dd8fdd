"""The two loaders: how long each takes to be attached and what it holds then, and what its programs cost.

Compared with each other: fresh processes that do nothing but open a source, interleaved. ``bcc, first`` finds
nothing that was compiled before and makes its headers too; the compiler is a process of its own, whose peak is
told apart. Then the kernel's own measure (``kernel.bpf_stats_enabled``) of the programs of a context switch, under
a storm that writes a record every time.

Noise: 10 to 30 % between processes; 5 % for a program.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tailspan.collect.bpf.programs import Options
from tailspan.collect.bpf.source import BpfSource
from tests.bench.measured import bpf_stats, programs
from tests.bench.page import number, span, table
from tests.bench.spread import Figures, spread, turns
from tests.bench.storm import Storm, build, storm

#: Runs in the process that is measured; prints when it was attached, and what it and the compiler took.
_CHILD = """
import json, resource, sys, time
from tailspan.collect.bpf.programs import Options
from tailspan.collect.bpf.source import BpfSource
source = BpfSource(Options(loader=sys.argv[1]))
attached = time.monotonic_ns()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "attached": attached,
    "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
    "compiler_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
}))
source.close()
"""

CORE, AGAIN, FIRST = "core", "bcc", "bcc, first"
PROGRAMS = ("on_switch", "on_waking", "on_wakeup")


def run(quick: bool) -> Figures:
    return measure(processes=2, seconds=0.4) if quick else measure(processes=7, seconds=1.5)


def measure(processes: int, seconds: float) -> Figures:
    readings: dict[str, list[Figures]] = {kind: [] for kind in (CORE, AGAIN, FIRST)}
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, "kept")
        _start(AGAIN, kept)
        for kinds in turns((CORE, AGAIN, FIRST), processes):
            for kind in kinds:
                with tempfile.TemporaryDirectory() as empty:
                    readings[kind].append(_start(kind, Path(empty) if kind == FIRST else kept))
        pairs = len(os.sched_getaffinity(0))
        with storm(build(Path(folder)), pairs, 0) as one, bpf_stats():
            ns = {loader: _programs(loader, one, seconds, kept) for loader in (CORE, AGAIN)}
    return {
        "processes": processes,
        "starts": {
            kind: {name: spread([reading[name] for reading in of]) for name in of[0]}
            for kind, of in readings.items()
        },
        "programs": ns,
    }


def _start(kind: str, cache: Path) -> Figures:
    environ = os.environ | {"CACHE_DIRECTORY": str(cache)}
    command = [sys.executable, "-c", _CHILD, "core" if kind == CORE else "bcc"]
    spawned = time.monotonic_ns()
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    reading: Figures = json.loads(done.stdout)
    return reading | {"attached": (reading["attached"] - spawned) / 1e6}


def _programs(loader: str, one: Storm, seconds: float, cache: Path) -> Figures:
    """ns a run of each program that runs in every switch."""
    os.environ["CACHE_DIRECTORY"] = str(cache)
    options = Options(loader=loader, short_wait_ns=0, cycle_ring_bytes=16 << 20)  # type: ignore[arg-type]
    with contextlib.closing(BpfSource(options)) as source:
        source.follow([one.pid])
        before = source.run_times()
        segment = one.run(seconds, source.drain)
        found = programs(before, source.run_times(), 2 * segment.count)
    return {name: found[name]["ns"] for name in PROGRAMS}


def render(figures: Figures) -> str:
    starts = figures["starts"]
    rows = [
        [
            kind,
            span(starts[kind]["attached"]),
            number(starts[kind]["rss_mib"]["median"]),
            number(starts[kind]["compiler_mib"]["median"]) if kind == FIRST else "none",
        ]
        for kind in starts
    ]
    costs = [
        [f"`{name}`", *(number(figures["programs"][loader][name]) for loader in (CORE, AGAIN))]
        for name in PROGRAMS
    ]
    return f"""## The two loaders

{figures["processes"]} processes of each kind in turn, which do nothing but attach every default probe.

{table(["loader", "process start to attached, ms", "resident, MiB", "peak of the compiler, MiB"], rows)}

What bcc has compiled is kept, so only the first start on a kernel compiles.

A context switch of a followed thread, a record each time, in ns a run as the kernel measures it:

{table(["program", "core", "bcc"], costs)}

Where core reads a field of the kernel's in one instruction, bcc calls a helper; and it finds a thread in a hash
table, where core finds it in the task."""
