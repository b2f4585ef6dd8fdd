"""The service under a systemd that has all of cgroup v2: in an emulated machine, with a stock kernel.

``TAILSPAN_GUESTS=1 pytest -s tests/systemd/test_guest.py``; it takes some minutes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.guest import Guest

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.environ.get("TAILSPAN_GUESTS") != "1", reason="emulated; TAILSPAN_GUESTS=1 runs it"),
]

STEPS = "accepts_the_units or is_ready or capabilities or holds_it"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_it_starts_and_is_held_to_its_limits(series: str, tmp_path: Path) -> None:
    script = f"{sys.executable} -m pytest -s -p no:cacheprovider tests/systemd/test_service.py -k '{STEPS}'"
    ended = Guest(series).run(script, tmp_path, timeout_s=800)
    print(ended.output)
    assert ended.status == 0
    assert "skipped" not in ended.output
