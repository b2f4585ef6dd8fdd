from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.builders import WALL_NS
from tests.unit.cli.conftest import ONE, TWO, Run, fill, request


def test_request_is_found_by_the_beginning_of_its_trace_id(run: Run, store: Path) -> None:
    done = run("explain", ONE[:4], "--store", store)
    assert (done.code, done.err) == (0, "")
    assert f"trace {ONE}" in done.out
    assert "run queue" in done.out


def test_request_is_found_by_its_request_id_and_by_capital_hex(run: Run, store: Path) -> None:
    assert f"trace {ONE}" in run("explain", "req-1", "--store", store).out
    assert f"trace {TWO}" in run("explain", "AABB", "--store", store).out


def test_slowest_is_the_one_with_the_longest_wall_time(run: Run, store: Path) -> None:
    assert f"trace {TWO}" in run("explain", "--slowest", "--store", store).out


def test_json_is_the_judged_request(run: Run, store: Path) -> None:
    body = json.loads(run("explain", "req-1", "--store", store, "--json").out)
    assert body["request"]["trace_id"] == ONE
    assert sum(part["ns"] for part in body["ledger"]) == WALL_NS


def test_ambiguous_beginning_lists_candidates_and_is_a_usage_error(run: Run, store: Path) -> None:
    done = run("explain", "aa", "--store", store)
    assert (done.code, done.out) == (2, "")
    lines = done.err.splitlines()
    assert [line.split()[0] for line in lines[:2]] == [TWO, ONE]
    assert lines[2] == "tailspan: aa may be any of these 2 requests: give more of an id"


def test_whole_id_wins_over_ids_that_only_begin_so(run: Run, tmp_path: Path) -> None:
    fill(tmp_path / "s", request(ONE, request_id="req-1"), request(TWO, request_id="req-11"))
    assert f"trace {ONE}" in run("explain", "req-1", "--store", tmp_path / "s").out


def test_request_that_was_stored_twice_is_one(run: Run, tmp_path: Path) -> None:
    fill(tmp_path / "s", request(ONE), request(ONE))
    assert run("explain", ONE[:8], "--store", tmp_path / "s").code == 0


def test_many_candidates_are_not_all_listed(run: Run, tmp_path: Path) -> None:
    fill(tmp_path / "s", *(request(f"aa{at:02}" + "0" * 28) for at in range(23)))
    done = run("explain", "aa", "--store", tmp_path / "s")
    assert done.err.splitlines()[10] == "and 13 more"


def test_unknown_request_says_where_it_was_looked_for(run: Run, store: Path) -> None:
    done = run("explain", "ffff", "--store", store)
    assert (done.code, done.err) == (1, f"tailspan: no request ffff in {store}, which holds 3\n")


def test_missing_store_is_not_found(run: Run, tmp_path: Path) -> None:
    done = run("explain", "ffff", "--store", tmp_path / "nowhere")
    assert (done.code, done.err) == (1, f"tailspan: no segments at {tmp_path / 'nowhere'}\n")


def test_one_request_must_be_named(run: Run, store: Path) -> None:
    for argv in ([], [ONE, "--slowest"]):
        assert run("explain", *argv, "--store", store).code == 2


def test_index_row_without_its_evidence_is_a_damaged_segment(run: Run, tmp_path: Path) -> None:
    evidence, _ = request(ONE)
    _, other = request(TWO)
    fill(tmp_path / "s", (evidence, other))
    done = run("explain", TWO[:8], "--store", tmp_path / "s")
    assert done.code == 3
    assert "does not hold it" in done.err


def test_damaged_payload_is_one_line(run: Run, store: Path) -> None:
    (path,) = store.iterdir()
    data = bytearray(path.read_bytes())
    data[-5] ^= 0xFF
    path.write_bytes(data)
    done = run("explain", "req-2", "--store", store)
    assert done.code == 3
    assert "CRC" in done.err
    assert done.err.count("\n") == 1


def test_store_of_the_configuration_is_the_default(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILSPAN_STORE_PATH", str(store))
    assert run("explain", "req-1").code == 0
