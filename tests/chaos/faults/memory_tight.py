"""A hard limit on memory, a little above what it has: the kernel takes back what it can."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.scene import Scene

ABOVE = 16 << 20


@contextlib.contextmanager
def memory_tight(scene: Scene) -> Iterator[None]:
    before = scene.cgroups.agent_met_limit()
    with scene.cgroups.agent_memory(ABOVE):
        scene.done["limits"] += 1
        yield
    scene.done["times at the limit"] += scene.cgroups.agent_met_limit() - before


FAULT = Fault("memory_tight", "a memory limit 16 MiB above what it uses", memory_tight, seconds=10.0)
