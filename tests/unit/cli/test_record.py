from __future__ import annotations

import os
from pathlib import Path

import pytest

from tailspan.config import Config
from tailspan.errors import CannotError
from tests.unit.cli.conftest import ONE, TWO, Daemon, Run, fill, request


@pytest.fixture
def recording(daemon: Daemon) -> Daemon:
    """A daemon that stores two requests."""
    daemon.work = lambda config: fill(Path(config.store.path), request(ONE), request(TWO))
    return daemon


def test_directory_becomes_a_store_of_every_request_and_nothing_is_exported(
    run: Run, recording: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1")
    done = run("record", "--for", "23s", "-o", tmp_path / "r", "--pid", "29")
    assert done.code == 0
    config = recording.config
    assert config is not None
    assert recording.seconds == 23.0
    assert (config.store.keep, config.export.prometheus, config.follow.pids) == ("all", "", (29,))
    assert config.store.path == str(tmp_path / "r")
    assert not [name for name in os.environ if name.startswith("OTEL_EXPORTER_OTLP_")]
    assert run("replay", tmp_path / "r").out.count("\n") == 2


def test_control_socket_of_the_hosts_agent_is_left_alone(run: Run, recording: Daemon, tmp_path: Path) -> None:
    run("record", "--for", "1s", "-o", tmp_path / "r")
    assert recording.config is not None
    assert recording.config.agent.control != Config().agent.control
    assert not Path(recording.config.agent.control).parent.exists()


def test_file_gets_all_segments_in_order_and_no_scratch_stays(run: Run, daemon: Daemon, tmp_path: Path) -> None:
    # GIVEN an agent whose recording takes two segments
    def work(config: Config) -> None:
        for trace in (ONE, TWO):
            fill(Path(config.store.path), request(trace))

    daemon.work = work
    # WHEN it is recorded to a file
    path = tmp_path / "incident.tspan"
    done = run("record", "--for", "1s", "-o", path)
    # THEN that has both requests, oldest first, with their index rows
    assert (done.code, done.err) == (0, f"tailspan: 2 requests in {path}\n")
    assert [line[:32] for line in run("replay", path).out.splitlines()] == [ONE, TWO]
    assert f"trace {TWO}" in run("explain", TWO[:8], "--store", path).out
    assert list(tmp_path.iterdir()) == [path]


def test_existing_file_is_never_overwritten(run: Run, recording: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "incident.tspan"
    path.write_text("precious")
    done = run("record", "--for", "1s", "-o", path)
    assert done.code == 2
    assert "never overwrites" in done.err
    assert path.read_text() == "precious"
    assert recording.config is None


def test_agent_that_cannot_start_leaves_nothing_behind(run: Run, daemon: Daemon, tmp_path: Path) -> None:
    def work(config: Config) -> None:
        raise CannotError("needs root")

    daemon.work = work
    done = run("record", "--for", "1s", "-o", tmp_path / "incident.tspan")
    assert (done.code, done.err) == (3, "tailspan: needs root\n")
    assert list(tmp_path.iterdir()) == []


def test_recording_of_nothing_is_told(run: Run, daemon: Daemon, tmp_path: Path) -> None:
    done = run("record", "--for", "1s", "-o", tmp_path / "incident.tspan")
    assert (done.code, done.err) == (0, f"tailspan: 0 requests in {tmp_path / 'incident.tspan'}\n")


def test_place_that_is_not_there_cannot_be_recorded_to(run: Run, recording: Daemon, tmp_path: Path) -> None:
    done = run("record", "--for", "1s", "-o", tmp_path / "absent" / "incident.tspan")
    assert done.code == 3
    assert "No such file or directory" in done.err


def test_time_must_be_given(run: Run, recording: Daemon, tmp_path: Path) -> None:
    assert run("record", "-o", tmp_path / "r").code == 2
    assert run("record", "--for", "0", "-o", tmp_path / "r").code == 2
    assert recording.config is None
