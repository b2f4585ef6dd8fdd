"""A twentieth of a CPU, taken away in slices of 100 ms."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.scene import Scene

SHARE = 0.05


@contextlib.contextmanager
def cpu_quota(scene: Scene) -> Iterator[None]:
    before = scene.cgroups.agent_throttled()
    with scene.cgroups.agent_cpu(SHARE):
        yield
    scene.done["times throttled"] += scene.cgroups.agent_throttled() - before


FAULT = Fault("cpu_quota", "a quota of 5 % of a CPU", cpu_quota, seconds=10.0)
