"""BPF ring buffers with records of one size, mmapped, and drained into one numpy array.

Layout: kernel/bpf/ringbuf.c. Page 0 holds the consumer's position, page 1 the producer's, then the data, mapped
twice in a row so that a record never wraps. Each record has an 8-byte header whose first word is its length,
with the top bit set while it is being written. Our programs never discard a record.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tailspan.wire.events import (
    BLOCK_REQUEST,
    CONNECTION,
    CPU_SLICE,
    GPU_CALL,
    INCIDENT,
    SOCKET_WAIT,
    SYSCALL_RECORD,
    THREAD_CYCLE,
    THREAD_EVENT,
    RecordClass,
)

RINGS = {  # map, with a ring for each CPU -> (record class, dtype)
    "cycle_rings": (RecordClass.CYCLE, THREAD_CYCLE),
    "slice_rings": (RecordClass.SLICE, CPU_SLICE),
    "thread_rings": (RecordClass.THREAD, THREAD_EVENT),
    "syscall_rings": (RecordClass.SYSCALL, SYSCALL_RECORD),
    "socket_rings": (RecordClass.SOCKET, SOCKET_WAIT),
    "connection_rings": (RecordClass.CONNECTION, CONNECTION),
    "block_rings": (RecordClass.BLOCK, BLOCK_REQUEST),
    "incident_rings": (RecordClass.INCIDENT, INCIDENT),
    "gpu_call_rings": (RecordClass.GPU_CALL, GPU_CALL),
}

_HEADER = 8


class Ring:
    """``fd`` is closed by :meth:`close`. ``size`` is the map's max_entries."""

    def __init__(self, fd: int, size: int, dtype: np.dtype[np.void]) -> None:
        self.fd = fd
        self._size = size
        self._dtype, self._opaque = dtype, np.dtype((np.void, dtype.itemsize))
        self._stride = _HEADER + (dtype.itemsize + 7 & ~7)
        page = mmap.PAGESIZE
        self._consumer_page = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._data_pages = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        # Not numpy's scalars, which take three times as long: most rings are empty most of the time.
        self._consumer = memoryview(self._consumer_page)[:8].cast("Q")
        self._producer = memoryview(self._data_pages)[:8].cast("Q")
        self._data = np.frombuffer(self._data_pages, np.uint8, 2 * size, page)

    @property
    def capacity(self) -> int:
        """Records."""
        return self._size // self._stride

    def finished(self) -> npt.NDArray[np.void] | None:
        """Every finished record until :meth:`release`, oldest first; None when there is none. Opaque, and strided.

        The positions are read and written as single 8-byte words, and x86 keeps their order against the data.
        """
        consumed, produced = self._consumer[0], self._producer[0]
        if produced == consumed:
            return None
        count = (produced - consumed) // self._stride
        start = consumed & (self._size - 1)
        lengths = np.ndarray((count,), np.uint32, self._data, start, (self._stride,))
        unfinished = np.flatnonzero(lengths != self._dtype.itemsize)
        if unfinished.size:
            count = int(unfinished[0])
            if not count:
                return None
        return np.ndarray((count,), self._opaque, self._data, start + _HEADER, (self._stride,))

    def release(self, count: int) -> None:
        """So many were copied: the kernel may write there again."""
        self._consumer[0] += count * self._stride

    def close(self) -> None:
        if self.fd >= 0:
            # They hold the mappings open: let go of them first.
            self._consumer.release()
            self._producer.release()
            del self._data
            self._consumer_page.close()
            self._data_pages.close()
            os.close(self.fd)
            self.fd = -1


def drain(rings: Sequence[Ring], dtype: np.dtype[np.void]) -> tuple[npt.NDArray[np.void], float]:
    """Empty them into one array, and how full the fullest was, 0 to 1."""
    found = [(ring, rows) for ring in rings if (rows := ring.finished()) is not None]
    records = np.empty(sum(len(rows) for _, rows in found), np.dtype((np.void, dtype.itemsize)))
    at, fill = 0, 0.0
    for ring, rows in found:
        records[at : at + len(rows)] = rows
        at += len(rows)
        fill = max(fill, len(rows) / ring.capacity)
        ring.release(len(rows))
    return records.view(dtype), fill
