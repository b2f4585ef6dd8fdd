"""The Debian package: the same bytes each time; on a clean Debian under systemd, from installation to purge."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailspan import __version__
from tests.conftest import eventually
from tests.machine import Machine
from tests.packaging import root
from tests.packaging.conftest import PACKAGING, Built

BUILD = PACKAGING / "build_deb.py"
INSTALL = PACKAGING.parent / "docs" / "install.md"
CLIENT = "/usr/lib/tailspan/client"
SITE = "./usr/lib/tailspan/site/"
CAPABILITIES = 1 << 38 | 1 << 39  # CAP_PERFMON, CAP_BPF

pytestmark = pytest.mark.timeout(600)  # what is built once is built in the first test that asks for it


@pytest.fixture(scope="module")
def packages(built: Built, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Revisions 1 and 2."""
    return [built.package, _packed(built, tmp_path_factory.mktemp("second"), revision=2)]


def _packed(built: Built, folder: Path, revision: int) -> Path:
    options = ["--tree", str(built.tree), "--output", str(folder), "--revision", str(revision)]
    subprocess.run([sys.executable, BUILD, *options], umask=0o077, check=True)
    (package,) = folder.glob("*.deb")
    return package


def _unpacked(package: Path, what: str) -> bytes:
    return subprocess.run(["dpkg-deb", what, package], capture_output=True, check=True).stdout


def test_two_builds_give_the_same_bytes(built: Built, tmp_path: Path) -> None:
    assert _packed(built, tmp_path, revision=1).read_bytes() == built.package.read_bytes()


def test_it_carries_what_the_agent_runs_and_nothing_else(packages: list[Path]) -> None:
    listed = _unpacked(packages[0], "--contents").decode().splitlines()
    names = {line.split(maxsplit=5)[5].partition(" -> ")[0] for line in listed}
    print(f"{len(names)} files and folders, {packages[0].stat().st_size / 1e6:.1f} MB")
    assert packages[0].name in INSTALL.read_text()

    assert all(re.match(r"[-dl]rw[-x]r.[-x]r.[-x] root/root |lrwxrwxrwx root/root ", line) for line in listed)
    assert {"./usr/bin/tailspan", f"{SITE}tailspan/_bpf/tailspan.bpf.o"} <= names
    assert not [name for name in names if re.search(r"onnx|/tests/|\.(h|pyi|a)$", name)]
    compiled = {re.sub(r"__pycache__/(.+)\.cpython-\d+\.pyc$", r"\1.py", name) for name in names if "pyc" in name}
    assert {name for name in names if name.startswith(SITE) and name.endswith(".py")} == compiled - {
        name for name in compiled if name.endswith("/")
    }


@pytest.fixture(scope="module")
def machine(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("debian")
    root.unpack(folder)
    with Machine(folder, tmp_path_factory.mktemp("machine") / "mounts") as booted:
        yield booted
        print(booted.journal("tailspan.service"))
    shutil.rmtree(folder)


@pytest.mark.kernel
def test_on_a_clean_debian_from_installation_to_purge(machine: Machine, packages: list[Path]) -> None:
    for package in packages:
        machine.copy(package, f"/tmp/{package.name}")
    first, second = (f"/tmp/{package.name}" for package in packages)
    assert_nothing_compiles(machine)
    before = files_of(machine)

    apt(machine, "install", first)
    assert_it_runs_as_its_own_user(machine)
    make_slow_what_takes(machine, "150.0")

    with worker(machine) as sending:
        assert_explained(machine, after=0)
        installed_pid = main_pid(machine)

        apt(machine, "install", second)
        begun_before = sending.sent()
        assert f"{__version__}-2" in machine.run("dpkg-query", "-W", "tailspan").stdout
        assert main_pid(machine) != installed_pid
        assert "slo_ms = 150.0" in machine.run("cat", "/etc/tailspan/tailspan.toml").stdout
        assert_explained(machine, after=begun_before)
        sent, dropped, slowest_call_ms = sending.finish()
    print(f"worker: {sent} requests, {dropped} dropped, slowest call of the client {slowest_call_ms:.1f} ms")

    programs = programs_held_by(machine, main_pid(machine))
    assert programs
    apt(machine, "remove", "tailspan")
    assert machine.run("systemctl", "is-active", "tailspan.service", check=False).stdout.strip() == "inactive"
    eventually(lambda: not [one for one in programs if is_loaded(one)], "all programs have left the kernel")
    left = differences(before, files_of(machine))
    assert {"etc/tailspan/tailspan.toml", "var/lib/tailspan", "etc/passwd"} <= left.keys()
    assert not [path for path in left if path.startswith("usr/") and "tailspan" in path]

    apt(machine, "purge", "--autoremove", "tailspan")
    assert differences(before, files_of(machine)) == {}
    assert_nobody_knows_it(machine)


def apt(machine: Machine, *arguments: str) -> None:
    quiet = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qqy", "--no-install-recommends")
    done = machine.run(*quiet, *arguments, timeout=300)
    said = [
        line for line in (done.stdout + done.stderr).splitlines() if not re.match(r"debconf: |\(Reading|$", line)
    ]
    print(f"apt-get {' '.join(arguments)}", *said, sep="\n  ")


def assert_nothing_compiles(machine: Machine) -> None:
    for program in ("gcc", "cc", "clang", "make", "pip3"):
        assert machine.run("sh", "-c", f"command -v {program}", check=False).stdout == ""
    assert not list((machine.root / "usr/src").iterdir())
    assert not (machine.root / "lib/modules").exists()


def main_pid(machine: Machine) -> int:
    """Inside."""
    return int(machine.run("systemctl", "show", "--value", "-p", "MainPID", "tailspan.service").stdout)


def assert_it_runs_as_its_own_user(machine: Machine) -> None:
    assert machine.run("systemctl", "is-active", "tailspan.service").stdout == "active\n"
    assert machine.run("systemctl", "is-enabled", "tailspan.service").stdout == "enabled\n"
    assert machine.run("tailspan", "--version").stdout == f"tailspan {__version__}\n"
    status = (machine.root / f"proc/{main_pid(machine)}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    user = int(machine.run("id", "--user", "tailspan").stdout)
    assert user != 0
    assert set(map(int, fields["Uid"].split())) == {user}
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh"):
        assert int(fields[kind], 16) & ~CAPABILITIES == 0, kind
    assert int(fields["CapBnd"], 16) == CAPABILITIES
    print(*(f"{name} {fields[name]}" for name in ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")), sep="\n")


def make_slow_what_takes(machine: Machine, ms: str) -> None:
    """A change of an administrator's in the configuration file, which an upgrade must not touch."""
    edit = f"s/^#slo_ms = .*/slo_ms = {ms}/"
    machine.run("sed", "-i", edit, "/etc/tailspan/tailspan.toml")
    agent = main_pid(machine)
    machine.run("systemctl", "reload", "tailspan.service")
    eventually(lambda: "changed: slow.slo_ms" in machine.journal("tailspan.service"), "it is read again")
    assert main_pid(machine) == agent


WORKER = """
import sys, threading, time
import tailspan.client

client = tailspan.client.connect("packaged")
asked = threading.Event()
number, slowest_ns = 0, 0

def answer():
    for line in sys.stdin:
        print(number, flush=True)
    asked.set()

threading.Thread(target=answer).start()
while not asked.is_set():
    number += 1
    begin_ns = time.monotonic_ns()
    with client.request("infer", request_id=f"r{number:08}"):
        served_ns = time.monotonic_ns()
        time.sleep(0.250 if number % 20 == 0 else 0.002)
        served_ns -= time.monotonic_ns()
    slowest_ns = max(slowest_ns, time.monotonic_ns() - begin_ns + served_ns)
print(number, client.dropped, slowest_ns)
"""


class Worker:
    """Of another user, in the group tailspan; on Debian's Python, with the client that the package brings."""

    def __init__(self, machine: Machine) -> None:
        identity = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--groups=tailspan")
        command = [*machine.prefix, "env", f"PYTHONPATH={CLIENT}", *identity, "python3", "-B", "-c", WORKER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def sent(self) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def finish(self) -> tuple[int, int, float]:
        """Requests sent, messages dropped, and the longest that a request was held up by the client, in ms."""
        said, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, said
        sent, dropped, slowest_ns = map(int, said.split())
        return sent, dropped, slowest_ns / 1e6


@contextlib.contextmanager
def worker(machine: Machine) -> Iterator[Worker]:
    running = Worker(machine)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.communicate(timeout=60)


def assert_explained(machine: Machine, after: int) -> None:
    """A user of the group sees a slow request later than that one, and what it waited for."""
    member = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--groups=tailspan", "tailspan")

    def slow() -> list[str]:
        done = machine.run(*member, "slow", "--json", check=False)
        known = json.loads(done.stdout)["requests"] if done.returncode == 0 else []
        numbers = {int(row["request_id"].lstrip("r")): row["request_id"] for row in known}
        return [named for number, named in numbers.items() if number > after and number % 20 == 0]

    eventually(slow, "a slow request is explained", seconds=60)
    verdict = json.loads(machine.run(*member, "explain", "--json", slow()[0]).stdout)["verdict"]
    print(verdict["sentence"])
    assert verdict["cause"] == "sleep"


def programs_held_by(machine: Machine, pid: int) -> set[int]:
    """The kernel's ids of BPF programs that a process inside holds."""
    found = set()
    for info in (machine.root / f"proc/{pid}/fdinfo").iterdir():
        found |= {int(number) for number in re.findall(r"^prog_id:\t(\d+)$", info.read_text(), re.M)}
    return found


def is_loaded(program: int) -> bool:
    libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
    fd: int = libbpf.bpf_prog_get_fd_by_id(program)
    if fd >= 0:
        os.close(fd)
    return fd >= 0


#: What changes with any package: files of dpkg, apt and the loader, and the copies that useradd's kin make.
KEPT_BY_OTHERS = re.compile(
    r"var/(lib/(dpkg|apt|systemd/deb-systemd-helper-\w+)(/|$)|cache/(apt|ldconfig|debconf)/|log/)"
    r"|etc/ld\.so\.cache$|etc/(passwd|group|shadow|gshadow|subuid|subgid)-$"
)


def files_of(machine: Machine) -> dict[str, str]:
    """Owner, mode and content of all that the machine keeps on its disk, by path."""
    found = {}
    for top in ("etc", "home", "opt", "root", "srv", "usr", "var"):
        for folder, folders, files in os.walk(machine.root / top):
            for name in (*folders, *files):
                path = Path(folder, name)
                relative = str(path.relative_to(machine.root))
                if not KEPT_BY_OTHERS.match(relative):
                    found[relative] = _described(path)
    return found


def _described(path: Path) -> str:
    status = path.lstat()
    content = str(path.readlink()) if path.is_symlink() else ""
    if stat.S_ISREG(status.st_mode):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{status.st_uid}:{status.st_gid} {status.st_mode:o} {content}"


def differences(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {
        path: (before.get(path, ""), after.get(path, ""))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    }


def assert_nobody_knows_it(machine: Machine) -> None:
    """No user, no group, no unit, no cgroup, no socket."""
    for database in ("passwd", "group"):
        assert machine.run("getent", database, "tailspan", check=False).stdout == ""
    units = machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "tailspan*").stdout
    files = machine.run("systemctl", "list-unit-files", "--no-legend", "tailspan*", check=False).stdout
    assert (units, files) == ("", "")
    assert not list((machine.root / "sys/fs/cgroup").rglob("tailspan*"))
    assert not (machine.root / "run/tailspan").exists()
