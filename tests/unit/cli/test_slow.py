from __future__ import annotations

import json
import os
import time
from pathlib import Path

from tailspan.export.segment import FILE_HEADER_SIZE
from tests.unit.cli.conftest import FAST, ONE, TWO, Run, fill, request


def traces(run: Run, *argv: object) -> list[str]:
    return [row["trace_id"] for row in json.loads(run("slow", *argv, "--json").out)["requests"]]


def test_slow_requests_are_listed_newest_first(run: Run, store: Path) -> None:
    assert traces(run, "--store", store) == [TWO, ONE]
    done = run("slow", "--store", store)
    assert (done.code, done.err) == (0, "")
    assert [line.split()[-1] for line in done.out.splitlines()[1:]] == [TWO[:8], ONE[:8]]


def test_all_lists_those_that_were_not_slow_too(run: Run, store: Path) -> None:
    assert traces(run, "--store", store, "--all") == [TWO, ONE, FAST]


def test_last_and_since_narrow_the_list(run: Run, store: Path) -> None:
    assert traces(run, "--store", store, "--last", "1") == [TWO]
    assert traces(run, "--store", store, "--since", "10m") == [TWO]
    assert traces(run, "--store", store, "--since", "1.5h") == [TWO, ONE]


def test_nothing_found_is_exit_code_1_and_says_so(run: Run, store: Path) -> None:
    done = run("slow", "--store", store, "--since", "1s")
    assert (done.code, done.out) == (1, "")
    assert done.err == f"tailspan: no slow request in {store} (0 stored)\n"


def test_nothing_found_is_an_empty_list_in_json(run: Run, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    done = run("slow", "--store", tmp_path / "s", "--json")
    assert (done.code, json.loads(done.out)) == (1, {"requests": []})


def test_damage_is_counted_and_the_rest_is_listed(run: Run, tmp_path: Path) -> None:
    # GIVEN a segment of two requests, whose first block's magic is damaged
    fill(tmp_path / "s", request(ONE), request(TWO))
    (path,) = (tmp_path / "s").iterdir()
    data = bytearray(path.read_bytes())
    data[FILE_HEADER_SIZE] ^= 0xFF
    path.write_bytes(data)
    # THEN the other one is listed, and the damage is told
    done = run("slow", "--store", tmp_path / "s")
    assert done.code == 0
    assert len(done.out.splitlines()) == 2
    assert done.err.startswith("tailspan: 1 damaged: ")
    assert done.err.count("\n") == 1


def test_files_that_were_written_before_the_last_ones_ended_are_not_read(run: Run, tmp_path: Path) -> None:
    # GIVEN an old segment that is damaged, and one of a minute ago
    fill(tmp_path / "s", request(ONE, ended_s_ago=3600))
    (old,) = (tmp_path / "s").iterdir()
    old.write_bytes(old.read_bytes()[:-1] + b"\0" * 100)
    os.utime(old, (time.time() - 3590,) * 2)
    fill(tmp_path / "s", request(TWO, ended_s_ago=60))
    # THEN one is listed without a look at the old segment; for two it is read, and its damage told
    done = run("slow", "--store", tmp_path / "s", "--last", 1)
    assert TWO[:8] in done.out
    assert done.err == ""
    assert "damaged" in run("slow", "--store", tmp_path / "s", "--last", 2).err


def test_what_ended_last_is_first_whichever_file_it_is_in(run: Run, tmp_path: Path) -> None:
    # GIVEN an older segment that was still being written when what the newer one has had ended
    fill(tmp_path / "s", request(TWO, ended_s_ago=10))
    fill(tmp_path / "s", request(ONE, ended_s_ago=60), request(FAST, ended_s_ago=50))
    assert traces(run, "--store", tmp_path / "s", "--last", 2) == [TWO, FAST]
