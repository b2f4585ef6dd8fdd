"""A worker sends as fast as it can; another one, which is none, sends what is no message."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.scene import Scene

_UNTIL_TOLD = """
ending = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ending.set()), daemon=True).start()
"""
VALID = (
    _UNTIL_TOLD
    + """
import tailspan.client
client = tailspan.client.connect("flood", path=sys.argv[1])
made = 0
while not ending.is_set():
    with client.request("flood"): pass
    made += 1
print(made - client.dropped, flush=True)
"""
)
#: Random bytes, msgpack that is no message, packets that are too long, on connections that come and go.
GARBAGE = (
    _UNTIL_TOLD
    + """
import msgpack, random, socket
dice = random.Random(23)
def packet():
    kind = dice.randrange(5)
    if kind == 0: return dice.randbytes(dice.randrange(1, 400))
    if kind == 1: return msgpack.packb([dice.randrange(-9, 9) for _ in range(dice.randrange(30))])
    if kind == 2: return bytes([0x91]) * 900
    if kind == 3: return dice.randbytes(70_000)
    return msgpack.packb({"a" * dice.randrange(99): [None] * 99})
def connected():
    found = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found.settimeout(1.0)
    found.connect(sys.argv[1])
    return found
open_ = []
while not ending.is_set():
    try:
        if len(open_) < 20: open_.append(connected())
        for _ in range(50): dice.choice(open_).send(packet(), socket.MSG_DONTWAIT)
    except BlockingIOError: time.sleep(0.002)
    except OSError:
        for each in open_: each.close()
        open_.clear()
print("end", flush=True)
"""
)


@contextlib.contextmanager
def socket_flood(scene: Scene) -> Iterator[None]:
    with scene.stranger(VALID, scene.socket) as valid, scene.stranger(GARBAGE, scene.socket) as garbage:
        for each in (valid, garbage):
            each.go()
        yield
        for each in (valid, garbage):
            each.go()
        scene.owed["flood"] += int(valid.line())
        garbage.line()


WITNESS = 'tailspan_dropped_messages_total{reason="malformed"}'
FAULT = Fault(
    "socket_flood", "a flood of messages and of garbage on the workers' socket", socket_flood, witness=WITNESS
)
