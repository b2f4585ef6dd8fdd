"""What glibc keeps of the memory that was given back to it."""

from __future__ import annotations

import contextlib
import ctypes

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 1 << 20


def return_what_is_large() -> None:
    """Arrays of a MiB or more go back to the kernel at once. No effect, and no error, with another C library.

    Else glibc takes the largest array that was ever freed for the usual size, keeps as much at the end of its heap
    and has one for each thread: after one storm of context switches the agent would stay a third larger.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_ARENA_MAX, 1)
