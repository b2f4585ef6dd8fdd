"""The control socket: what is done for an asker only ends when he goes."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tailspan.control import MAX_CLIENTS, ControlServer, Pending
from tests.conftest import eventually


class Job:
    """Lasts until it is told to end, or its asker goes."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | None = None
        self.has_gone = False

    def __call__(self) -> dict[str, Any] | None:
        return self.answer

    def gone(self) -> None:
        self.has_gone = True


@pytest.fixture
def job() -> Job:
    return Job()


@pytest.fixture
def server(tmp_path: Path, job: Job) -> Iterator[ControlServer]:
    def handler(request: dict[str, Any]) -> Pending:
        return job if request.get("do") == "work" else (lambda: {"ok": True})

    control = ControlServer(tmp_path / "control.sock", handler)
    yield control
    control.close()


def asker(tmp_path: Path, line: bytes) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(20)
    connection.connect(str(tmp_path / "control.sock"))
    connection.sendall(line)
    return connection


def test_many_who_connect_at_once_do_not_wait_for_one_another(server: ControlServer, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        asking = [stack.enter_context(asker(tmp_path, b'{"do": "health"}\n')) for _ in range(13)]
        server.poll()
        assert [json.loads(each.recv(1000)) for each in asking] == [{"ok": True}] * 13


def test_work_goes_on_while_its_asker_waits_and_is_answered(
    server: ControlServer, job: Job, tmp_path: Path
) -> None:
    with asker(tmp_path, b'{"do": "work"}\n') as connection:
        for _ in range(7):
            server.poll()
        assert not job.has_gone
        job.answer = {"ok": True, "found": 23}
        server.poll()
        assert json.loads(connection.recv(4096)) == {"ok": True, "found": 23}
    assert not job.has_gone


def test_work_is_told_when_its_asker_has_gone(server: ControlServer, job: Job, tmp_path: Path) -> None:
    connection = asker(tmp_path, b'{"do": "work"}\n')
    for _ in range(3):
        server.poll()
    connection.close()

    def polled() -> bool:
        server.poll()
        return job.has_gone

    eventually(polled, "it is told")
    assert not server._clients


def test_a_question_is_answered_to_one_who_has_nothing_more_to_say(server: ControlServer, tmp_path: Path) -> None:
    with asker(tmp_path, b'{"do": "ask"}\n') as connection:
        connection.shutdown(socket.SHUT_WR)
        server.poll()
        assert json.loads(connection.recv(4096)) == {"ok": True}


@pytest.mark.parametrize("line", [b"[" * 3000, b'{"a":' * 700, b"\xff\xfe", b"9" * 4000, b"nul", b""])
def test_what_is_no_request_is_answered_and_ends_nothing(
    server: ControlServer, tmp_path: Path, line: bytes
) -> None:
    with asker(tmp_path, line + b"\n") as connection:
        server.poll()
        assert json.loads(connection.recv(4096))["ok"] is False


def test_so_many_ask_at_a_time_and_no_more(server: ControlServer, job: Job, tmp_path: Path) -> None:
    # GIVEN as many who wait for their answers as there may be
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CLIENTS):
            stack.enter_context(asker(tmp_path, b'{"do": "work"}\n'))
            server.poll()
        # WHEN one more asks
        refused = stack.enter_context(asker(tmp_path, b'{"do": "work"}\n'))
        server.poll()
        # THEN he is told, and the others still wait
        assert json.loads(refused.recv(4096)) == {"ok": False, "error": f"{MAX_CLIENTS} others ask already"}
        assert not job.has_gone
    # AND when they have gone there is room
    for _ in range(2):
        server.poll()
    with asker(tmp_path, b'{"do": "anything"}\n') as connection:
        server.poll()
        assert json.loads(connection.recv(4096)) == {"ok": True}
