"""Who was born of whom while nobody watched: by /proc, after the fact."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: Fields of /proc/PID/stat behind the name (proc(5)).
_PARENT, _STARTED = 1, 19


def now_ticks() -> int:
    """The time as /proc/PID/stat has it when a process is started now; rounded down, as that is."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS_PER_S)


def is_older(pid: int, ticks: int) -> bool:
    """Whether the process of this number is there, and was before ``ticks``, or in the same 10 ms."""
    found = _stat(pid)
    return found is not None and found[1] <= ticks


def born_since(ticks: int, parents: Collection[int], candidates: Iterable[int]) -> dict[int, int]:
    """Child -> parent: of ``candidates`` those that were started at ``ticks`` or later by one of ``parents``, or
    by such a child. One whose parent has ended by now is nobody's child any more, and is not found.
    """
    started = {}
    for pid in candidates:
        found = _stat(pid)
        if found is not None and found[1] >= ticks and pid not in parents:
            started[pid] = found[0]
    born: dict[int, int] = {}
    more = True
    while more:
        more = False
        for pid, parent in started.items():
            if pid not in born and (parent in parents or parent in born):
                born[pid], more = parent, True
    return born


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _stat(pid: int) -> tuple[int, int] | None:
    """(parent, started in ticks); None where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[_PARENT]), int(fields[_STARTED])
    except (OSError, IndexError, ValueError):
        return None
