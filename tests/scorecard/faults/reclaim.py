from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import CulpritKind
from tests.scorecard.fault import Expected, Fault, blame, kind
from tests.scorecard.scene import Scene

#: Fills its cgroup with pages that must be written before they can be freed.
WRITER = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
data, at = bytes(1 << 20), 0
print("begun", flush=True)
while True:
    os.pwrite(file, data, at % 256 << 20)
    at += 1
"""


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.cgroups.memory_above_usage(72 << 20), scene.python(WRITER, scene.folder / "dirty") as pid:
        scene.cgroups.join(pid, "memory")
        yield blame(Cause.RECLAIM, kind(CulpritKind.CGROUP))


FAULT = Fault(
    name="reclaim",
    what="the worker allocates 16 MiB in a memory cgroup that is full of a sidecar's unwritten pages",
    stage="memory",
    inject=inject,
    connections=1,
)
