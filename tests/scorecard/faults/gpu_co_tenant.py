from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame, process
from tests.scorecard.scene import Scene

#: Keeps the device's queue up to 60 ms long.
TRAIN = """
import sys, time
from tailspan.worker.cuda import Device
device = Device()
print("launching", flush=True)
while True:
    device.launch(120)
    device.synchronize()
"""


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.python(TRAIN, **scene.card.environment) as pid:
        yield blame(Cause.GPU_SHARED, process(pid))


FAULT = Fault(
    name="gpu_co_tenant",
    what="another process keeps the GPU busy",
    stage="gpu",
    inject=inject,
    seconds=4.0,
)
