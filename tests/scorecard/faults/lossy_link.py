from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.netns import loss
from tests.scorecard.fault import Expected, Fault, blame, peer
from tests.scorecard.scene import Scene
from tests.scorecard.truth import RETRANSMITTED


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with loss(scene.far, every=5):
        yield blame(Cause.NETWORK, peer(scene.upstream_address))


FAULT = Fault(
    name="lossy_link",
    what="every fifth segment that the worker sends its upstream is lost on the way",
    stage="upstream",
    inject=inject,
    truth=RETRANSMITTED,
    seconds=4,
)
