"""One BPF ring buffer with records of one size, mmapped and drained as one numpy array.

Layout: kernel/bpf/ringbuf.c. Page 0 holds the consumer's position, page 1 the producer's, then the data, mapped
twice in a row so that a record never wraps. Each record has an 8-byte header whose first word is its length,
with the top bit set while it is being written. Our programs never discard a record.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
import numpy.typing as npt

_HEADER = 8


class Ring:
    """``fd`` is closed by :meth:`close`. ``size`` is the map's max_entries."""

    def __init__(self, fd: int, size: int, dtype: np.dtype[np.void]) -> None:
        self.fd = fd
        self._size = size
        self._dtype = dtype
        self._stride = _HEADER + (dtype.itemsize + 7 & ~7)
        page = mmap.PAGESIZE
        self._consumer_page = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._data_pages = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = np.frombuffer(self._consumer_page, np.uint64, 1)
        self._producer = np.frombuffer(self._data_pages, np.uint64, 1)
        self._data = np.frombuffer(self._data_pages, np.uint8, 2 * size, page)

    @property
    def capacity(self) -> int:
        """Records."""
        return self._size // self._stride

    def drain(self) -> npt.NDArray[np.void] | None:
        """Every finished record, copied out, oldest first; None when there is none.

        The positions are read and written as single 8-byte words, and x86 keeps their order against the data.
        """
        consumed = int(self._consumer[0])
        count = (int(self._producer[0]) - consumed) // self._stride
        if count <= 0:
            return None
        start = consumed & (self._size - 1)
        rows = self._data[start : start + count * self._stride].reshape(count, self._stride)
        lengths = rows[:, :4].view(np.uint32)[:, 0]
        unfinished = np.flatnonzero(lengths != self._dtype.itemsize)
        if unfinished.size:
            count = int(unfinished[0])
            if not count:
                return None
        body = rows[:count, _HEADER : _HEADER + self._dtype.itemsize]
        records = body.copy().view(self._dtype)[:, 0]  # always: the ring is written again
        self._consumer[0] = consumed + count * self._stride
        return records

    def close(self) -> None:
        if self.fd >= 0:
            # The arrays hold the mappings open: let go of them first.
            del self._consumer, self._producer, self._data
            self._consumer_page.close()
            self._data_pages.close()
            os.close(self.fd)
            self.fd = -1
