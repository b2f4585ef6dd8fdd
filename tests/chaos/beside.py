"""What a fault does again and again while it is held."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """``work`` in a thread; at the end the event is set, and it is waited for. What it raises is raised here."""
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work, ended)
        try:
            yield
        finally:
            ended.set()
        done.result()
