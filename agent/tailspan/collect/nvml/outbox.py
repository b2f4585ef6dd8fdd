"""What the sampler has found and the agent has not yet taken."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tailspan.timeline.tables import GPU_EVENT, GPU_PROCESS, GPU_SAMPLE, GpuEventKind, join

Table = npt.NDArray[np.void]

#: Rows of each table that wait to be taken. More are not kept, and counted: 8 GPUs fill it in half a minute.
LIMIT = 8192


@dataclass(frozen=True, slots=True)
class Taken:
    samples: Table
    processes: Table
    events: Table
    dropped: int  #: rows for which there was no room


class Outbox:
    """Put to by the sampler's threads, taken from by the agent's; neither holds the other up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[np.dtype[np.void], list[Table]] = {}
        self._waiting: dict[np.dtype[np.void], int] = {}
        self._dropped = 0

    def put(self, rows: Table) -> None:
        with self._lock:
            waiting = self._waiting.get(rows.dtype, 0)
            room = min(len(rows), LIMIT - waiting)
            self._dropped += len(rows) - room
            if room:
                self._rows.setdefault(rows.dtype, []).append(rows[:room])
                self._waiting[rows.dtype] = waiting + room

    def put_event(self, mono_ns: int, gpu: int, kind: GpuEventKind, code: int) -> None:
        self.put(np.array([(mono_ns, gpu, kind, code)], GPU_EVENT))

    def take(self) -> Taken:
        with self._lock:
            rows, dropped = self._rows, self._dropped
            self._rows, self._waiting, self._dropped = {}, {}, 0
        samples, processes, events = (
            join(rows.get(table, []), table) for table in (GPU_SAMPLE, GPU_PROCESS, GPU_EVENT)
        )
        return Taken(samples, processes, events, dropped)
