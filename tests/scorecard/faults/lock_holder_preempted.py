from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame, process
from tests.scorecard.scene import Scene


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.hog(scene.other_cpu, threads=3) as pid, scene.switched("nice_lock_holder"):
        yield blame(Cause.RUN_QUEUE, process(pid))


FAULT = Fault(
    name="lock_holder_preempted",
    what="the thread that holds the lock has a lower priority than a neighbour on its CPU",
    stage="lock",
    inject=inject,
)
