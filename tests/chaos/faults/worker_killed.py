"""Another worker is killed in the middle of its requests, and started again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from tests.chaos.beside import beside
from tests.chaos.fault import Fault
from tests.chaos.scene import Scene

LIFE_S = 0.6
SERVES = """
import tailspan.client
client = tailspan.client.connect("killed", path=sys.argv[1])
def serve():
    while True:
        with client.request("killed") as request:
            with request.span("work"): time.sleep(0.002)
for _ in range(4): threading.Thread(target=serve, daemon=True).start()
threading.Event().wait()
"""


@contextlib.contextmanager
def worker_killed(scene: Scene) -> Iterator[None]:
    def live(ended: threading.Event) -> None:
        while not ended.is_set():
            with scene.stranger(SERVES, scene.socket) as worker:
                worker.go()
                ended.wait(LIFE_S)
                scene.done["kills"] += 1

    with beside(live):
        yield


FAULT = Fault("worker_killed", "another worker is killed while it serves, and started again", worker_killed)
