"""All that a fault needs: an agent with limits, a worker under load, a backend, a clock, room for strangers."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tailspan
from tailspan.errors import CannotError
from tests.chaos.agent import AS_NOBODY, AS_ROOT, NOBODY, Agent, can_be_nobodys
from tests.chaos.backend import Backend
from tests.chaos.cgroups import Cgroups
from tests.workloads import Program, program

STORE_MIB = 48
RATE_PER_S = 25.0

_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 1 << 18
_SETTINGS = {
    "otlp.grpc": "",
    "export.spool_mib": "8",
    "store.segment_mib": "2",
    "store.total_mib": "24",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One request of the load. ``status`` 0: no answer."""

    due_mono_ns: int
    latency_ms: float
    status: int


class Load:
    """The load's process. Asks until it is paused."""

    def __init__(self, port: int, rate: float, rows: Path) -> None:
        rows.touch()
        command = [sys.executable, "-m", "tests.chaos.load", "--port", str(port), "--rate", str(rate)]
        self.process = _spoken_to([*command, "--rows", str(rows)])
        self._rows = rows.open()

    def pause(self) -> int:
        """How many it has made, all of them answered."""
        return int(_said(self.process, "pause"))

    def go(self) -> None:
        _say(self.process, "go")

    def rows(self) -> list[Row]:
        """Those that ended since the last call."""
        found = []
        while line := self._rows.readline():
            due, latency, status = line.split()
            found.append(Row(int(due), float(latency), int(status)))
        return found


class Worker:
    """The reference worker's process."""

    def __init__(self, folder: Path, agent: Path) -> None:
        command = [sys.executable, "-m", "tests.chaos.worker", "--folder", str(folder), "--socket", str(agent)]
        self.process = _spoken_to(command)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise CannotError("the worker did not start")
        self.port = int(line)

    def told(self) -> dict[str, float]:
        """What its client has done since it began; ``longest_call_ms`` since it was asked before."""
        answer: dict[str, float] = json.loads(_said(self.process, "?"))
        return answer


class Clock:
    """The agent's wall clock."""

    def __init__(self, folder: Path) -> None:
        self._shim, self._file = folder / "clock.so", folder / "clock"
        source = Path(__file__).with_name("clock.c")
        built = subprocess.run(
            ["cc", "-O2", "-shared", "-fPIC", "-o", self._shim, source, "-ldl"], capture_output=True, text=True
        )
        if built.returncode:
            raise CannotError(f"cannot build {source.name}: {built.stderr}")
        self._file.write_bytes(bytes(mmap.PAGESIZE))
        self._file.chmod(0o644)

    @property
    def environ(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._shim), "TAILSPAN_CLOCK_OFFSET": str(self._file)}

    def is_of(self, pid: int) -> bool:
        return str(self._shim) in Path(f"/proc/{pid}/maps").read_text()

    def set(self, offset_s: float) -> None:
        """So far from the machine's own."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("<q", int(offset_s * 1e9)))


class Scene:
    """Made by :func:`scene`. ``owed``: requests that the kernel took from strangers, by their name.
    ``done``: what else they did, by what it is."""

    def __init__(self, folder: Path, cgroups: Cgroups, stack: contextlib.ExitStack, keep: str) -> None:
        self.folder, self.cgroups, self.keep = folder, cgroups, keep
        self.store, self.socket = folder / "store", folder / "worker.sock"
        self.control, self.config = folder / "control.sock", folder / "tailspan.toml"
        self.store.mkdir()
        _mount_tmpfs(self.store, STORE_MIB)
        stack.callback(lambda: subprocess.run(["umount", "--lazy", self.store], check=True))
        self.owed: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.ended: list[int] = []  # exit statuses of agents that ended by themselves
        self.lives = 0
        self._stack = stack
        self._prefix = AS_NOBODY if can_be_nobodys() else AS_ROOT
        self.user = "nobody" if self._prefix is AS_NOBODY else "root"
        self.port, self.otlp_port = _free_port(), _free_port()
        self.clock = Clock(folder)
        self.backend = Backend()
        stack.callback(self.backend.close)
        self._listener = stack.enter_context(_listening(self.socket))
        if self._prefix is AS_NOBODY:
            for path in (folder, self.store):
                os.chown(path, NOBODY, NOBODY)
        self.configure("")
        self.start_agent()
        stack.callback(lambda: self.agent.kill())
        self.worker = Worker(folder, self.socket)
        stack.callback(_end, self.worker.process)
        cgroups.join("worker", self.worker.process.pid)
        self.load = Load(self.worker.port, RATE_PER_S, folder / "rows")
        stack.callback(_end, self.load.process)
        cgroups.join("load", self.load.process.pid)

    def start_agent(self) -> None:
        self.lives += 1
        settings = _SETTINGS | {
            "worker.socket": str(self.socket),
            "agent.control": str(self.control),
            "store.path": str(self.store),
            "store.keep": self.keep,
            "export.prometheus": f"127.0.0.1:{self.port}",
            "otlp.http": f"127.0.0.1:{self.otlp_port}",
        }
        words = ["--config", str(self.config)]
        words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        environ = self.clock.environ | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.backend.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_METRIC_EXPORT_INTERVAL": "3000",  # so that there is always something to send
        }
        log = self.folder / f"agent-{self.lives}.log"
        self.agent = Agent(
            log, self._listener, self.cgroups.files("agent"), self._prefix, words, environ, self.port
        )

    def restart_agent(self) -> None:
        """As systemd does, once it has ended."""
        self.ended.append(self.agent.wait())
        self.start_agent()

    def replace_agent(self, keep: str) -> None:
        """Another one, with nothing of this one's life."""
        self.agent.signal(signal.SIGTERM)
        self.keep = keep
        self.restart_agent()

    def configure(self, text: str) -> None:
        """The file that the agent reads at its start, and when it is told to."""
        self.config.write_text(text)
        self.config.chmod(0o644)

    @contextlib.contextmanager
    def stranger(self, body: str, *arguments: object) -> Iterator[Program]:
        """A Python program that comes last where CPUs are scarce. It waits for ``go()``."""
        with program(body, *arguments) as running:
            self.cgroups.join("strangers", running.pid)
            yield running


@contextlib.contextmanager
def scene(folder: Path, keep: str) -> Iterator[Scene]:
    """``keep``: what the agent stores. Raises :class:`CannotError` where the host lacks something.

    What is mounted is seen by this process and its children alone.
    """
    _own_mounts()
    folder.chmod(0o755)
    with contextlib.ExitStack() as stack:
        cgroups = Cgroups()
        stack.callback(cgroups.close)
        yield Scene(folder, cgroups, stack, keep)


def until(condition: Callable[[], object], seconds: float) -> bool:
    """Whether it came to hold within that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _spoken_to(command: list[str]) -> subprocess.Popen[str]:
    environ = os.environ | {"PYTHONPATH": f"{Path(tailspan.__file__).parents[1]}:{Path(__file__).parents[2]}"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def _said(process: subprocess.Popen[str], line: str) -> str:
    _say(process, line)
    assert process.stdout is not None
    return process.stdout.readline()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """What systemd keeps while agents come and go."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(128)
        yield listener


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _own_mounts() -> None:
    """What is mounted from now on is seen by this process and its children alone, and goes with them."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
        raise CannotError(f"cannot have mounts of its own: {os.strerror(ctypes.get_errno())}")


def _mount_tmpfs(at: Path, mib: int) -> None:
    if not shutil.which("mount"):
        raise CannotError("mount(8) is missing")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=755", "chaos", at], check=True)
