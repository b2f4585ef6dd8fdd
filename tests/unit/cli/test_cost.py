"""``tailspan cost``: what it asks the agent, and what it says when there is none, or nothing to measure."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tailspan.collect.bpf import libbpf
from tailspan.errors import ProbeError
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_health import Serve, serve  # noqa: F401 # the fixture
from tests.unit.views.test_cost import answer, measured


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Descriptors that statistics were switched on by."""
    found: list[int] = []

    def enable() -> int:
        found.append(os.open(tmp_path, os.O_RDONLY))
        return found[-1]

    monkeypatch.setattr(libbpf, "enable_statistics", enable)
    return found


def test_statistics_of_bpf_programs_are_on_while_it_looks_and_no_longer(
    run: Run,
    serve: Serve,  # noqa: F811
    opened: list[int],
) -> None:
    asked = serve({"ok": True, **answer()})
    done = run("cost", "--seconds", "250ms")
    assert (done.code, done.err) == (0, "")
    assert asked == [{"do": "cost", "seconds": 0.25}]
    assert "cpu 2.13 % over 10 s" in done.out
    for descriptor in opened:
        with pytest.raises(OSError):
            os.fstat(descriptor)


def test_without_the_right_to_them_it_says_how_and_shows_the_rest(
    run: Run,
    serve: Serve,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused() -> int:
        raise ProbeError("no statistics of BPF programs: Operation not permitted")

    monkeypatch.setattr(libbpf, "enable_statistics", refused)
    monkeypatch.setattr("tailspan.cli.cost.SETTING", Path("/nonexistent"))
    asked = serve({"ok": True, **answer(bpf=None)})
    done = run("cost")
    assert done.code == 0
    assert asked == [{"do": "cost", "seconds": 0}]
    assert "Operation not permitted: run it as root, or set kernel.bpf_stats_enabled=1" in done.err
    assert done.err.count("\n") == 1


def test_a_measurement_says_first_what_it_does(run: Run, serve: Serve) -> None:  # noqa: F811
    asked = serve({"ok": True, **measured()})
    done = run("cost", "--measure", "60s", "--json")
    assert done.code == 0
    assert asked == [{"do": "cost", "measure": 60.0}]
    assert done.err.startswith("tailspan: for that long probes go off and on in turns of 2 s")
    assert json.loads(done.out)["differences"]["p50"]["told_apart"]


def test_what_the_agent_refuses_is_said_in_one_line(run: Run, serve: Serve) -> None:  # noqa: F811
    serve({"ok": False, "error": "no worker is followed: there is nothing to measure"})
    done = run("cost", "--measure", "16s")
    assert (done.code, done.out) == (3, "")
    assert done.err.splitlines()[-1] == (
        "tailspan: the agent cannot: no worker is followed: there is nothing to measure"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--measure", "0"), "'0' is no duration"),
        (("--measure", "-5"), "'-5' is no duration"),
        (("--measure", "15s"), "--measure: 16s to 600s"),
        (("--measure", "11m"), "--measure: 16s to 600s"),
        (("--seconds", "2m"), "--seconds: 0.1s to 60s"),
        (("--seconds", "soon"), "'soon' is no duration"),
    ],
)
def test_wrong_arguments_are_refused_before_anybody_is_asked(run: Run, given: tuple[str, str], said: str) -> None:
    done = run("cost", *given)
    assert done.code == 2
    assert said in done.err


def test_no_agent_and_one_of_another_version(
    run: Run,
    serve: Serve,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = os.environ["TAILSPAN_AGENT_CONTROL"]
    monkeypatch.setenv("TAILSPAN_AGENT_CONTROL", str(tmp_path / "nobody.sock"))
    done = run("cost")
    assert (done.code, done.out) == (3, "")
    assert "no agent answers on" in done.err
    monkeypatch.setenv("TAILSPAN_AGENT_CONTROL", path)
    serve({"ok": True, "agent": {}})
    done = run("cost")
    assert (done.code, done.out) == (3, "")
    assert "another version" in done.err
