"""A worker forks and executes as fast as it can: its children are followed, each for a moment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.scene import Scene

FORKS = """
import tailspan.client
ending = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ending.set()), daemon=True).start()
client = tailspan.client.connect("forking", path=sys.argv[1])
made = forks = 0
while not ending.is_set():
    with client.request("forking"):
        children = [os.posix_spawn("/bin/true", ["true"], {}) for _ in range(20)]
        threads = [threading.Thread(target=lambda: None) for _ in range(20)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        for child in children: os.waitpid(child, 0)
    forks += len(children)
    made += 1
print(made - client.dropped, forks, flush=True)
"""


@contextlib.contextmanager
def fork_storm(scene: Scene) -> Iterator[None]:
    with scene.stranger(FORKS, scene.socket) as forking:
        forking.go()
        yield
        forking.go()
        sent, forks = map(int, forking.line().split())
        scene.owed["forking"] += sent
        scene.done["forks"] += forks


FAULT = Fault("fork_storm", "a worker forks, executes and starts threads as fast as it can", fork_storm)
