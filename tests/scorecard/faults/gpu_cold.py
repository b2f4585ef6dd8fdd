from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame, labelled
from tests.scorecard.scene import Scene


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.card.set(cold_mhz=345, cold_after_ns=100_000_000, warm_ns=400_000_000):
        yield blame(Cause.GPU_COLD, labelled("GPU 0"))


FAULT = Fault(
    name="gpu_cold",
    what="the GPU's clocks go down between requests, and take 0.4 s to come back",
    stage="gpu",
    inject=inject,
    connections=1,
    think_s=(0.2, 0.3),
    seconds=5.0,
)
