"""What the scorecard's cgroups and those of the faults on the agent itself share."""

from __future__ import annotations

import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
#: Of CPU quotas.
PERIOD_US = 100_000

_REMOVE_S = 5.0


def remove(made: list[Path]) -> None:
    """The last first, each as soon as it is empty. Raises OSError where one does not get so."""
    deadline = time.monotonic() + _REMOVE_S  # a process that was killed takes a moment to leave
    while made:
        try:
            made[-1].rmdir()
            made.pop()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
