"""Workers that come and go under one process number: each is another process than the one before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.scene import Scene

#: clone3(2) with set_tid: a number that is free, taken again and again. Prints what the kernel took of them.
RECYCLES = """
import ctypes, random, signal, struct
import tailspan.client
ending = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ending.set()), daemon=True).start()
libc = ctypes.CDLL(None, use_errno=True)
largest = int(open("/proc/sys/kernel/pid_max").read())
def clone(number):
    tids = (ctypes.c_int * 1)(number)
    arguments = struct.pack("11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(tids), 1, 0)
    return ctypes.PyDLL(None).syscall(435, arguments, len(arguments))
SERVE = '''
import sys, time, tailspan.client
client = tailspan.client.connect("recycled " + sys.argv[2], path=sys.argv[1])
for _ in range(20):
    with client.request("recycled"): time.sleep(0.0005)
sys.stdout.write(f"{20 - client.dropped}\\\\n")
sys.stdout.flush()
'''
number, life, sent = 0, 0, 0
out, into = os.pipe()
told = os.fdopen(out)
while not ending.is_set():
    child = -1
    for _ in range(100):
        number = number or random.randrange(largest // 2, largest)
        child = clone(number)
        if child == 0:
            os.dup2(into, 1)
            os.execv(sys.executable, [sys.executable, "-c", SERVE, sys.argv[1], str(life)])
        if child > 0: break
        number = 0
    if child < 0: break
    os.waitpid(child, 0)
    sent += int(told.readline())
    life += 1
print(sent, life, flush=True)
"""


@contextlib.contextmanager
def pids_recycled(scene: Scene) -> Iterator[None]:
    with scene.stranger(RECYCLES, scene.socket) as recycling:
        recycling.go()
        yield
        recycling.go()
        sent, lives = map(int, recycling.line().split())
        scene.owed["recycled"] += sent
        scene.done["recycled"] += lives


FAULT = Fault("pids_recycled", "workers that come and go under one and the same pid", pids_recycled, short_s=1.2)
