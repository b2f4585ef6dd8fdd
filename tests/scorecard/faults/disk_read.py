from collections.abc import Iterator
from contextlib import contextmanager

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import CulpritKind
from tests.scorecard.fault import Expected, Fault, blame, kind, process
from tests.scorecard.scene import Scene
from tests.scorecard.truth import READING

#: 24 writes of 1 MiB at a time, past the page cache, over the same 64 MiB again and again.
WRITER = """
import mmap, os, sys, threading
BLOCK, BLOCKS = 1 << 20, 64
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
def write(at):
    buffer = mmap.mmap(-1, BLOCK)
    while True:
        os.pwrite(file, buffer, at % BLOCKS * BLOCK)
        at += 7
for at in range(24):
    threading.Thread(target=write, args=(at,)).start()
print("begun", flush=True)
"""


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.python(WRITER, scene.folder / "written") as pid:
        yield blame(Cause.IO, process(pid) | kind(CulpritKind.DEVICE))


FAULT = Fault(
    name="disk_read",
    what="direct reads beside a process that keeps the disk's queue full of large writes",
    stage="disk",
    inject=inject,
    truth=READING,
)
