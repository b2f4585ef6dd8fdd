"""A hundred workers connect, serve a few requests, and go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.scene import Scene

AT_ONCE = 20
PASSING = """
import tailspan.client
ending = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ending.set()), daemon=True).start()
def serve(into):
    client = tailspan.client.connect("passing", path=sys.argv[1])
    for _ in range(5):
        with client.request("passing"): time.sleep(0.001)
    os.write(into, f"{5 - client.dropped}\\n".encode())
    os._exit(0)
out, into = os.pipe()
workers = sent = 0
told = os.fdopen(out)
while not ending.is_set() or workers < 100:
    children = []
    for _ in range(int(sys.argv[2])):
        child = os.fork()
        if not child: serve(into)
        children.append(child)
    for child in children: os.waitpid(child, 0)
    sent += sum(int(told.readline()) for _ in children)
    workers += len(children)
    time.sleep(0.1)
print(sent, workers, flush=True)
"""


@contextlib.contextmanager
def workers_pass(scene: Scene) -> Iterator[None]:
    with scene.stranger(PASSING, scene.socket, AT_ONCE) as passing:
        passing.go()
        yield
        passing.go()
        sent, workers = map(int, passing.line().split())
        scene.owed["passing"] += sent
        scene.done["workers"] += workers


FAULT = Fault("workers_pass", "a hundred workers and more connect, serve and go", workers_pass)
