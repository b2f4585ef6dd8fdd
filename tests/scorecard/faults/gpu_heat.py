from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame, labelled
from tests.scorecard.scene import Scene

HW_THERMAL_SLOWDOWN = 0x40


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.card.set(sm_mhz=345, reasons=HW_THERMAL_SLOWDOWN):
        yield blame(Cause.GPU_CLOCKS, labelled("the heat of GPU 0"))


FAULT = Fault(
    name="gpu_heat",
    what="the GPU runs at a sixth of its clock, for it is too hot",
    stage="gpu",
    inject=inject,
)
