"""The wall clock jumps by an hour, forth and back, again and again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from itertools import cycle

from tailspan.errors import CannotError
from tests.chaos.beside import beside
from tests.chaos.fault import Fault
from tests.chaos.scene import Scene

HOUR_S, EVERY_S = 3600.0, 0.7


@contextlib.contextmanager
def clock_jumps(scene: Scene) -> Iterator[None]:
    if not scene.clock.is_of(scene.agent.pid):
        raise CannotError("the agent does not take its clock from us")

    def jump(ended: threading.Event) -> None:
        for offset_s in cycle((HOUR_S, 0.0, -HOUR_S)):
            scene.clock.set(offset_s)
            scene.done["jumps"] += 1
            if ended.wait(EVERY_S):
                break

    try:
        with beside(jump):
            yield
    finally:
        scene.clock.set(0.0)


FAULT = Fault("clock_jumps", "the wall clock jumps an hour forth and back, every 0.7 s", clock_jumps)
