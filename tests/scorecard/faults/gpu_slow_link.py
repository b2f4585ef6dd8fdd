from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import CulpritKind
from tests.scorecard.fault import Expected, Fault, blame, kind
from tests.scorecard.scene import Scene


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.card.set(copy_bytes_per_s=50_000_000):
        yield blame(Cause.GPU_COPY, kind(CulpritKind.GPU))


FAULT = Fault(
    name="gpu_slow_link",
    what="copies to the GPU are slow: its PCIe link has trained down",
    stage="gpu",
    inject=inject,
)
