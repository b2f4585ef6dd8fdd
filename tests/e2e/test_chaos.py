"""Each fault on the agent itself, once and for a moment. ``make chaos`` has them for as long as it is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import report
from tests.chaos.fault import discover

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

ROOT = Path(__file__).parents[2]


def test_each_fault_leaves_the_worker_unharmed_and_nothing_uncounted(tmp_path: Path) -> None:
    # A process of its own: its mounts are seen by nobody else
    command = [sys.executable, "-m", "tests.chaos", "--short", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, check=False
    )
    print(done.stderr)
    assert done.returncode == 0, done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert {each["fault"] for each in found["rounds"]} == discover().keys()
    assert all(each["asked"] > 0 and each["uncounted"] == 0 for each in found["rounds"])
    assert {each["fault"] for each in found["rounds"] if each["outcome"] != "alive"} <= {
        name for name, fault in discover().items() if fault.lethal
    }
    # AND each fault can be seen to have been one
    assert all(sum(each["did"].values()) > 0 for each in found["rounds"])
    # AND the page has a line of each
    assert all(f"`{name}`: " in report.page(found) for name in discover())
