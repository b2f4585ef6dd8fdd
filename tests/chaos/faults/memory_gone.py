"""A hard limit on memory at what it uses, and a flood that makes it want more: the kernel kills it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.faults.otlp_flood import SENDS
from tests.chaos.scene import Scene, until

ABOVE = 1 << 20
WHAT = "a memory limit 1 MiB above what it uses, and a flood: killed by the kernel"
_DEATH_S = 20.0


@contextlib.contextmanager
def memory_gone(scene: Scene) -> Iterator[None]:
    """Whether it dies of it is not up to us: what is in use may be what can be taken back."""
    # The flood comes by OTLP: messages of the workers' socket that died with the agent are then the worker's.
    with scene.stranger(SENDS, scene.otlp_port) as flood:
        with scene.cgroups.agent_memory(ABOVE):
            flood.go()
            until(lambda: not scene.agent.alive, _DEATH_S)
            yield
        flood.go()
        flood.line()
    if not scene.agent.alive:
        scene.done["killed by the kernel"] += 1
        scene.restart_agent()


FAULT = Fault("memory_gone", WHAT, memory_gone, lethal=True, seconds=2.0)
