"""A hard limit on memory, a little above what it has, and files read on its account: the kernel takes back what
it can, again and again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.scene import Scene

ABOVE_MIB, FILE_MIB = 16, 64

#: Reads four times the limit's room, over and over: pages of a file can always be taken back.
READS = """
ending = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ending.set()), daemon=True).start()
block = bytearray(1 << 20)
with open(sys.argv[1], "w+b", buffering=0) as file:
    for _ in range(int(sys.argv[2])): file.write(block)
    os.fsync(file.fileno())
    while not ending.wait(0.003):
        if not file.readinto(block): file.seek(0)
os.unlink(sys.argv[1])
print("end", flush=True)
"""


@contextlib.contextmanager
def memory_tight(scene: Scene) -> Iterator[None]:
    before = scene.cgroups.agent_met_limit()
    with scene.stranger(READS, scene.folder / "read", FILE_MIB) as reader:
        scene.cgroups.join("agent", reader.pid)
        with scene.cgroups.agent_memory(ABOVE_MIB << 20):
            reader.go()
            yield
            reader.go()
            reader.line()
    scene.done["times at the limit"] += scene.cgroups.agent_met_limit() - before


FAULT = Fault(
    "memory_tight",
    f"a memory limit {ABOVE_MIB} MiB above what it uses, and files read on its account",
    memory_tight,
    seconds=10.0,
)
