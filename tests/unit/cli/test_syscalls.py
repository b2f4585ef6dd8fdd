from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Run

ROW = {
    "pid": 8100,
    "syscall": "futex",
    "count": 23,
    "total_ns": 70_000_000,
    "p50_ns": 2_000_000,
    "p99_ns": 4_000_000,
    "max_slot_ns": 8_000_000,
}
Serve = Callable[[bytes], list[dict[str, Any]]]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """An agent that gives one answer; the list gets what it was asked."""
    path = tmp_path / "control.sock"
    monkeypatch.setenv("TAILSPAN_AGENT_CONTROL", str(path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.settimeout(20)
    threads: list[threading.Thread] = []

    def serve(answer: bytes) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []
        listener.bind(str(path))
        listener.listen()

        def answer_one() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as file:
                asked.append(json.loads(file.readline()))
                file.write(answer)

        threads.append(threading.Thread(target=answer_one))
        threads[-1].start()
        return asked

    yield serve
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    listener.close()


def test_agent_is_asked_and_its_rows_are_a_table(run: Run, serve: Serve) -> None:
    asked = serve(json.dumps({"ok": True, "rows": [ROW]}).encode() + b"\n")
    done = run("syscalls", "--for", "23s")
    assert done.code == 0
    assert asked == [{"do": "syscalls", "seconds": 23.0}]
    assert done.out.splitlines()[1].split()[:4] == ["8100", "futex", "23", "70.0"]


def test_cost_is_told_beside_the_results(run: Run, serve: Serve) -> None:
    call = {"tid": 8101, "pid": 8100, "syscall": "futex", "enter_mono_ns": 5, "ns": 7}
    serve(json.dumps({"ok": True, "rows": [ROW], "slowest": [call]}).encode() + b"\n")
    done = run("syscalls", "--for", "1s", "--json")
    assert json.loads(done.out) == {"rows": [ROW], "slowest": [call]}
    assert "200 ns dearer" in done.err


def test_no_system_calls_is_exit_code_1(run: Run, serve: Serve) -> None:
    serve(b'{"ok": true, "rows": []}\n')
    done = run("syscalls", "--for", "1s")
    assert (done.code, done.out) == (1, "")
    assert "no followed process" in done.err


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b'{"ok": false, "error": "probe syscalls: refused"}\n', "probe syscalls: refused"),
        (b"", "no JSON"),
        (b"[]\n", "no JSON object"),
        (b'{"ok": true}\n', "another version"),
        (b'{"ok": true, "rows": [{"pid": 1}]}\n', "another version"),
        (b'{"ok": true, "rows": 23}\n', "another version"),
    ],
)
def test_agent_that_cannot_is_exit_code_3(answer: bytes, said: str, run: Run, serve: Serve) -> None:
    serve(answer)
    done = run("syscalls", "--for", "1s")
    assert (done.code, done.out) == (3, "")
    assert said in done.err


def test_no_agent_is_exit_code_3(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILSPAN_AGENT_CONTROL", str(tmp_path / "absent.sock"))
    done = run("syscalls", "--for", "1s")
    assert done.code == 3
    assert "no agent answers on" in done.err


def test_time_must_be_given(run: Run) -> None:
    assert run("syscalls").code == 2
