from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import CulpritKind
from tests.scorecard.fault import Expected, Fault, blame, kernel_thread, kind
from tests.scorecard.flood import flood
from tests.scorecard.scene import Scene


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with flood(scene):
        yield blame((Cause.IRQ, Cause.RUN_QUEUE), kind(CulpritKind.SOFTIRQ) | kernel_thread("ksoftirqd"))


FAULT = Fault(
    name="softirq_flood",
    what="datagrams that nobody wants are received, and filtered at length, on the worker's CPU",
    stage="plain",
    inject=inject,
    connections=1,
)
