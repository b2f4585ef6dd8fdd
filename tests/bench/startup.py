"""How long the agent takes to be ready, what for, and what it holds then: fresh processes, one after the other.

Compared with nothing; every phase is a difference of stamps of CLOCK_MONOTONIC, the first one taken by the
parent just before it starts the process. Byte code is compiled beforehand, as in an installed package, and all
files are in the page cache: after a boot the disk comes on top. What it takes later, left alone, is in
:mod:`tests.bench.rates`.

Noise: 10 to 30 % between processes, nearly all of it in the imports; the highest of seven is often an accident.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.page import span, table
from tests.bench.spread import Figures, spread

#: Runs in the process that is measured: the daemon itself, for no time.
_CHILD = """
import json, sys, time
stamps = {"interpreter": time.monotonic_ns()}
from tailspan import config, daemon
from tailspan.collect.bpf.programs import Programs

loaded = config.load(flags=json.loads(sys.argv[1]))
stamps["first"] = time.monotonic_ns()

def stamped(method, before="", after=""):
    inner = getattr(Programs, method)
    def outer(*arguments):
        if before: stamps.setdefault(before, time.monotonic_ns())
        found = inner(*arguments)
        if after: stamps[after] = time.monotonic_ns()
        return found
    setattr(Programs, method, outer)

def begin_to_attach():
    inner = Programs.of
    def outer(*arguments):
        if "load" in stamps: stamps.setdefault("rings", time.monotonic_ns())
        return inner(*arguments)
    Programs.of = outer

stamped("__init__", after="prepared")
stamped("loaded", before="imports", after="load")
begin_to_attach()
stamped("require", after="attach")

def ready(state):
    if "READY" in state:
        stamps["outlets"] = time.monotonic_ns()
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        print(json.dumps({
            "stamps": stamps,
            "rss_kib": int(status["VmRSS"].split()[0]),
            "peak_kib": int(status["VmHWM"].split()[0]),
        }), flush=True)

daemon.service.notify = ready
daemon.run(loaded, seconds=0)
"""

PHASES = {
    "interpreter": "the interpreter starts",
    "first": "imports numpy, and what loads programs",
    "prepared": "reads the kernel's types, opens the programs",
    "imports": "imports the rest, while the kernel verifies the programs",
    "load": "waits for that",
    "rings": "makes the rings and puts them into their maps",
    "attach": "attaches",
    "outlets": "opens sockets, store and metrics: ready",
}


def run(quick: bool) -> Figures:
    return measure(processes=3 if quick else 7)


def measure(processes: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        _start(Path(folder))  # compiles the byte code
        readings = [_start(Path(folder)) for _ in range(processes)]
    ms: dict[str, list[float]] = {phase: [] for phase in (*PHASES, "attached", "ready")}
    for reading in readings:
        at = [reading["spawned"], *(reading["stamps"][phase] for phase in PHASES)]
        for phase, (earlier, later) in zip(PHASES, itertools.pairwise(at), strict=True):
            ms[phase].append((later - earlier) / 1e6)
        ms["attached"].append((reading["stamps"]["attach"] - reading["spawned"]) / 1e6)
        ms["ready"].append((at[-1] - at[0]) / 1e6)
    return {
        "processes": processes,
        "ms": {phase: spread(values) for phase, values in ms.items()},
        "rss_mib": spread([reading["rss_kib"] / 1024 for reading in readings]),
        "peak_rss_mib": spread([reading["peak_kib"] / 1024 for reading in readings]),
    }


def _start(folder: Path) -> Figures:
    flags = {
        "worker.socket": str(folder / "worker.sock"),
        "agent.control": str(folder / "control.sock"),
        "store.path": str(folder / "store"),
        "export.prometheus": "127.0.0.1:0",
    }
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    command = [sys.executable, "-c", _CHILD, json.dumps(flags)]
    spawned = time.monotonic_ns()
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    reading: Figures = json.loads(done.stdout)
    return reading | {"spawned": spawned}


def render(figures: Figures) -> str:
    ms = figures["ms"]
    rows = [[words, span(ms[phase])] for phase, words in PHASES.items()]
    rows += [
        ["**process start to attached**", f"**{span(ms['attached'])}**"],
        ["process start to ready", span(ms["ready"])],
    ]
    memory = [
        ["resident once ready", span(figures["rss_mib"])],
        ["peak until then", span(figures["peak_rss_mib"])],
    ]
    return f"""## Starting

{figures["processes"]} processes one after the other, files in the page cache, byte code compiled.

{table(["phase", "ms"], rows)}

{table(["memory", "MiB"], memory)}

What bounds it: importing, and what the kernel does meanwhile on another CPU: to verify the programs.
Each kind of ring waits for an RCU grace period, all of them at once. Rings count as resident once
records were written to them, twice, because each is mapped twice in a row."""
