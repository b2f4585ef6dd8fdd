from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import CulpritKind
from tests.scorecard.fault import Expected, Fault, blame, kind, thread
from tests.scorecard.scene import Scene


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.switched("garbage"):
        yield blame(Cause.GC, thread("collector") | kind(CulpritKind.OWN))


FAULT = Fault(
    name="gc",
    what="a thread of the worker collects garbage again and again, over many live objects",
    stage="plain",
    inject=inject,
)
