"""Processes that wake each other as fast as they can: while a followed thread waits, each switch is a record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.scene import Scene

PAIRS, THREADS = 4, 32
PINGS = """
import ctypes
libc = ctypes.CDLL(None)
ending = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ending.set()), daemon=True).start()
children = []
for _ in range(int(sys.argv[1])):
    ping, pong = os.pipe(), os.pipe()
    for reads, writes in ((ping[0], pong[1]), (pong[0], ping[1])):
        child = os.fork()
        if not child:
            libc.prctl(1, 9)  # it ends with its parent
            while os.read(reads, 1): os.write(writes, b"x")
        children.append(child)
    os.write(ping[1], b"x")
ending.wait()
for child in children:
    os.kill(child, 9)
switches = sum(
    usage.ru_nvcsw + usage.ru_nivcsw for usage in (os.wait4(child, 0)[2] for child in children)
)
print(switches, flush=True)
"""


#: A worker that waits for a CPU among them, with all its threads.
WAITS = """
ending = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ending.set()), daemon=True).start()
import hashlib, tailspan.client
client = tailspan.client.connect("waiting", path=sys.argv[1])
made = []
block = bytes(1 << 20)
def serve():
    while not ending.is_set():
        with client.request("waiting"): hashlib.sha256(block)  # without the interpreter's lock
        made.append(1)
        time.sleep(0.002)
threads = [threading.Thread(target=serve) for _ in range(int(sys.argv[2]))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(made) - client.dropped, flush=True)
"""


@contextlib.contextmanager
def switch_storm(scene: Scene) -> Iterator[None]:
    with scene.stranger(PINGS, PAIRS) as storm, scene.stranger(WAITS, scene.socket, THREADS) as waiting:
        for each in (storm, waiting):
            each.go()
        yield
        for each in (storm, waiting):
            each.go()
        scene.owed["waiting"] += int(waiting.line())
        scene.done["context switches"] += int(storm.line())


FAULT = Fault(
    "switch_storm", "as many context switches as there can be, and a worker that waits among them", switch_storm
)
