from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame
from tests.scorecard.scene import Scene
from tests.scorecard.truth import READING


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.switched("drop_pages"):
        yield blame(Cause.PAGE_IN, None)


FAULT = Fault(
    name="page_in",
    what="the pages of a mapped file are dropped again and again",
    stage="pages",
    inject=inject,
    truth=READING,
)
