"""``tailspan health`` asks the control socket, as the agent's own server answers it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tailspan.attribute.health import Grade, HostHealth, State, WorkerHealth
from tailspan.control import ControlServer
from tailspan.export.health import as_json
from tests.unit.cli.conftest import Run

Serve = Callable[[dict[str, Any]], list[dict[str, Any]]]


def report(state: State, score: float) -> dict[str, Any]:
    grade = Grade(state, score, (), "" if score == 100 else "23 of 100 requests took more than 200 ms")
    return {"ok": True, "unready": "", **as_json(HostHealth(grade, (WorkerHealth("web", grade, {8100: grade}),)))}


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """An agent that gives this answer to each; the list gets what it was asked."""
    path = tmp_path / "control.sock"
    monkeypatch.setenv("TAILSPAN_AGENT_CONTROL", str(path))
    ended = threading.Event()

    with contextlib.ExitStack() as stack:

        def serve(answer: dict[str, Any]) -> list[dict[str, Any]]:
            asked: list[dict[str, Any]] = []
            server = ControlServer(path, lambda request: asked.append(request) or (lambda: answer))
            stack.callback(server.close)

            def poll() -> None:
                while not ended.wait(0.005):
                    server.poll()

            thread = threading.Thread(target=poll)
            thread.start()
            stack.callback(thread.join, 20)
            stack.callback(ended.set)
            return asked

        yield serve


def test_the_agent_is_asked_and_its_answer_is_a_table(run: Run, serve: Serve) -> None:
    asked = serve(report(State.HEALTHY, 100.0))
    done = run("health")
    assert (done.code, done.err) == (0, "")
    assert asked == [{"do": "health"}]
    assert [line.split() for line in done.out.splitlines()[1:]] == [
        ["host", "healthy", "100"],
        ["web", "healthy", "100"],
    ]


@pytest.mark.parametrize(
    ("state", "score", "code"), [(State.WARNING, 63.0, 0), (State.UNKNOWN, 0.0, 0), (State.CRITICAL, 12.0, 1)]
)
def test_a_critical_host_is_exit_code_1(run: Run, serve: Serve, state: State, score: float, code: int) -> None:
    serve(report(state, score))
    assert run("health").code == code


def test_json_is_the_answer(run: Run, serve: Serve) -> None:
    answer = report(State.CRITICAL, 12.0)
    serve(answer)
    done = run("health", "--json")
    assert done.code == 1
    assert {"ok": True, **json.loads(done.out)} == answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"ok": False, "error": "the agent cannot do 'health'"}, "the agent cannot do 'health'"),
        ({"ok": True}, "another version"),
        ({"ok": True, "host": 23, "workers": [], "unready": ""}, "another version"),
        ({"ok": True, "host": "well", "workers": 23, "unready": ""}, "another version"),
    ],
)
def test_an_agent_that_cannot_is_exit_code_3(run: Run, serve: Serve, answer: dict[str, Any], said: str) -> None:
    serve(answer)
    done = run("health")
    assert (done.code, done.out) == (3, "")
    assert said in done.err


def test_no_agent_is_exit_code_3(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILSPAN_AGENT_CONTROL", str(tmp_path / "absent.sock"))
    done = run("health")
    assert done.code == 3
    assert "no agent answers on" in done.err
