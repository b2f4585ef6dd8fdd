"""What systemd is told, when it is told, and which of its sockets are taken."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tailspan import service
from tests.conftest import eventually


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """The other end of NOTIFY_SOCKET."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    channel.bind(str(tmp_path / "notify"))
    channel.settimeout(20)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return channel


def test_a_state_is_one_datagram(systemd: socket.socket) -> None:
    with systemd:
        service.notify("READY=1")
        assert systemd.recv(4096) == b"READY=1"


def test_an_abstract_address_begins_with_an_at_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"tailspan-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"\0{name}")
        channel.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        service.notify("READY=1")
        assert channel.recv(4096) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@nobody-listens-here"])
def test_where_nobody_listens_nothing_happens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    service.notify("READY=1")


def test_a_reload_says_when_it_began(systemd: socket.socket) -> None:
    with systemd:
        before = time.monotonic_ns() // 1000
        service.notify_reloading()
        first, second = systemd.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    name, _, began = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(began) <= time.monotonic_ns() // 1000


def test_signs_of_life_come_three_times_in_the_watchdogs_time(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with systemd:
        watchdog = service.Watchdog()
        began_s = time.monotonic()
        # WHEN a loop turns for longer than the half of it
        while time.monotonic() - began_s < 0.35:
            watchdog.ping()
        turns = int((time.monotonic() - began_s) / 0.2) + 1
        systemd.setblocking(False)
        told = [systemd.recv(4096) for _ in range(turns)]
        assert told == [b"WATCHDOG=1"] * turns
        with pytest.raises(BlockingIOError):
            systemd.recv(4096)


@pytest.mark.parametrize(("microseconds", "pid"), [("", ""), ("0", ""), ("soon", ""), ("-1", ""), ("600000", "1")])
def test_without_a_watchdog_of_its_own_it_is_silent(
    microseconds: str, pid: str, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", pid or str(os.getpid()))
    with systemd:
        service.Watchdog().ping()
        systemd.setblocking(False)
        with pytest.raises(BlockingIOError):
            systemd.recv(4096)


#: A process that is handed descriptors as systemd does it; says what it took, and what a child of it sees.
TAKE = """
import logging, os, socket, subprocess, sys
from pathlib import Path
from tailspan import service
logging.basicConfig(format="%(message)s")
taken = service.inherited(Path(sys.argv[1]), socket.SOCK_SEQPACKET)
print(taken and (taken.fileno(), taken.getsockname(), taken.getblocking(), taken.get_inheritable()))
print([fd for fd in (3, 4) if os.path.exists(f"/proc/self/fd/{fd}")])
print(sorted(name for name in os.environ if name.startswith("LISTEN_")))
"""


def take(path: Path, *handed: socket.socket, pid: str = "$$", count: str = "") -> tuple[list[str], str]:
    """The lines it prints, and what it logs."""
    moves = "".join(f"exec {3 + n}<&{given.fileno()}; " for n, given in enumerate(handed))
    variables = f"LISTEN_PID={pid} LISTEN_FDS={count or len(handed)} LISTEN_FDNAMES=worker"
    done = subprocess.run(
        ["bash", "-c", f'{moves}{variables} exec "$@"', "-", sys.executable, "-c", TAKE, path],
        pass_fds=[given.fileno() for given in handed],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.splitlines(), done.stderr


def listener(path: Path, kind: socket.SocketKind = socket.SOCK_SEQPACKET) -> socket.socket:
    # Above 10: the first ones are to be given away.
    made = socket.socket(socket.AF_UNIX, kind)
    high = socket.socket(fileno=fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, 20))
    made.close()
    high.bind(str(path))
    if kind != socket.SOCK_DGRAM:
        high.listen(8)
    return high


def test_the_socket_at_the_path_is_taken_and_hidden_from_children(tmp_path: Path) -> None:
    path = tmp_path / "worker.sock"
    with listener(path) as given:
        lines, logged = take(path, given)
    assert lines == [f"(3, '{path}', False, False)", "[3]", "[]"]
    assert logged == ""


def test_a_path_through_a_link_is_the_same_socket(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with listener(tmp_path / "run" / "worker.sock") as given:
        lines, _ = take(tmp_path / "link" / "worker.sock", given)
    assert lines[0].startswith("(3, ")


def test_what_is_not_for_it_is_closed_and_said(tmp_path: Path) -> None:
    path = tmp_path / "worker.sock"
    with listener(tmp_path / "other.sock") as other, listener(path, socket.SOCK_STREAM) as stream:
        lines, logged = take(path, other, stream)
    assert lines == ["None", "[]", "[]"]
    assert f"descriptor 3 ({tmp_path / 'other.sock'}), which is not for {path}: closed" in logged
    assert "descriptor 4" in logged


def test_a_socket_that_does_not_listen_is_not_taken(tmp_path: Path) -> None:
    with listener(tmp_path / "worker.sock", socket.SOCK_DGRAM) as given:
        lines, logged = take(tmp_path / "worker.sock", given)
    assert lines[0] == "None"
    assert "no listener" in logged


@pytest.mark.parametrize(("pid", "count"), [("1", "1"), ("$$", "0"), ("$$", "many"), ("", "1")])
def test_what_was_meant_for_another_process_is_left_alone(pid: str, count: str, tmp_path: Path) -> None:
    path = tmp_path / "worker.sock"
    with listener(path) as given:
        lines, logged = take(path, given, pid=pid, count=count)
    assert lines == ["None", "[3]", "[]"]
    assert logged == ""


def test_a_count_beyond_what_was_handed_over_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "worker.sock"
    with listener(path) as given:
        lines, _ = take(path, given, count="2")
    assert lines[0].startswith("(3, ")


def test_a_client_waits_in_it_for_the_next_agent(tmp_path: Path) -> None:
    # GIVEN a listener that nobody accepts from
    path = tmp_path / "worker.sock"
    with listener(path) as given, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.setblocking(False)
        client.connect(str(path))
        client.send(b"early")
        eventually(lambda: take(path, given)[0][0].startswith("(3, "), "a process took it and ended")
        accepted, _ = given.accept()
        with accepted:
            assert accepted.recv(64) == b"early"
