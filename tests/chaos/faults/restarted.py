"""SIGTERM, as an upgrade does it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from tailspan.errors import CannotError
from tests.chaos.fault import Fault
from tests.chaos.scene import Scene


@contextlib.contextmanager
def restarted(scene: Scene) -> Iterator[None]:
    scene.agent.signal(signal.SIGTERM)
    status = scene.agent.wait()
    if status:
        raise CannotError(f"the agent ended with {status} on SIGTERM: {scene.agent.said()[-2000:]}")
    scene.done["ends"] += 1
    yield
    scene.restart_agent()


FAULT = Fault("restarted", "SIGTERM, absent for a while, started again", restarted, lethal=True, seconds=2.0)
