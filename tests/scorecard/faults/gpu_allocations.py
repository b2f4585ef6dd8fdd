from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import CulpritKind
from tests.scorecard.fault import Expected, Fault, blame, kind
from tests.scorecard.scene import Scene


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.card.set(alloc_ns=20_000_000):
        yield blame(Cause.GPU_ALLOC, kind(CulpritKind.OWN))


FAULT = Fault(
    name="gpu_allocations",
    what="allocations of GPU memory take long, with enough of it left",
    stage="gpu_memory",
    inject=inject,
    short=True,
)
