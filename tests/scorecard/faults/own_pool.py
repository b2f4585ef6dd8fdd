from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import CulpritKind
from tests.scorecard.fault import Expected, Fault, blame, kind
from tests.scorecard.scene import Scene
from tests.scorecard.truth import RUN_DELAY


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.switched("pool"):
        yield blame(Cause.RUN_QUEUE, kind(CulpritKind.OWN))


FAULT = Fault(
    name="own_pool",
    what="three threads of the worker's own compute on its one CPU",
    stage="plain",
    inject=inject,
    truth=RUN_DELAY,
    connections=1,
)
