"""Names of threads as the kernel shows them: in ``top -H``, in ``ps -L``, and in tailspan's verdicts."""

from __future__ import annotations

from pathlib import Path

MAX_COMM = 15


def name_this_thread(name: str) -> None:
    """The main thread's name is also the process's. The kernel keeps 15 bytes."""
    Path("/proc/thread-self/comm").write_bytes(name.encode()[:MAX_COMM])
