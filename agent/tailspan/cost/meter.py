"""What the agent itself takes: its process by /proc, and what it takes in by its own count."""

from __future__ import annotations

import resource
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

#: A reading is kept for so long, and one of each so many seconds.
KEPT_S, EVERY_S = 60.0, 1.0
#: Descriptors are a listing of a folder, up to a thousand entries long.
_FILES_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Reading:
    mono_s: float
    cpu_s: float  #: since the process began
    rss: int  #: bytes
    peak_rss: int
    threads: int
    files: int


@dataclass(frozen=True, slots=True)
class _Kept:
    mono_s: float
    cpu_s: float
    records: Mapping[str, int]
    losses: Mapping[str, int]


class Meter:
    def __init__(self) -> None:
        self._process = psutil.Process()
        self._records: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._files, self._files_read_s = 0, float("-inf")
        self.last = self._read()
        self._kept = deque([self._snapshot()], maxlen=int(KEPT_S / EVERY_S) + 1)

    def took(self, records: Mapping[str, int]) -> None:
        """So many more came, by class."""
        self._records.update(records)

    def lost(self, record_class: str, count: int) -> None:
        if count:
            self._losses[record_class] += count

    def read(self) -> Reading:
        self.last = self._read()
        if self.last.mono_s - self._kept[-1].mono_s >= EVERY_S:
            self._kept.append(self._snapshot())
        return self.last

    def cpu(self, seconds: float) -> float:
        """Of one CPU, over the last ``seconds``, or since the start where that is shorter."""
        then = self._then(seconds)
        return (self.last.cpu_s - then.cpu_s) / max(self.last.mono_s - then.mono_s, 1e-3)

    def records_per_s(self, seconds: float) -> dict[str, float]:
        """By class, over the last ``seconds``."""
        then = self._then(seconds)
        span_s = max(self.last.mono_s - then.mono_s, 1e-3)
        return {name: (total - then.records.get(name, 0)) / span_s for name, total in self._records.items()}

    def losses(self, seconds: float | None = None) -> dict[str, int]:
        """By class, over the last ``seconds``, or in all."""
        then = self._then(seconds).losses if seconds else {}
        return {name: total - then.get(name, 0) for name, total in self._losses.items()}

    @property
    def started_s(self) -> float:
        """For how long the process has run."""
        return time.time() - self._process.create_time()

    def _then(self, seconds: float) -> _Kept:
        """The youngest that is so old, or the oldest."""
        old = (kept for kept in reversed(self._kept) if self.last.mono_s - kept.mono_s >= seconds)
        return next(old, self._kept[0])

    def _snapshot(self) -> _Kept:
        return _Kept(self.last.mono_s, self.last.cpu_s, dict(self._records), dict(self._losses))

    def _read(self) -> Reading:
        now_s = time.monotonic()
        if now_s - self._files_read_s >= _FILES_EVERY_S:
            self._files_read_s, self._files = now_s, self._process.num_fds()
        with self._process.oneshot():
            usage = self._process.cpu_times()
            rss, threads = self._process.memory_info().rss, self._process.num_threads()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return Reading(now_s, usage.user + usage.system, rss, max(peak, rss), threads, self._files)
