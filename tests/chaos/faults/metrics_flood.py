"""The metrics' port: scrapes as fast as they are answered, garbage, and connections that say nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.scene import Scene

#: argv: port, then the path that is asked for.
ASKS = """
import random, socket
ending = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ending.set()), daemon=True).start()
dice = random.Random(5)
address = ("127.0.0.1", int(sys.argv[1]))
GET = f"GET {sys.argv[2]} HTTP/1.0\\r\\n\\r\\n".encode()
idle, asked = [], 0
while not ending.is_set():
    try:
        connection = socket.create_connection(address, 1.0)
        kind = dice.randrange(4)
        if kind == 0: connection.sendall(dice.randbytes(2000))
        if kind == 1: connection.sendall(b"POST / HTTP/1.1\\r\\nContent-Length: 99999999\\r\\n\\r\\n" + b"x" * 999)
        if kind == 2: connection.sendall(GET)
        idle.append(connection)
        asked += 1
        if kind == 2: connection.recv(100)
        if len(idle) > 60: idle.pop(0).close()
    except OSError: time.sleep(0.005)
print(asked, flush=True)
"""


@contextlib.contextmanager
def metrics_flood(scene: Scene) -> Iterator[None]:
    with scene.stranger(ASKS, scene.port, "/metrics") as flood:
        flood.go()
        yield
        flood.go()
        scene.done["connections"] += int(flood.line())


FAULT = Fault("metrics_flood", "scrapes, garbage and silent connections on the metrics' port", metrics_flood)
