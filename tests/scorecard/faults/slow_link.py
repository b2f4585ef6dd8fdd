from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.netns import rate_limit
from tests.scorecard.fault import Expected, Fault, blame, peer
from tests.scorecard.scene import Scene


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with rate_limit(scene.near, "40mbit"):
        yield blame(Cause.NETWORK, peer(scene.upstream_address))


FAULT = Fault(
    name="slow_link",
    what="what the worker sends its upstream, 200 KB at a time, leaves at 40 Mbit/s",
    stage="upload",
    inject=inject,
)
