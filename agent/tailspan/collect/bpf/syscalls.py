"""When the syscalls probe is attached: always, on command for a time, or for a time after a slow request.

Attached it makes every system call of the host dearer, so it is detached as soon as its time is over.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from tailspan.collect.bpf.source import BpfSource, Table
from tailspan.wire.syscalls import syscall_name

MAX_SECONDS = 600
#: Calls above the floor that are remembered, and how many of them an answer has.
MAX_RECORDS = 4096
SLOWEST = 20


class SyscallTracing:
    """``mode``: ``off`` (on command only), ``on`` or ``triggered``."""

    def __init__(self, source: BpfSource, mode: str, seconds: float) -> None:
        self._source = source
        self._mode = mode
        self._seconds = seconds
        self._until = 0.0
        self._is_shed = False
        self._records: deque[tuple[int, int, int, int, int]] = deque(maxlen=MAX_RECORDS)
        self.poll()

    @property
    def attached(self) -> bool:
        return self._source.status["syscalls"].attached

    def change(self, mode: str, seconds: float) -> None:
        """As the constructor, from now on; what is being traced for a time is traced to its end."""
        self._mode, self._seconds = mode, seconds

    def shed(self, shed: bool) -> None:
        """While it is shed the probe stays off, whatever asks for it."""
        self._is_shed = shed

    @property
    def is_wanted(self) -> bool:
        return self._mode == "on" or time.monotonic() < self._until

    def keep(self, records: Table) -> None:
        """Remember calls above the floor (SYSCALL_RECORD rows); of many, the last."""
        for row in records[-MAX_RECORDS:][["tid", "tgid", "nr", "enter_mono_ns", "exit_mono_ns"]].tolist():
            self._records.append(row)

    def trigger(self) -> None:
        """A request was slow."""
        if self._mode == "triggered":
            self._until = max(self._until, time.monotonic() + self._seconds)

    def poll(self) -> None:
        """Attach or detach as the time says."""
        wanted = self.is_wanted and not self._is_shed
        if wanted and not self.attached:
            self._source.attach("syscalls")
        elif not wanted and self.attached:
            self._source.detach("syscalls")

    def answer(self, request: dict[str, Any]) -> Callable[[], dict[str, Any] | None]:
        """Control request ``{"do": "syscalls", "seconds": n}``: trace for n seconds, then the table."""
        seconds = request.get("seconds")
        if request.get("do") != "syscalls":
            do = request.get("do")
            what = repr(do) if isinstance(do, str) else "that"  # a list may be deeper than Python's repr goes
            return lambda: {"ok": False, "error": f"the agent cannot do {what}"}
        if not isinstance(seconds, int | float) or not 0 < seconds <= MAX_SECONDS:
            return lambda: {"ok": False, "error": f"seconds: a number from 0 to {MAX_SECONDS}"}
        status = self._source.status["syscalls"]
        if not status.loaded:
            return lambda: {"ok": False, "error": f"probe syscalls: {status.why}"}
        if self._is_shed:
            return lambda: {"ok": False, "error": "system calls are shed: the agent is above its budget"}
        self._source.clear_syscall_histograms()
        self._records.clear()
        until = time.monotonic() + seconds
        self._until = max(self._until, until)
        return lambda: (
            {"ok": True, "rows": self.rows(), "slowest": self.slowest()} if time.monotonic() >= until else None
        )

    def slowest(self) -> list[dict[str, Any]]:
        """Single calls, the longest first."""
        longest = sorted(self._records, key=lambda record: record[3] - record[4])[:SLOWEST]
        return [
            {"tid": tid, "pid": tgid, "syscall": syscall_name(nr), "enter_mono_ns": enter, "ns": exit_ - enter}
            for tid, tgid, nr, enter, exit_ in longest
        ]

    def rows(self) -> list[dict[str, Any]]:
        """One row per (process, system call), the one with the most time first."""
        rows = [
            {
                "pid": tgid,
                "syscall": syscall_name(nr),
                "count": int(hist["count"]),
                "total_ns": int(hist["total_ns"]),
                "p50_ns": quantile_ns(hist, 0.5),
                "p99_ns": quantile_ns(hist, 0.99),
                "max_slot_ns": quantile_ns(hist, 1.0),
            }
            for tgid, nr, hist in self._source.syscall_histograms()
        ]
        return sorted(rows, key=lambda row: -int(row["total_ns"]))


def quantile_ns(hist: Table, quantile: float) -> int:
    """Upper edge of the slot that the quantile falls in: at most twice the true value."""
    counts = np.cumsum(hist["slots"])
    if not counts[-1]:
        return 0
    slot = int(np.searchsorted(counts, max(quantile * counts[-1], 1)))
    return 2 << slot
