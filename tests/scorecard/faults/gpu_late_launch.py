from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame, process
from tests.scorecard.scene import Scene


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.hog(scene.worker_cpu, threads=8) as pid:
        yield blame(Cause.RUN_QUEUE, process(pid))


FAULT = Fault(
    name="gpu_late_launch",
    what="the thread that launches work on the GPU is kept off its CPU by a neighbour",
    stage="gpu_steps",
    inject=inject,
    connections=1,
)
