"""SIGSTOP: it holds its sockets, and reads none of them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.scene import Scene


@contextlib.contextmanager
def stopped(scene: Scene) -> Iterator[None]:
    scene.agent.signal(signal.SIGSTOP)
    scene.done["stops"] += 1
    try:
        yield
    finally:
        scene.agent.signal(signal.SIGCONT)


FAULT = Fault("stopped", "SIGSTOP, then SIGCONT", stopped, seconds=10.0)
