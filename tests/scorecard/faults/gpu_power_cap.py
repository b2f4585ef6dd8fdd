from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame, labelled
from tests.scorecard.scene import Scene

SW_POWER_CAP = 0x4


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.card.set(sm_mhz=345, reasons=SW_POWER_CAP):
        yield blame(Cause.GPU_CLOCKS, labelled("the power cap of GPU 0"))


FAULT = Fault(
    name="gpu_power_cap",
    what="the GPU runs at a sixth of its clock, for its power cap",
    stage="gpu",
    inject=inject,
    short=True,
)
