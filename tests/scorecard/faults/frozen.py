from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import CulpritKind
from tests.scorecard.fault import Expected, Fault, blame, kind, process
from tests.scorecard.scene import Scene

FREEZER = """
import sys, time
path, frozen, thawed = sys.argv[1:4]
print("begun", flush=True)
while True:
    with open(path, "w") as file:
        file.write(frozen)
    time.sleep(0.03)
    with open(path, "w") as file:
        file.write(thawed)
    time.sleep(0.1)
"""


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    try:
        with scene.python(FREEZER, *scene.cgroups.freezer()) as pid:
            yield blame(Cause.STOPPED, kind(CulpritKind.CGROUP) | process(pid))
    finally:
        scene.cgroups.thaw()


FAULT = Fault(
    name="frozen",
    what="the worker's cgroup is frozen for 30 ms at a time",
    stage="plain",
    inject=inject,
)
