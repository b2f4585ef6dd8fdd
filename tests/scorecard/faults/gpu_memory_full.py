from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame, process
from tests.scorecard.scene import Scene

#: Takes 78 of 80 GiB.
HOLD = """
import time
from tailspan.worker.cuda import Device
device = Device()
device.allocate(78 << 30)
print("holding", flush=True)
time.sleep(3600)
"""


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.python(HOLD, **scene.card.environment) as pid, scene.card.set(alloc_ns=20_000_000):
        yield blame(Cause.GPU_FULL, process(pid))


FAULT = Fault(
    name="gpu_memory_full",
    what="another process holds nearly all of the GPU's memory, and allocations take long",
    stage="gpu_memory",
    inject=inject,
    seconds=4.0,
)
