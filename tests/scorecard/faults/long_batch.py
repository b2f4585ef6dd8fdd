import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import CulpritKind
from tests.scorecard.fault import Expected, Fault, blame, kind
from tests.scorecard.scene import Scene
from tests.scorecard.worker import HEAVY_SEED

EVERY_S = 0.12


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    stop, heavy = threading.Event(), set[int]()

    def ask() -> None:
        with contextlib.closing(scene.load.connection()) as connection:
            while not stop.wait(EVERY_S):
                heavy.add(connection.ask("heavy", "heavy", HEAVY_SEED).batch_id)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        expected = blame(Cause.QUEUED, kind(CulpritKind.BATCH))
        # One that shares the heavy input's batch is not queued behind it: the batch is its own work.
        yield replace(expected, concerns=lambda verdict: verdict.request.batch_id not in heavy)
    finally:
        stop.set()
        asking.join()


FAULT = Fault(
    name="long_batch",
    what="some other client's input takes long, and requests wait until its batch is over",
    stage="plain",
    inject=inject,
)
