from __future__ import annotations

import json
from pathlib import Path

from tests.unit.cli.conftest import Run


def test_slow_requests_are_added_up(run: Run, store: Path) -> None:
    body = json.loads(run("top", "--store", store, "--json").out)
    assert body["requests"] == 2
    assert [(cause["name"], cause["requests"]) for cause in body["causes"]] == [("run_queue", 2)]


def test_since_leaves_older_ones_out(run: Run, store: Path) -> None:
    done = run("top", "--store", store, "--since", "5m")
    assert done.code == 0
    assert done.out.startswith("1 slow request\n")


def test_nothing_to_add_up_is_exit_code_1(run: Run, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    done = run("top", "--store", tmp_path / "s")
    assert (done.code, done.out) == (1, "")
    assert "no slow request" in done.err
