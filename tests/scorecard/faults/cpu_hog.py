from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame, process
from tests.scorecard.scene import Scene
from tests.scorecard.truth import RUN_DELAY


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.hog(scene.worker_cpu, threads=8) as pid:
        yield blame(Cause.RUN_QUEUE, process(pid))


FAULT = Fault(
    name="cpu_hog",
    what="a neighbour process computes on the worker's CPU",
    stage="plain",
    inject=inject,
    truth=RUN_DELAY,
    connections=1,
    short=True,
)
