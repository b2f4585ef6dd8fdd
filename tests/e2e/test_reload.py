"""Who is followed, and a configuration that changes while the agent runs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tailspan.attribute.causes import Cause
from tests.conftest import eventually
from tests.e2e.conftest import AgentProcess, free_port, kill, metric
from tests.e2e.test_explain import SERVE, assert_conserved, part
from tests.workloads import LAST_CPU, cpu_cgroup, cpu_hog, program

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

FIRST_CPU = min(os.sched_getaffinity(0))


class Configured(AgentProcess):
    """An agent whose configuration is a file: sections after those that place its files in a folder."""

    def __init__(self, folder: Path, sections: str, environment: dict[str, str] | None = None) -> None:
        self.folder, self.file, self.log = folder, folder / "tailspan.toml", folder / "agent.log"
        self.socket, self.store = folder / "worker.sock", folder / "store"
        self.write(sections)
        command = [sys.executable, "-m", "tailspan", "run", "--config", str(self.file)]
        self.port = free_port()
        command += ["--socket", str(self.socket), "--store", str(self.store)]
        command += ["--set", f"agent.control={folder / 'control.sock'}"]
        command += ["--set", f"export.prometheus=127.0.0.1:{self.port}"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, env={**os.environ, **(environment or {})})
        eventually(lambda: "ready in" in self.said() or self.process.poll() is not None, "it is ready", 60)
        assert self.process.poll() is None, self.said()

    def write(self, sections: str) -> None:
        self.file.write_text(sections)

    def said(self) -> str:
        return self.log.read_text()

    def says(self, text: str, times: int = 1) -> None:
        eventually(lambda: self.said().count(text) >= times, f"{text} ({times})")

    def follows(self, reason: str) -> float:
        return metric(self.port, f'tailspan_followed_processes{{reason="{reason}"}}')

    def reload(self, sections: str) -> None:
        """Tells it to, and waits until it has."""
        done = ("configuration reloaded", "the old configuration stays")
        before = sum(map(self.said().count, done))
        self.write(sections)
        self.process.send_signal(signal.SIGHUP)
        eventually(lambda: sum(map(self.said().count, done)) > before, "it has reloaded")


Start = Callable[..., Configured]


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[Start]:
    agents: list[Configured] = []

    def start(sections: str, environment: dict[str, str] | None = None) -> Configured:
        agents.append(Configured(tmp_path, sections, environment))
        return agents[-1]

    yield start
    kill(agents)


@contextmanager
def sleeper(at: Path) -> Iterator[int]:
    """A process whose program lies there."""
    if not at.exists():
        shutil.copy(shutil.which("sleep") or "/bin/sleep", at)
    with subprocess.Popen([at, "300"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def executables(*paths: Path) -> str:
    return f"[follow]\nexecutables = {[str(path) for path in paths]}\n[store]\nkeep = 'all'\n"


def test_a_target_that_a_reload_removes_leaves_no_seam_in_the_others_records(
    configured: Start, tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    agent = configured(executables(one, other))
    with sleeper(one) as kept, sleeper(other) as removed, program(SERVE, agent.socket, 100) as worker:
        worker.go()
        for pid in (kept, removed, worker.pid):
            agent.says(f"following pid {pid} (")
        assert worker.line() == "warm"
        # WHEN one of two is removed, and comes back, while a worker serves
        worker.go()
        agent.reload(executables(one))
        agent.says(f"no longer following pid {removed} (executable {other})")
        agent.reload(executables(other, one))
        agent.says(f"following pid {removed} (executable {other}", times=2)
        assert worker.finish() == ["dropped 0"]
    agent.stop()

    # THEN nothing of the worker's is missing
    assert f"no longer following pid {worker.pid}" not in agent.said()
    verdicts = agent.verdicts()
    assert len(verdicts) == 160
    assert_conserved(verdicts)
    meanwhile = verdicts[60:]
    assert all(not v.trust.lost and v.trust.coverage > 0.99 for v in meanwhile)
    assert all(part(v, Cause.UNKNOWN).ns < 0.01 * v.request.wall_ns for v in meanwhile)
    # AND the one that was kept was not even let go of
    assert agent.said().count(f"following pid {kept} (") == 1


def test_a_wrong_file_is_refused_and_the_old_configuration_goes_on(configured: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        one, other = tmp_path / "one", tmp_path / "other"
        agent = configured(executables(one), {"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert systemd.recv(4096) == b"READY=1"
        with sleeper(one) as first:
            agent.says(f"following pid {first} (")

            agent.reload(executables(other) + "[slow]\nslo = 1\n")
            assert f"{agent.file}:6: unknown key slow.slo: did you mean slow.slo_ms?" in agent.said()
            agent.reload("[[")
            with sleeper(one) as second:
                agent.says(f"following pid {second} (")

            # WHEN the file is right, with changes that a running agent can make and one that it cannot
            agent.reload(executables(other) + "keep = 'slow'\n[slow]\nslo_ms = 7\n[window]\nseconds = 60\n")
            agent.reload(
                executables(other).replace("all", "slow") + "[slow]\nslo_ms = 7\n[window]\nseconds = 60\n"
            )
            assert "changed: follow.executables, slow.slo_ms, store.keep\n" in agent.said()
            agent.says("changed, and needs a restart: window.seconds\n")
            agent.says(f"no longer following pid {first} (")
        agent.reload(executables(other).replace("all", "slow") + "[slow]\nslo_ms = 7\n")
        assert "changed: nothing\n" in agent.said()
        reloads = "tailspan_config_reloads_total"
        for outcome, times in (("applied", 2), ("failed", 3)):
            series = f'{reloads}{{outcome="{outcome}"}}'
            eventually(lambda of=series, n=times: metric(agent.port, of) == n, f"{series} is {times}")
        agent.stop()

        told = [systemd.recv(4096) for _ in range(2 * 5 + 1)]
    assert told[1::2] == [b"READY=1"] * 5
    assert all(message.startswith(b"RELOADING=1\nMONOTONIC_USEC=") for message in told[:-1:2])
    assert told[-1] == b"STOPPING=1"
    assert agent.said().count("the old configuration stays") == 3


def test_what_is_slow_and_what_is_kept_changes_with_a_reload(configured: Start) -> None:
    agent = configured("[slow]\nslo_ms = 60000\n")
    with program(SERVE, agent.socket, 20) as worker:
        worker.go()
        assert worker.line() == "warm"
        agent.reload("[slow]\nslo_ms = 60000\n[store]\nkeep = 'all'\n")
        worker.go()
        assert worker.finish() == ["dropped 0"]
    agent.stop()
    # those that ended just before are judged just after
    assert 20 <= len(agent.verdicts()) < 60


@contextmanager
def unit_in(cgroup: Path, name: str) -> Iterator[Path]:
    """A cgroup as systemd makes it for a unit; who is left in it at the end goes to ``cgroup``."""
    unit = cgroup / name
    unit.mkdir()
    try:
        yield unit
    finally:
        for pid in (unit / "cgroup.procs").read_text().split():
            (cgroup / "cgroup.procs").write_text(pid)
        unit.rmdir()


LISTENS = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.readline()
listener.close()
print("closed", flush=True)
sys.stdin.readline()
"""

FORKS = """
child = os.fork()
if not child:
    time.sleep(300)
print(child, flush=True)
sys.stdin.readline()
os.kill(child, 9)
os.waitpid(child, 0)
"""


def test_processes_that_send_nothing_are_followed_by_unit_cgroup_port_and_pid(
    configured: Start, tmp_path: Path
) -> None:
    with (
        cpu_cgroup("tailspan-targets") as cgroup,
        cpu_cgroup("tailspan-unit") as slice_,
        program(LISTENS) as server,
        program("sys.stdin.readline()") as by_pid,
        program(FORKS) as in_cgroup,
        program("sys.stdin.readline()") as in_unit,
        unit_in(slice_, "triton.service") as unit,
    ):
        (cgroup / "cgroup.procs").write_text(str(in_cgroup.pid))
        (unit / "cgroup.procs").write_text(str(in_unit.pid))
        server.go()
        port = server.line()
        follow = f"""
            pids = [{by_pid.pid}]
            ports = [{port}]
            units = ["tri*.service"]
            cgroups = ["/*/{cgroup.name}", "/{cgroup.name}"]
        """
        agent = configured(f"[follow]\n{follow}\n")
        agent.says(f"following pid {by_pid.pid} (pid,")
        agent.says(f"following pid {in_unit.pid} (unit tri*.service,")
        agent.says(f"following pid {in_cgroup.pid} (cgroup /")
        agent.says(f"following pid {server.pid} (port {port},")
        for reason in ("pid", "unit", "cgroup", "port"):
            eventually(lambda of=reason: agent.follows(of) == 1, f"one is counted for its {reason}")

        # WHEN one moves away, and one listens no more
        (slice_ / "cgroup.procs").write_text(str(in_unit.pid))
        server.go()
        agent.says(f"no longer following pid {in_unit.pid} (unit tri*.service)")
        agent.says(f"no longer following pid {server.pid} (port {port})")

        # AND when a rule is removed, the children that were born meanwhile go too
        in_cgroup.go()
        child = int(in_cgroup.line())
        agent.reload("")
        agent.says(f"no longer following pid {in_cgroup.pid} (cgroup")
        agent.says(f"no longer following pid {child} (cgroup")
        agent.says(f"no longer following pid {by_pid.pid} (pid)")
        eventually(lambda: not any(map(agent.follows, ("pid", "unit", "cgroup", "port"))), "none is counted")
        agent.stop()
        in_cgroup.go()
        assert in_cgroup.finish() == []  # its child has ended too


#: Answers a byte by a byte, after 15 ms of CPU time.
BACKEND = """
with open(sys.argv[1], "rb", 0) as asked, open(sys.argv[2], "wb", 0) as answers:
    while asked.read(1):
        until = time.thread_time() + 0.015
        while time.thread_time() < until: pass
        answers.write(b"x")
"""

ASKS = """
import tailspan.client
client = tailspan.client.connect(service="toy", path=sys.argv[1])
with open(sys.argv[2], "wb", 0) as ask, open(sys.argv[3], "rb", 0) as answers:
    for _ in range(20):
        with client.request("POST /toy"):
            ask.write(b"x")
            answers.read(1)
print("dropped", client.dropped, flush=True)
"""


@pytest.mark.parametrize("followed", [True, False])
def test_who_held_up_a_backend_that_sends_nothing_is_known_where_it_is_followed(
    configured: Start, tmp_path: Path, followed: bool
) -> None:
    asked, answers = tmp_path / "asked", tmp_path / "answers"
    os.mkfifo(asked)
    os.mkfifo(answers)
    # GIVEN a backend that shares its CPU with a hog
    with program(BACKEND, asked, answers, cpu=LAST_CPU) as backend, cpu_hog(LAST_CPU) as hog:
        pids = f"pids = [{backend.pid}]\n" if followed else ""
        agent = configured(f"[follow]\npeers = 0\n{pids}[store]\nkeep = 'all'\n")
        backend.go()
        with program(ASKS, agent.socket, asked, answers, cpu=FIRST_CPU) as worker:
            worker.go()
            assert worker.finish() == ["dropped 0"]
        backend.finish()
    agent.stop()

    # THEN it has no requests of its own, and the hog is to blame for those of who waited for it
    verdicts = agent.verdicts()
    assert len(verdicts) == 20
    assert {v.request.pid for v in verdicts} == {worker.pid}
    assert_conserved(verdicts)
    blamed = [v for v in verdicts if any(c.pid == hog for c in part(v, Cause.RUN_QUEUE).culprits)]
    assert len(blamed) >= 12 if followed else not blamed
