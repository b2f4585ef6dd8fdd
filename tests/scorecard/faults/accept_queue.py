from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import CulpritKind
from tests.scorecard.fault import Expected, Fault, blame, kind
from tests.scorecard.scene import Scene


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.switched("accept_late"):
        yield blame(Cause.ACCEPT, kind(CulpritKind.OWN))


FAULT = Fault(
    name="accept_queue",
    what="each request on a new connection, which the worker's accepting thread leaves in the queue for 20 ms",
    stage="fresh",
    inject=inject,
    fresh=True,
)
