from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tailspan.export import segment
from tests.unit.cli.conftest import FAST, ONE, TWO, Run

NOBODY = 65534


def test_every_stored_request_is_judged_again_oldest_first(run: Run, store: Path) -> None:
    done = run("replay", store)
    assert (done.code, done.err) == (0, "")
    assert [line[:32] for line in done.out.splitlines()] == [FAST, ONE, TWO]
    assert all("  run_queue  " in line for line in done.out.splitlines())


def test_single_file_is_replayed_as_the_store_is_byte_for_byte(run: Run, store: Path) -> None:
    (path,) = store.iterdir()
    assert run("replay", path).out == run("replay", store).out
    assert run("replay", path, "--json").out == run("replay", store, "--json").out


def test_json_is_one_object_a_line(run: Run, store: Path) -> None:
    bodies = [json.loads(line) for line in run("replay", store, "--json").out.splitlines()]
    assert [body["request"]["trace_id"] for body in bodies] == [FAST, ONE, TWO]


@pytest.mark.skipif(os.geteuid() != 0, reason="drops to an ordinary user: needs root")
def test_ordinary_user_can_replay(run: Run, store: Path, nobodys_python: tuple[str, dict[str, str]]) -> None:
    # GIVEN a segment that an ordinary user may read, as if it was sent to them
    interpreter, environment = nobodys_python
    (path,) = store.iterdir()
    path.chmod(0o644)
    with path.open("rb") as file:
        done = subprocess.run(
            [interpreter, "-m", "tailspan", "replay", "/dev/stdin"],
            env=environment,
            cwd="/",
            stdin=file,
            capture_output=True,
            text=True,
            user=NOBODY,
            timeout=60,
        )
    # THEN the verdicts are the ones that root gets
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("replay", store).out


def test_damage_is_told_and_exit_code_1(run: Run, store: Path) -> None:
    (path,) = store.iterdir()
    data = bytearray(path.read_bytes())
    data[-5] ^= 0xFF
    path.write_bytes(data)
    done = run("replay", path)
    assert done.code == 1
    assert len(done.out.splitlines()) == 2
    assert done.err.startswith("tailspan: 1 damaged: ")


def test_file_of_a_newer_schema_cannot_be_read(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = store.iterdir()
    monkeypatch.setattr(segment, "SCHEMA_VERSION", 0)
    done = run("replay", path)
    assert done.code == 3
    assert "this tailspan reads up to 0; upgrade it" in done.err


def test_file_that_is_no_segment_cannot_be_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.tspan").write_text("hello")
    done = run("replay", tmp_path / "x.tspan")
    assert (done.code, done.out) == (3, "")
    assert done.err.count("\n") == 1


def test_store_without_requests_is_not_found(run: Run, tmp_path: Path) -> None:
    done = run("replay", tmp_path)
    assert (done.code, done.err) == (1, f"tailspan: no request in {tmp_path}\n")
