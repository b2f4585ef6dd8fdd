"""Packets that nobody asked for, received on the worker's CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.scorecard.children import python
from tests.scorecard.scene import Scene

#: Instructions of the filter that every packet goes through, as through a long list of firewall rules.
RULES = 300

_KEEP_ARP = ("40 0 0 12", "21 0 1 2054", "6 0 0 0")  # A = the Ethernet type; if it is ARP, TC_ACT_OK
_LOAD_RANDOM = "32 0 0 4294963256"  # A = a random number (SKF_AD_OFF + SKF_AD_RANDOM)
_DROP = "6 0 0 2"  # TC_ACT_SHOT

SENDER = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.connect((sys.argv[1], 9))
print("begun", flush=True)
while True:
    sender.send(b"flood")
"""


@contextmanager
def flood(scene: Scene) -> Iterator[None]:
    """Datagrams to the worker's end of its link, dropped by a long filter on the worker's CPU."""
    end = scene.near
    steering = f"/sys/class/net/{end.device}/queues/rx-0/rps_cpus"
    end.run("sh", "-c", f"echo {1 << scene.worker_cpu:x} > {steering}")
    end.run("tc", "qdisc", "add", "dev", end.device, "clsact")
    try:
        instructions = (*_KEEP_ARP, *[_LOAD_RANDOM] * RULES, _DROP)
        program = ",".join((str(len(instructions)), *instructions))
        end.run("tc", "filter", "add", "dev", end.device, "ingress", "bpf", "da", "bytecode", program)
        with python(SENDER, end.address, cpu=scene.other_cpu, log=scene.log, prefix=scene.far.prefix):
            yield
    finally:
        end.run("tc", "qdisc", "del", "dev", end.device, "clsact")
        end.run("sh", "-c", f"echo 0 > {steering}")
