from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame, labelled
from tests.scorecard.scene import Scene

CUDA_ERROR_UNKNOWN = 999


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    said = labelled("XID 79 (fallen off the bus) on GPU 0") | labelled("lost by the driver on GPU 0")
    with (
        scene.card.scripted("xid 0 79", "lost 0 100"),
        scene.card.set(hang_ns=60_000_000, sync_result=CUDA_ERROR_UNKNOWN),
    ):
        yield blame(Cause.GPU_FAULT, said)


FAULT = Fault(
    name="gpu_lost",
    what="the GPU falls off the bus: an XID, and calls that hang before they fail",
    stage="gpu",
    inject=inject,
)
