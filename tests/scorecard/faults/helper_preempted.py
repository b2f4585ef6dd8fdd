import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import Expected, Fault, blame, process
from tests.scorecard.scene import Scene


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.hog(scene.other_cpu, threads=3) as pid:
        renice(scene.helper.pid, 10)
        try:
            yield blame(Cause.RUN_QUEUE, process(pid))
        finally:
            renice(scene.helper.pid, 0)


def renice(pid: int, nice: int) -> None:
    """Every thread that it has."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(task.name), nice)


FAULT = Fault(
    name="helper_preempted",
    what="the process that the worker asks has a lower priority than a neighbour on its CPU",
    stage="helper",
    inject=inject,
)
