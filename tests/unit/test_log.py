from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailspan import log

SCRIPT = """
import logging
from tailspan import log
log.set_up()
logging.getLogger("tailspan.daemon").warning("two\\nlines")
logging.getLogger("tailspan.daemon").debug("not shown")
try:
    raise ValueError("23")
except ValueError:
    logging.getLogger("tailspan.daemon").exception("broken")
"""


def stderr_of(script: str, tmp_path: Path, journal: bool) -> str:
    """Runs it with stderr in a file, which JOURNAL_STREAM names or not."""
    path = tmp_path / "stderr"
    with path.open("w") as file:
        status = os.fstat(file.fileno())
        stream = f"{status.st_dev}:{status.st_ino}" if journal else "1:1"
        environ = os.environ | {"JOURNAL_STREAM": stream}
        subprocess.run([sys.executable, "-c", script], stderr=file, env=environ, check=True, timeout=60)
    return path.read_text()


def test_every_line_has_its_priority_where_the_journal_listens(tmp_path: Path) -> None:
    lines = stderr_of(SCRIPT, tmp_path, journal=True).splitlines()
    assert lines[:3] == ["<4>tailspan.daemon: two", "<4>lines", "<3>tailspan.daemon: broken"]
    assert lines[3] == "<3>Traceback (most recent call last):"
    assert all(line.startswith("<3>") for line in lines[3:])


def test_stderr_that_is_not_the_journals_stream_gets_plain_lines_with_a_time(tmp_path: Path) -> None:
    first, *_ = stderr_of(SCRIPT, tmp_path, journal=False).splitlines()
    assert first.endswith(" WARNING tailspan.daemon: two")
    assert first[:2] == "20"


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(log, "time", clock)
    log._brakes.clear()
    yield clock
    log._brakes.clear()


logger = logging.getLogger("tailspan.test")


def test_repetition_is_suppressed_counted_and_told(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    before = log.suppressed_total()
    # GIVEN 23 warnings of one key within its interval
    for at in range(23):
        log.once_per(60, "lost", logger, "lost %d", at)
    assert caplog.messages == ["lost 0"]
    assert log.suppressed_total() - before == 22
    # WHEN the interval is over
    clock.now += 60
    log.once_per(60, "lost", logger, "lost %d", 23)
    # THEN the next one tells of them, and the one after that does not
    clock.now += 60
    log.once_per(60, "lost", logger, "lost %d", 24)
    assert caplog.messages == ["lost 0", "lost 23 (22 more like it suppressed)", "lost 24"]


def test_keys_do_not_suppress_each_other(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    log.once_per(60, "a", logger, "a")
    log.once_per(60, "b", logger, "b")
    assert caplog.messages == ["a", "b"]


def test_keys_are_bounded(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for key in range(log.MAX_KEYS + 1):
        log.once_per(60, str(key), logger, "once")
    assert len(log._brakes) == log.MAX_KEYS
    assert "0" not in log._brakes
