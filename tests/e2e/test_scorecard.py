"""The short form of the scorecard: few faults, few requests, softer goals; see :mod:`tests.scorecard`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]


@pytest.mark.skipif(os.cpu_count() == 1, reason="the worker has a CPU of its own")
def test_the_short_scorecard_meets_its_goals(tmp_path: Path) -> None:
    file = tmp_path / "scorecard.json"
    command = [sys.executable, "-m", "tests.scorecard", "--short", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["missed"] == []
    assert len(found["faults"]) >= 5
    assert all(fault["slow"] >= 8 for fault in found["faults"].values())
