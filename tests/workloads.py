"""Stoppable workloads with known answers. Each is a process of ours, ended by pid when its context closes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

LAST_CPU = max(os.sched_getaffinity(0))
#: What /proc/stat counts in.
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

#: A program: a worker that connects to the socket of its argument, and at another ``go()`` serves 23 requests that
#: sleep for 3 ms each. Prints how many messages its client has dropped.
SLEEPY_WORKER = """
import tailspan.client
client = tailspan.client.connect("worker", path=sys.argv[1])
sys.stdin.readline()
for number in range(23):
    with client.request("infer", request_id=f"r{number}"):
        time.sleep(0.003)
print(client.dropped, flush=True)
"""


def stolen_ns() -> int:
    """What the hypervisor has taken from all CPUs of this machine since it booted, by the kernel's count."""
    all_cpus = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(all_cpus[8]) * TICK_NS


class Program:
    """A Python program that waits for ``go()`` before it does anything, so that it can be followed first."""

    def __init__(
        self, body: str, *arguments: object, cpu: int | None = None, prefix: tuple[str, ...] = ()
    ) -> None:
        pin = f"os.sched_setaffinity(0, {{{cpu}}})" if cpu is not None else ""
        source = f"import os, sys, threading, time\n{pin}\nprint(os.getpid(), flush=True)\nsys.stdin.readline()\n"
        command = [*prefix, sys.executable, "-c", source + textwrap.dedent(body), *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self._stdout = self.process.stdout
        self.pid_inside = int(self._stdout.readline())
        self.pid = self.process.pid if not prefix else _child_running(self.process.pid)

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def line(self) -> str:
        """The next line it prints; "" at its end."""
        return self._stdout.readline().strip()

    def finish(self) -> list[str]:
        """Wait for its end; what else it printed."""
        lines = self._stdout.read().split("\n")
        assert self.process.wait(timeout=60) == 0
        return [line for line in lines if line]


def _child_running(pid: int) -> int:
    """The one descendant at the end of the chain of prefix commands, by the host's pid."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


@contextlib.contextmanager
def program(
    body: str, *arguments: object, cpu: int | None = None, prefix: tuple[str, ...] = ()
) -> Iterator[Program]:
    running = Program(body, *arguments, cpu=cpu, prefix=prefix)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGKILL)
            running.process.kill()
        running.process.wait()
        for stream in (running.process.stdin, running.process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def cpu_hog(cpu: int, cgroup: Path | None = None) -> Iterator[int]:
    """A process that never leaves ``cpu`` on its own; gives its pid."""
    with program("while True: pass", cpu=cpu) as hog:
        if cgroup:
            (cgroup / "cgroup.procs").write_text(str(hog.pid))
        hog.go()
        yield hog.pid


@contextlib.contextmanager
def cpu_cgroup(name: str) -> Iterator[Path]:
    """A cgroup of the cpu controller, v1 or v2, removed at the end."""
    for root in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")):
        if (root / "cgroup.procs").exists():
            break
    group = root / f"{name}-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (root / "cgroup.procs").write_text(pid)
        group.rmdir()
