from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame, thread
from tests.scorecard.scene import Scene


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.switched("lock_holder"):
        yield blame(Cause.FUTEX, thread("lock-holder"))


FAULT = Fault(
    name="lock_held",
    what="a thread of the worker works for 25 ms while it holds the lock that requests take",
    stage="lock",
    inject=inject,
    short=True,
)
