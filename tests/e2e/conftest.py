"""The real agent as a process of its own, and what it found out."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tailspan.attribute.judge import judge
from tailspan.attribute.verdict import Verdict
from tailspan.export.local import SegmentReader
from tests.conftest import eventually


class AgentProcess:
    """``tailspan run`` with its files in one folder. Stopped by :meth:`stop`, which waits for it."""

    def __init__(self, folder: Path, *settings: str, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.socket = folder / "worker.sock"
        self.store = folder / "store"
        self.log = folder / "agent.log"
        given = [
            f"worker.socket={self.socket}",
            f"agent.control={folder / 'control.sock'}",
            f"store.path={self.store}",
            "export.prometheus=",
            "budget.cpu=0",  # on a slow machine a test's load would cost it its culprits
            *settings,
        ]
        command = [sys.executable, "-m", "tailspan", "run"]
        command += [word for setting in given for word in ("--set", setting)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, env={**os.environ, **(environment or {})})
        try:
            eventually(
                lambda: "ready in" in self.log.read_text() or self.process.poll() is not None,
                "the agent is ready",
                seconds=60,
            )
            assert self.process.poll() is None, self.log.read_text()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=20) == 0, self.log.read_text()

    def verdicts(self) -> list[Verdict]:
        """Every stored request judged again, oldest first."""
        if not self.store.exists():
            return []
        return [verdict for evidence in SegmentReader(self.store).evidence() for verdict in judge(evidence)]

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tailspan", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def json(self, *arguments: str) -> dict[str, object]:
        result = self.cli(*arguments, "--json", "--store", str(self.store))
        assert result.returncode == 0, result.stderr
        found: dict[str, object] = json.loads(result.stdout)
        return found


def metric(port: int, name: str) -> float:
    """Value of one series of an agent's /metrics, given as it is written there; 0 when it is not there."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
    return 0.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill(agents: Iterable[AgentProcess]) -> None:
    """Those that still run."""
    for agent in agents:
        if agent.process.poll() is None:
            agent.process.kill()
            agent.process.wait()


@pytest.fixture
def run_agent(tmp_path: Path) -> Iterator[Callable[..., AgentProcess]]:
    agents: list[AgentProcess] = []

    def start(
        *settings: str, environment: dict[str, str] | None = None, folder: Path | None = None
    ) -> AgentProcess:
        """``folder``: of an agent that has ended."""
        if folder is None:
            folder = tmp_path / f"agent{len(agents)}"
            folder.mkdir()
        agents.append(AgentProcess(folder, *settings, environment=environment))
        return agents[-1]

    yield start
    kill(agents)
