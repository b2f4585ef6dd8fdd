from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame, process
from tests.scorecard.scene import Scene

STOPPER = """
import os, signal, sys, time
print("begun", flush=True)
while True:
    os.kill(int(sys.argv[1]), signal.SIGSTOP)
    time.sleep(0.03)
    os.kill(int(sys.argv[1]), signal.SIGCONT)
    time.sleep(0.1)
"""


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    try:
        with scene.python(STOPPER, scene.worker.pid) as pid:
            yield blame(Cause.STOPPED, process(pid))
    finally:
        scene.worker.resume()


FAULT = Fault(
    name="sigstop",
    what="another process stops the worker for 30 ms at a time",
    stage="plain",
    inject=inject,
    short=True,
)
