from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import CulpritKind
from tests.scorecard.fault import Expected, Fault, blame, kind
from tests.scorecard.scene import Scene
from tests.scorecard.truth import THROTTLED

#: On the worker's CPU too, now and then, and too short to be the reason.
NEIGHBOUR = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
print("begun", flush=True)
while True:
    until = time.thread_time() + 0.002
    while time.thread_time() < until: pass
    time.sleep(0.05)
"""


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.python(NEIGHBOUR, scene.worker_cpu), scene.cgroups.cpu_quota(ms=7):
        yield blame(Cause.THROTTLED, kind(CulpritKind.CGROUP))


FAULT = Fault(
    name="cpu_quota",
    what="the worker's cgroup may use 7 ms of CPU time in 100 ms; a neighbour runs there now and then",
    stage="plain",
    inject=inject,
    truth=THROTTLED,
    short=True,
)
