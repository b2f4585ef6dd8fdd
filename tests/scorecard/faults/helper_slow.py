from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame, process
from tests.scorecard.scene import Scene


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    scene.helper.tell("work 20")
    try:
        yield blame(Cause.UNIX, process(scene.helper.pid))
    finally:
        scene.helper.tell("work 1")


FAULT = Fault(
    name="helper_slow",
    what="a process that the worker asks over a unix socket works for 20 ms instead of 1",
    stage="helper",
    inject=inject,
    connections=1,
)
