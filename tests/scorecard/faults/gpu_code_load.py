from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import CulpritKind
from tests.scorecard.fault import Expected, Fault, blame, kind
from tests.scorecard.scene import Scene


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.card.set(load_ns=25_000_000):
        yield blame(Cause.GPU_LOAD, kind(CulpritKind.OWN))


FAULT = Fault(
    name="gpu_code_load",
    what="code that a request needs is loaded into the GPU when it is first used",
    stage="gpu_load",
    inject=inject,
)
