from __future__ import annotations

from typing import Any

import pytest

from tailspan.attribute.health import Grade, HostHealth, State, WorkerHealth
from tailspan.export.health import as_json
from tailspan.views import health

WELL = Grade(State.HEALTHY, 93.4)
ILL = Grade(State.CRITICAL, 12.0, (), "its threads waited for a CPU for 44% of the time that they could run")


def answer(*workers: WorkerHealth, host: Grade = WELL, unready: str = "") -> dict[str, Any]:
    return {"unready": unready, **as_json(HostHealth(host, workers))}


def test_the_host_comes_first_then_each_service() -> None:
    text = health.as_text(answer(WorkerHealth("web", WELL, {8100: WELL})), 80)
    assert text.splitlines() == [
        "      state    score  why",
        "host  healthy     93",
        "web   healthy     93",
    ]


def test_processes_are_shown_where_there_are_several() -> None:
    chat = WorkerHealth("chat", ILL, {8200: ILL, 8201: WELL})
    lines = health.as_text(answer(chat, host=ILL), 120).splitlines()
    assert [line[:10].rstrip() for line in lines] == ["", "host", "chat", "  pid 8200", "  pid 8201"]
    assert lines[3].endswith("12  its threads waited for a CPU for 44% of the time that they could run")


def test_why_gives_way_to_the_width() -> None:
    lines = health.as_text(answer(WorkerHealth("chat", ILL), host=ILL), 60).splitlines()
    assert max(map(len, lines)) == 60
    assert lines[-1].endswith("…")


def test_what_is_not_known_is_a_dash_and_a_host_without_workers_says_so() -> None:
    lines = health.as_text(answer(host=Grade()), 80).splitlines()
    assert lines[1].split() == ["host", "unknown", "-"]
    assert lines[2] == "no worker has said that it serves requests"


def test_what_is_not_graded_is_told() -> None:
    assert health.as_text(answer() | {"ungraded": 23}).endswith(
        "\n23 more processes of workers are not told apart"
    )


def test_an_agent_that_is_not_ready_says_why_first() -> None:
    text = health.as_text(answer(unready="evidence cannot be stored: enospc"), 80)
    assert text.startswith("the agent is not ready: evidence cannot be stored: enospc\n")


def test_names_of_others_do_not_reach_the_terminal_as_they_are() -> None:
    assert "\x1b" not in health.as_text(answer(WorkerHealth("\x1b[2J", WELL)), 80)


@pytest.mark.parametrize("broken", [{}, {"host": None}, {"host": {}, "workers": [], "unready": ""}])
def test_an_answer_of_another_version_raises(broken: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError)):
        health.as_text(broken)


def test_what_the_agent_does_without_is_said_first() -> None:
    text = health.as_text(answer() | {"shed": ["syscalls", "slices"]})
    assert text.splitlines()[0] == "the agent sheds syscalls, slices to stay in its budget: see tailspan cost"
    assert "budget" not in health.as_text(answer() | {"shed": []})
