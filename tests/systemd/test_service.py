"""The service under a real systemd: each step of its life, by what systemd, the kernel and its workers say of it.

``pytest -s tests/systemd`` prints what the journal says of each step.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import tailspan
from tests.conftest import eventually
from tests.machine import Machine
from tests.workloads import LAST_CPU

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

REPOSITORY = Path(__file__).parents[2]
UNITS = REPOSITORY / "systemd"
ENVIRONMENT = "/opt/tailspan"  # as systemd/README.md has it
PACKAGE = f"{ENVIRONMENT}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
CONFIGURATION = "/etc/tailspan/tailspan.toml"
LOST = 'tailspan_lost_records_total{class="client_message"}'
HEARD = 'tailspan_requests_joined_total{by="said"}'
CAPABILITIES = {"perfmon": 38, "bpf": 39}
#: Two users who are in the group; what they may is the group's.
WORKER, ENGINEER = "inference", "engineer"

#: Serves requests of 8 ms of CPU time: 40 to learn from, then as many as it is told with each line on stdin.
SERVE = """
import os, sys, time
import tailspan.client
os.sched_setaffinity(0, {int(sys.argv[1])})
client = tailspan.client.connect(service="toy")

def serve(count):
    for _ in range(count):
        with client.request("POST /toy", model="toy"):
            until = time.thread_time() + 0.012
            while time.thread_time() < until: pass
        time.sleep(0.012)

serve(40)
print(os.getpid(), flush=True)
for line in sys.stdin:
    serve(int(line))
    print(client.dropped, flush=True)
"""
#: Takes two thirds of a CPU before anybody else, so that it is the one to be named on a busy machine too. What it
#: leaves at a time, 10 ms, is less than a request takes.
HOG = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
print(os.getpid(), flush=True)
while True:
    until = time.monotonic() + 0.02
    while time.monotonic() < until: pass
    time.sleep(0.01)
"""
SENDS_A_SECOND = 200  # at most
LONGEST_SEND_MS = 1000.0  # it takes some microseconds; an agent is away for longer than this
#: Never stops sending. A line on stdin is answered by how many so far, errors, drops, and how long one took.
SEND = """
import json, sys, threading, time
import tailspan.client
client = tailspan.client.connect(service="toy")
sent = errors = longest = 0

def send():
    global sent, errors, longest
    while True:
        began = time.monotonic_ns()
        try:
            with client.request("POST /toy"): pass
        except Exception:
            errors += 1
        sent += 1
        longest = max(longest, time.monotonic_ns() - began)
        time.sleep(0.005)

threading.Thread(target=send, daemon=True).start()
for line in sys.stdin:
    print(json.dumps([sent, errors, client.dropped, longest / 1e6]), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Sent:
    requests: int
    errors: int
    dropped: int
    longest_ms: float


class Inside:
    """A Python program in the machine with the agent's packages; it has one number inside and on the host."""

    def __init__(self, machine: Machine, user: str, source: str, *arguments: object) -> None:
        as_user = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups")
        command = [*machine.prefix, *as_user, f"{ENVIRONMENT}/bin/python", "-c", source, *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, line: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, line: object = "") -> str:
        self.say(line)
        return self.line()

    def state(self) -> Sent:
        """Of one that sends."""
        return Sent(*json.loads(self.ask()))

    def end(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=60)


class Service:
    """The units in the machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._shown = 0

    def systemctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = self.machine.run("systemctl", *words, check=False, timeout=600)
        assert not check or done.returncode == 0, f"systemctl {words}: {done.stderr}{self.new_lines()}"
        return done

    def shows(self, name: str, unit: str = "tailspan.service") -> str:
        return self.systemctl("show", "--value", f"--property={name}", unit).stdout.strip()

    @property
    def pid(self) -> int:
        """Of the agent, in the machine."""
        return int(self.shows("MainPID"))

    def socket(self) -> tuple[str, str]:
        """Which one it is, and since when systemd listens on it."""
        inode = self.machine.run("stat", "-c", "%i", "/run/tailspan/worker.sock").stdout
        return inode, self.shows("ActiveEnterTimestampMonotonic", "tailspan.socket")

    def start(self) -> None:
        """Up and with nothing held against it, whatever was before."""
        self.systemctl("reset-failed")
        self.systemctl("start", "tailspan.socket", "tailspan.service")

    def is_up_again(self, restarts: int) -> bool:
        return self.shows("NRestarts") == str(restarts) and self.shows("ActiveState") == "active"

    def signal(self, number: signal.Signals) -> None:
        self.systemctl("kill", "--kill-whom=main", f"--signal={number.name}", "tailspan")

    def new_lines(self) -> str:
        """What the journal has of both units since the last call; printed, too."""
        self.machine.run("journalctl", "--sync")
        units = ("--unit", "tailspan.service", "--unit", "tailspan.socket")
        lines = self.machine.run("journalctl", "--no-pager", "-o", "short-precise", *units).stdout.splitlines()
        new = "\n".join(lines[self._shown :])
        self._shown = len(lines)
        print(f"\n{new}")
        return new

    def metric(self, name: str) -> float:
        """Value of one series of /metrics, given as it is written there; 0 when it is not there."""
        fetch = (
            "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
        )
        text = self.machine.run("/usr/bin/python3", "-c", fetch).stdout
        values = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.M)
        return float(values[0]) if values else 0.0

    def tailspan(self, *words: str, user: str = ENGINEER) -> str:
        as_user = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups")
        done = self.machine.run(*as_user, "/usr/local/bin/tailspan", *words, check=False)
        assert done.returncode in (0, 1), done.stderr
        return done.stdout

    def threads(self) -> list[dict[str, str]]:
        """What the kernel says of each thread of the agent."""
        tasks = (self.machine.root / f"proc/{self.pid}/task").glob("*/status")
        return [dict(re.findall(r"^(\w+):\s*(.*)$", status.read_text(), re.M)) for status in tasks]


def install(machine: Machine) -> None:
    """As systemd/README.md says; the environment's own packages are shown to it instead of copied into it."""
    machine.run(str(Path(sys.executable).resolve()), "-m", "venv", "--without-pip", ENVIRONMENT, timeout=120)
    machine.copy(Path(tailspan.__file__).parent, f"{PACKAGE}/tailspan")
    (machine.root / f"{PACKAGE}/others.pth".lstrip("/")).write_text("/opt/packages\n")
    entry = machine.root / f"{ENVIRONMENT}/bin/tailspan".lstrip("/")
    entry.write_text(f"#!{ENVIRONMENT}/bin/python\nimport sys\nfrom tailspan.cli import main\nsys.exit(main())\n")
    entry.chmod(0o755)
    machine.run("ln", "-sf", f"{ENVIRONMENT}/bin/tailspan", "/usr/local/bin/tailspan")
    machine.copy(UNITS / "tailspan.service", "/usr/lib/systemd/system/tailspan.service")
    machine.copy(UNITS / "tailspan.socket", "/usr/lib/systemd/system/tailspan.socket")
    machine.copy(UNITS / "tailspan.sysusers", "/usr/lib/sysusers.d/tailspan.conf")
    machine.copy(UNITS / "tailspan.tmpfiles", "/usr/lib/tmpfiles.d/tailspan.conf")
    machine.copy(UNITS / "tailspan.toml", CONFIGURATION)
    patience = machine.root / "etc/systemd/system/tailspan.service.d/emulated.conf"
    patience.parent.mkdir(parents=True)
    patience.write_text("[Service]\nTimeoutStartSec=10min\n")
    people = [f"u {user} -\nm {user} tailspan\n" for user in (WORKER, ENGINEER)]
    (machine.root / "usr/lib/sysusers.d/people.conf").write_text("".join(people))
    machine.run("systemd-sysusers")
    machine.run("systemd-tmpfiles", "--create", "tailspan.conf")
    machine.run("systemctl", "daemon-reload")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    packages = {Path(sysconfig.get_path("purelib")): "/opt/packages"}
    with Machine(Path("/"), tmp_path_factory.mktemp("machine"), packages) as machine:
        install(machine)
        yield machine


@pytest.fixture(scope="module")
def installed(machine: Machine) -> Service:
    return Service(machine)


@pytest.fixture
def service(installed: Service) -> Iterator[Service]:
    """Up; what the journal says after the test is printed."""
    installed.start()
    installed.new_lines()
    yield installed
    installed.new_lines()


@pytest.fixture
def inside(machine: Machine) -> Iterator[Callable[..., Inside]]:
    """Starts programs; all are ended with the test."""
    with contextlib.ExitStack() as stack:

        def start(user: str, source: str, *arguments: object) -> Inside:
            program = Inside(machine, user, source, *arguments)
            stack.callback(program.end)
            return program

        yield start


@contextlib.contextmanager
def drop_in(service: Service, text: str) -> Iterator[None]:
    """A setting of the service for the time of a test."""
    file = service.machine.root / "run/systemd/system/tailspan.service.d/test.conf"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    service.systemctl("daemon-reload")
    try:
        yield
    finally:
        file.unlink()
        service.systemctl("daemon-reload")


@contextlib.contextmanager
def configured(service: Service, text: str) -> Iterator[None]:
    """Another configuration file for the time of a test."""
    file = service.machine.root / CONFIGURATION.lstrip("/")
    before = file.read_text()
    file.write_text(text)
    try:
        yield
    finally:
        file.write_text(before)


def sender(service: Service, inside: Callable[..., Inside]) -> Inside:
    """A worker that is heard, and goes on sending."""
    worker = inside(WORKER, SEND)
    heard = service.metric(HEARD)
    eventually(lambda: service.metric(HEARD) > heard, "requests arrive")
    return worker


def assert_unharmed(service: Service, worker: Inside) -> None:
    """It had no error and never waited, the agent hears it, and what did not arrive is counted."""
    dropped = worker.state().dropped
    eventually(lambda: service.metric(LOST) >= dropped, "what was lost is counted")
    before, heard = worker.state(), service.metric(HEARD)
    eventually(lambda: service.metric(HEARD) > heard, "requests arrive")
    after = worker.state()
    lost = service.metric(LOST)
    print(f"\n{after}, {lost:g} lost by what the agent says")
    assert after.errors == 0
    assert after.longest_ms < LONGEST_SEND_MS
    assert after.dropped == before.dropped


def test_systemd_accepts_the_units_and_finds_little_exposed(installed: Service) -> None:
    verified = installed.machine.run("systemd-analyze", "verify", "tailspan.service", "tailspan.socket")
    assert verified.stdout + verified.stderr == ""
    security = installed.machine.run(
        "systemd-analyze", "security", "--no-pager", "--threshold=30", "tailspan.service"
    )
    print(f"\nverify: {verified.returncode}, nothing said\n{security.stdout.splitlines()[-1]}")


def test_it_is_started_when_it_is_ready_and_enabled_for_the_next_boot(installed: Service) -> None:
    installed.systemctl("enable", "--now", "tailspan")

    lines = installed.new_lines().splitlines()
    (ready,) = [number for number, line in enumerate(lines) if "ready in" in line]
    (started,) = [number for number, line in enumerate(lines) if "Started tailspan.service" in line]
    assert ready < started
    print(installed.systemctl("status", "--no-pager", "tailspan").stdout)
    assert installed.shows("ActiveState") == "active"
    wanted = [installed.systemctl("is-enabled", unit).stdout for unit in ("tailspan.service", "tailspan.socket")]
    assert wanted == ["enabled\n"] * 2
    # AND the socket is systemd's, for the group
    assert (
        installed.machine.run("stat", "-c", "%F %a %G", "/run/tailspan/worker.sock").stdout
        == "socket 660 tailspan\n"
    )
    assert not [line for line in lines if re.search("handed over|warning", line, re.I)]


def test_each_of_its_threads_has_two_capabilities_at_most(service: Service) -> None:
    most = sum(1 << number for number in CAPABILITIES.values())
    user = service.machine.run("id", "-u", "tailspan").stdout.strip()

    threads = service.threads()
    for thread in threads:
        sets = {name: int(thread[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
        print(f"{thread['Name']:16} uid {thread['Uid'].split()[0]} NoNewPrivs {thread['NoNewPrivs']}", end=" ")
        print(f"Seccomp {thread['Seccomp']}", *(f"{name} {value:x}" for name, value in sets.items()))
        assert all(value | most == most for value in sets.values())
        assert (thread["NoNewPrivs"], thread["Seccomp"]) == ("1", "2")
        assert set(thread["Uid"].split()) == {user}
    assert len(threads) > 1


def test_the_kernel_holds_it_to_its_memory_and_its_share_of_a_cpu(installed: Service) -> None:
    group = installed.machine.root / "sys/fs/cgroup/system.slice/tailspan.service"
    controllers = (installed.machine.root / "sys/fs/cgroup/cgroup.controllers").read_text().split()
    if not {"cpu", "memory"} <= set(controllers):
        pytest.skip("cgroup v2 has no controllers on this host; tests/systemd/test_guest.py has them")
    installed.systemctl("stop", "tailspan.socket", "tailspan.service")
    began_s = time.monotonic()
    installed.start()

    def stat(name: str) -> dict[str, int]:
        return {
            key: int(value) for key, value in (line.split() for line in (group / name).read_text().splitlines())
        }

    # It starts as fast as it may.
    eventually(lambda: stat("cpu.stat")["nr_throttled"] > 0, "it was held back", seconds=60)
    used_s, passed_s = stat("cpu.stat")["usage_usec"] / 1e6, time.monotonic() - began_s
    print(f"\n{used_s:.1f} s of CPU in {passed_s:.1f} s, {int((group / 'memory.current').read_text()) >> 20} MiB")
    assert used_s < 0.5 * passed_s + 0.5
    # WHEN it may not have the memory that it needs
    with drop_in(installed, "[Service]\nMemoryMax=30M\nRestart=no\n"):
        assert installed.systemctl("restart", "tailspan", check=False).returncode != 0
        assert installed.shows("Result") == "oom-kill"
    assert "killed by the OOM killer" in installed.new_lines()


def test_a_user_of_the_group_gets_the_cause_of_a_slow_request_and_who_it_was(
    service: Service, inside: Callable[..., Inside]
) -> None:
    worker = inside(WORKER, SERVE, LAST_CPU)
    worker_pid = int(worker.line())
    culprit = f"python[{inside('root', HOG, LAST_CPU).line()}]"
    assert worker.ask(12) == "0"

    def causes() -> set[str]:
        listed = json.loads(service.tailspan("slow", "--json"))["requests"]
        return {request["cause"] for request in listed if request["culprit"] == culprit}

    eventually(lambda: causes() == {"run_queue"}, "it is named")
    print(service.tailspan("explain", "--slowest"))
    # AND the kernel's word on who connected is the worker's own, though the socket is systemd's
    assert f"following pid {worker_pid} " in service.new_lines()


def test_a_reload_applies_a_right_file_and_leaves_the_agent_alone_with_a_wrong_one(service: Service) -> None:
    pid = service.pid
    with configured(service, "[slow]\nslo_ms = 200\n"):
        service.systemctl("reload", "tailspan")
        eventually(lambda: "changed: slow.slo_ms" in service.new_lines(), "it is applied")
    with configured(service, "[slow]\nslo_mss = 200\n"):
        # WHEN the file is wrong, systemctl says so, and the agent never hears of it
        refused = service.systemctl("reload", "tailspan", check=False)
        assert refused.returncode != 0
        lines = service.new_lines()
        assert "slo_mss" in lines
        assert "not reloaded" not in lines
        # AND one who tells the agent himself is told by the agent
        service.signal(signal.SIGHUP)
        eventually(lambda: "the old configuration stays" in service.new_lines(), "it is refused")
    service.systemctl("reload", "tailspan")
    eventually(lambda: "changed: slow.slo_ms" in service.new_lines(), "the first one is in force again")
    assert (service.pid, service.shows("NRestarts"), service.shows("ActiveState")) == (pid, "0", "active")


def test_a_hung_agent_is_ended_and_started_again_and_no_worker_notices(
    service: Service, inside: Callable[..., Inside]
) -> None:
    with drop_in(service, "[Service]\nWatchdogSec=3s\n"):
        service.systemctl("restart", "tailspan")
        worker = sender(service, inside)
        service.signal(signal.SIGSTOP)
        eventually(lambda: service.is_up_again(restarts=1), "systemd has started it again", seconds=60)
        lines = service.new_lines()
    service.systemctl("restart", "tailspan")

    assert "Watchdog timeout" in lines
    # AND where it was is in the journal
    assert "Fatal Python error: Aborted" in lines
    assert re.search(r"daemon.py.* in run", lines)
    assert_unharmed(service, worker)


def test_a_crash_is_followed_by_a_start_and_no_worker_notices(
    service: Service, inside: Callable[..., Inside]
) -> None:
    worker = sender(service, inside)
    service.signal(signal.SIGKILL)
    eventually(lambda: service.is_up_again(restarts=1), "systemd has started it again", seconds=60)

    assert "status=9/KILL" in service.new_lines()
    assert_unharmed(service, worker)


def test_a_restart_leaves_the_socket_open_and_the_worker_connected(
    service: Service, inside: Callable[..., Inside]
) -> None:
    worker = sender(service, inside)
    before = service.socket()
    service.systemctl("restart", "tailspan")

    assert service.socket() == before
    assert_unharmed(service, worker)


def test_an_upgrade_takes_effect_with_a_restart_and_no_worker_notices(
    service: Service, inside: Callable[..., Inside]
) -> None:
    worker = sender(service, inside)
    # GIVEN another version where the one was that runs
    package = service.machine.root / PACKAGE.lstrip("/") / "tailspan"
    service.machine.run("rm", "-r", f"{PACKAGE}/tailspan")
    service.machine.copy(Path(tailspan.__file__).parent, f"{PACKAGE}/tailspan")
    about = package / "__init__.py"
    about.write_text(about.read_text().replace(tailspan.__version__, f"{tailspan.__version__}.next"))
    service.systemctl("restart", "tailspan")

    assert service.tailspan("--version").split()[-1] == f"{tailspan.__version__}.next"
    assert service.metric(f'tailspan_build_info{{version="{tailspan.__version__}.next"}}') == 1
    assert_unharmed(service, worker)


def test_a_stop_is_clean_and_lasts_where_the_socket_is_stopped_too(
    service: Service, inside: Callable[..., Inside]
) -> None:
    worker = sender(service, inside)
    # GIVEN that the agent alone was stopped, and the next message has started it again
    service.systemctl("stop", "tailspan.service")
    eventually(lambda: service.shows("ActiveState") == "active", "the worker has started it", seconds=60)
    service.new_lines()
    # WHEN both are stopped, and the worker has looked for them more than once
    service.systemctl("stop", "tailspan.socket", "tailspan.service")
    stopped = worker.state()
    eventually(lambda: worker.state().dropped > stopped.dropped + 1.5 * SENDS_A_SECOND, "it sends", seconds=60)

    assert service.shows("ActiveState") == service.shows("ActiveState", "tailspan.socket") == "inactive"
    assert service.shows("Result") == "success"
    lines = service.new_lines()
    assert "Deactivated successfully" in lines
    assert not re.search("Traceback|error|killing", lines, re.I)
    assert not (service.machine.root / "run/tailspan/worker.sock").exists()
    # AND when they come again, the worker finds them
    service.start()
    assert_unharmed(service, worker)


def test_a_wrong_configuration_is_said_and_not_tried_again(service: Service) -> None:
    with configured(service, "[slow]\nslo_mss = 200\n"):
        assert service.systemctl("restart", "tailspan", check=False).returncode != 0
        eventually(lambda: service.shows("ActiveState") == "failed", "it has failed")
        assert (service.shows("ExecMainStatus"), service.shows("NRestarts")) == ("2", "0")
        assert service.shows("ActiveState", "tailspan.socket") == "active"
    lines = service.new_lines()
    assert "slo_mss" in lines
    assert lines.count("status=2/INVALIDARGUMENT") == 1


def test_with_a_worker_that_waits_a_wrong_configuration_is_tried_five_times_at_most(
    service: Service, inside: Callable[..., Inside]
) -> None:
    worker = sender(service, inside)
    with configured(service, "[slow]\nslo_mss = 200\n"):
        service.systemctl("kill", "--signal=KILL", "tailspan")
        down = lambda: service.shows("ActiveState", "tailspan.socket") == "failed"  # noqa: E731
        eventually(down, "systemd gives up", seconds=60)
        assert service.new_lines().count("status=2/INVALIDARGUMENT") <= 5
    service.start()
    assert_unharmed(service, worker)
