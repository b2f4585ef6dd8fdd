from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import CulpritKind
from tests.scorecard.fault import Expected, Fault, blame, kernel_thread, kind, process
from tests.scorecard.scene import Scene

WRITER = """
import os, sys, threading
data = os.urandom(16 << 20)
def write(number):
    file = os.open(f"{sys.argv[1]}-{number}", os.O_WRONLY | os.O_CREAT)
    while True:
        for _ in range(8):
            os.write(file, data)
            os.fsync(file)
        os.ftruncate(file, 0)
        os.lseek(file, 0, 0)
for number in range(4):
    threading.Thread(target=write, args=(number,)).start()
print("begun", flush=True)
"""


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.python(WRITER, scene.folder / "storm") as pid:
        yield blame(Cause.IO, process(pid) | kernel_thread("jbd2") | kind(CulpritKind.DEVICE))


FAULT = Fault(
    name="fsync_storm",
    what="a journal is synced beside a process that writes and syncs all the time on the same filesystem",
    stage="journal",
    inject=inject,
)
