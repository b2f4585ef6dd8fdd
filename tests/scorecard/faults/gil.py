from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame, thread
from tests.scorecard.scene import Scene


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.switched("pure_python"):
        yield blame(Cause.GIL, thread("pure-python"))


FAULT = Fault(
    name="gil",
    what="a thread of the worker runs Python bytecode without a pause",
    stage="plain",
    inject=inject,
    short=True,
)
