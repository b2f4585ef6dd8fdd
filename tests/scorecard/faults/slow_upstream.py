from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame, peer
from tests.scorecard.scene import Scene


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    scene.upstream.tell("delay 25")
    try:
        yield blame(Cause.UPSTREAM, peer(scene.upstream_address))
    finally:
        scene.upstream.tell("delay 0")


FAULT = Fault(
    name="slow_upstream",
    what="the service that the worker calls answers 25 ms late",
    stage="upstream",
    inject=inject,
    short=True,
)
