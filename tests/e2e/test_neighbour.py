"""The noisy neighbour is what it says: a culprit with a name, on the CPUs it was given, and gone when told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BUDGET_S = 30.0


class Neighbour:
    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tailspan.worker.neighbour", *arguments], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()

    def tasks(self) -> list[Path]:
        return list(Path(f"/proc/{self.process.pid}/task").iterdir())

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(BUDGET_S)


@pytest.fixture
def ended() -> Iterator[list[Neighbour]]:
    started: list[Neighbour] = []
    yield started
    for neighbour in started:
        neighbour.end()


def wait_for_cpu(neighbour: Neighbour, seconds: float) -> None:
    deadline = time.monotonic() + BUDGET_S
    while neighbour.cpu_s() < seconds:
        assert time.monotonic() < deadline, f"used {neighbour.cpu_s()} s of CPU"
        time.sleep(0.01)


def test_it_burns_the_cpu_it_was_given_under_its_name(ended: list[Neighbour]) -> None:
    cpu = max(os.sched_getaffinity(0))
    neighbour = Neighbour("--cpus", str(cpu), "--threads", "3", "--seconds", "600", "--name", "backup")
    ended.append(neighbour)
    assert neighbour.line.startswith(f"backup[{neighbour.process.pid}] burns on cpus [{cpu}]")
    wait_for_cpu(neighbour, neighbour.cpu_s() + 0.2)
    tasks = neighbour.tasks()
    assert [(task / "comm").read_text() for task in tasks] == ["backup\n"] * 4
    assert all(os.sched_getaffinity(int(task.name)) == {cpu} for task in tasks)
    assert neighbour.end() == 0


def test_it_ends_by_itself(ended: list[Neighbour]) -> None:
    neighbour = Neighbour("--threads", "1", "--seconds", "0.1")
    ended.append(neighbour)
    assert neighbour.process.wait(BUDGET_S) == 0


def cpu_cgroups() -> Path:
    root = Path("/sys/fs/cgroup")
    return root if (root / "cgroup.controllers").exists() else root / "cpu"


@pytest.mark.skipif(not os.access(cpu_cgroups() / "cgroup.procs", os.W_OK), reason="making a cgroup takes root")
def test_its_cgroup_comes_and_goes_with_it(ended: list[Neighbour]) -> None:
    name = f"neighbour-{os.getpid()}"
    neighbour = Neighbour("--threads", "1", "--seconds", "600", "--cgroup", name)
    ended.append(neighbour)
    assert (cpu_cgroups() / name / "cgroup.procs").read_text().split() == [str(neighbour.process.pid)]
    assert neighbour.end() == 0
    assert not (cpu_cgroups() / name).exists()


@pytest.mark.parametrize(
    "arguments",
    [["--threads", "0"], ["--cpus", "9999"], ["--cpus", "x"], ["--seconds", "-1"], ["--cgroup", "../x"]],
)
def test_a_wrong_argument_is_a_usage_error(arguments: list[str]) -> None:
    wrong = subprocess.run(
        [sys.executable, "-m", "tailspan.worker.neighbour", *arguments],
        capture_output=True,
        text=True,
        timeout=BUDGET_S,
    )
    assert wrong.returncode == 2
    assert arguments[0] in wrong.stderr
