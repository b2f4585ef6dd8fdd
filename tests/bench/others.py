"""Other people's tools that look at every context switch, as their distribution packages them.

Each runs as its user would run it, for the whole host, and is read or timed only once its programs run. What this
machine lacks is made up for as far as that leaves the programs the same:

* no tracefs where the tools look for it: it is mounted for them, in a mount namespace of their own
* no kernel headers: bcc compiles on a stub made from BTF; bpftrace's script is run without its ``#include`` and
  with the number of the one macro that it takes from there
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tailspan.collect.bpf import headers
from tailspan.errors import CannotError
from tests.bench.measured import RunTimes, bpf_stats, run_times_of


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    package: str  #: Debian's
    program: str
    script: str = ""  #: what the program interprets
    busy: int = 2  #: how many BPF programs of it run all the time: those of switches, and of wake-ups
    kprobes: bool = False
    bcc: bool = False  #: it compiles on kernel headers


TOOLS = (
    Tool("bpftrace runqlat", "bpftrace", "bpftrace", "runqlat.bt"),
    Tool("bcc runqlat", "bpfcc-tools", "runqlat-bpfcc", bcc=True),
    Tool("bcc cpudist", "bpfcc-tools", "cpudist-bpfcc", busy=1, kprobes=True, bcc=True),
)

#: Where scripts and programs are that PATH may not name.
_FOLDERS = ("/usr/sbin", "/usr/share/bpftrace/tools", "/usr/share/bcc/tools")
_KPROBES = Path("/sys/bus/event_source/devices/kprobe")
_MOUNT = """\
test -e /sys/kernel/debug/tracing/events || mount -t debugfs none /sys/kernel/debug
test -e /sys/kernel/tracing/events || mount -t tracefs none /sys/kernel/tracing
exec "$@"
"""
#: What bcc's tools include beyond what bcc itself does. In a stub all types are there already, but macros are not.
_INCLUDED = ("linux/init_task.h", "linux/nsproxy.h", "linux/pid_namespace.h")
_MACROS = """\
#define TASK_RUNNING 0
#define TASK_INTERRUPTIBLE 1
#define TASK_UNINTERRUPTIBLE 2
"""
_DEADLINE_S = 60.0
_LOOK_S = 0.02


def why_not(tool: Tool) -> str:
    """Why this machine cannot run it, in one line; "" if nothing speaks against it."""
    if not _found(tool.program) or (tool.script and not _found(tool.script)):
        return f"not installed: apt-get install --no-install-recommends {tool.package}"
    if tool.kprobes and not _KPROBES.exists():
        return "it needs kprobes, which this kernel lacks"
    return ""


@contextlib.contextmanager
def running(tool: Tool, folder: Path) -> Iterator[Callable[[], RunTimes]]:
    """Attached to the whole host while this is open; gives what reads its programs' run times.

    ``folder`` keeps what it is compiled on. Raises :class:`CannotError` with what it said if it does not run.
    """
    log = folder / "tool.log"
    command = ["unshare", "--mount", "sh", "-c", _MOUNT, "sh", *_command(tool, folder)]
    environ = os.environ | ({"BCC_KERNEL_SOURCE": str(_headers(folder))} if tool.bcc else {})
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environ) as process,
    ):
        try:
            _wait_until_it_runs(tool, process, log)
            yield lambda: run_times_of(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_it_runs(tool: Tool, process: subprocess.Popen[bytes], log: Path) -> None:
    """By its programs' own counts: what a tool prints may come before it is attached."""
    deadline = time.monotonic() + _DEADLINE_S
    with bpf_stats():
        while sum(runs > 0 for _, runs in run_times_of(process.pid).values()) < tool.busy:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines()
                raise CannotError(f"{tool.name} does not run here: {said[-1] if said else 'it says nothing'}")
            time.sleep(_LOOK_S)


def _command(tool: Tool, folder: Path) -> list[str]:
    program = _found(tool.program)
    if not tool.script:
        return [program]
    text = Path(_found(tool.script)).read_text()
    script = folder / tool.script
    script.write_text(re.sub(r"\bTASK_RUNNING\b", "0", re.sub(r"^#include .*$", "", text, flags=re.M)))
    return [program, str(script)]


def _headers(folder: Path) -> Path:
    found = headers.find(folder)
    if found.kind == "btf":
        for name in _INCLUDED:
            (found.path / "include" / name).touch()
        (found.path / "include/linux/sched.h").write_text(_MACROS)
    return found.path


def _found(name: str) -> str:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_FOLDERS))
    mode = os.F_OK if name.endswith(".bt") else os.F_OK | os.X_OK
    return shutil.which(name, mode, path) or ""
