"""SIGKILL, and another agent a moment later."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.scene import Scene


@contextlib.contextmanager
def killed(scene: Scene) -> Iterator[None]:
    scene.agent.signal(signal.SIGKILL)
    scene.agent.wait()
    scene.done["kills"] += 1
    yield
    scene.restart_agent()


FAULT = Fault("killed", "kill -9, absent for a while, started again", killed, lethal=True, seconds=2.0)
