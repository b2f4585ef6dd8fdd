"""The control socket: what nobody should ask, and connections that ask nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.scene import Scene

ASKS = """
import random, socket
ending = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ending.set()), daemon=True).start()
dice = random.Random(11)
LINES = [
    b'{"do": "health"}\\n', b'{"do": "syscalls", "seconds": 0.01}\\n', b'{"do": "syscalls", "seconds": 1e999}\\n',
    b'{"do": "syscalls", "seconds": true}\\n', b'{"do": ["health"]}\\n', b'{}\\n', b'7\\n', b'\\n', b'nul', b'',
    b'[' * 3000 + b'\\n', b'{"a":' * 700 + b'\\n', b'\\xff\\xfe\\n', b'9' * 4000 + b'\\n', b'x' * 9000, b'NaN\\n',
]
idle, asked = [], 0
while not ending.is_set():
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(0.5)
        connection.connect(sys.argv[1])
        connection.sendall(dice.choice(LINES))
        idle.append(connection)
        asked += 1
        if len(idle) > 100: idle.pop(0).close()
    except OSError: time.sleep(0.01)
print(asked, flush=True)
"""


@contextlib.contextmanager
def control_flood(scene: Scene) -> Iterator[None]:
    with scene.stranger(ASKS, scene.control) as flood:
        flood.go()
        yield
        flood.go()
        scene.done["connections"] += int(flood.line())


FAULT = Fault("control_flood", "nonsense and silence on the control socket", control_flood)
