"""Networks of our own: namespaces joined by a veth pair or a delaying TUN pair, slow and lossy links. Need root.

All is made inside the namespaces and goes with them; the host's own interfaces are not touched.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from tests.workloads import program

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class End:
    """One end of a link: a namespace, the device in it that leads to the other end, and its IPv4 address."""

    namespace: str
    device: str
    address: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """Put before a command, this runs it in the namespace (``program(..., prefix=end.prefix)``)."""
        return ("ip", "netns", "exec", self.namespace)

    def run(self, *command: str) -> str:
        """Run a command in the namespace; its output. Raises when it fails."""
        return subprocess.run([*self.prefix, *command], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def _namespaces() -> Iterator[tuple[End, End]]:
    number = next(_numbers)
    ends = [
        End(f"tailspan-{os.getpid()}-{number}{side}", f"to-{other}", f"10.98.0.{host}")
        for side, other, host in (("l", "right", 1), ("r", "left", 2))
    ]
    with contextlib.ExitStack() as stack:
        for end in ends:
            subprocess.run(["ip", "netns", "add", end.namespace], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", end.namespace], check=True)
            end.run("ip", "link", "set", "lo", "up")
        yield ends[0], ends[1]


@contextlib.contextmanager
def link() -> Iterator[tuple[End, End]]:
    """Two namespaces joined by a veth pair, 1500 bytes a frame; a packet is one segment, as on a wire."""
    with _namespaces() as (left, right):
        left.run(
            *("ip", "link", "add", left.device, "type", "veth"),
            *("peer", "name", right.device, "netns", right.namespace),
        )
        for end in (left, right):
            end.run("ip", "addr", "add", f"{end.address}/24", "dev", end.device)
            end.run("ip", "link", "set", end.device, "gso_max_segs", "1", "up")
        yield left, right


#: Holds every packet sys.argv[1] seconds, in order. The devices are made in this namespace, one is given away.
_DELAY = """
import collections, contextlib, fcntl, select, struct, subprocess
TUNSETIFF = 0x400454CA
def tun(name):
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH14x", name.encode(), 0x1001))  # IFF_TUN | IFF_NO_PI
    return device
delay, near, far, namespace = float(sys.argv[1]), *sys.argv[2:5]
a, b = tun(near), tun(far)
subprocess.run(["ip", "link", "set", far, "netns", namespace], check=True)
print("ready", flush=True)
held = collections.deque()
while True:
    wait = max(0, held[0][0] - time.monotonic()) if held else None
    for device in select.select([a, b], [], [], wait)[0]:
        with contextlib.suppress(BlockingIOError):
            while True:
                held.append((time.monotonic() + delay, b if device == a else a, os.read(device, 65536)))
    while held and held[0][0] <= time.monotonic():
        _, device, packet = held.popleft()
        with contextlib.suppress(OSError):  # it is down: the packet is lost
            os.write(device, packet)
"""


@contextlib.contextmanager
def slow_link(delay_s: float) -> Iterator[tuple[End, End]]:
    """Two namespaces; a packet takes ``delay_s`` from one to the other, a round trip twice that."""
    with _namespaces() as (left, right):
        given = (delay_s, left.device, right.device, right.namespace)
        with program(_DELAY, *given, prefix=left.prefix) as relay:
            relay.go()
            assert relay.line() == "ready"
            for end in (left, right):
                end.run("ip", "addr", "add", f"{end.address}/24", "dev", end.device)
                end.run("ip", "link", "set", end.device, "up")
            yield left, right


@contextlib.contextmanager
def rate_limit(end: End, rate: str, limit: str = "1mb") -> Iterator[None]:
    """What leaves ``end`` goes out at ``rate`` (``10mbit``); ``limit`` may wait in its queue, more is dropped."""
    shape = ("rate", rate, "burst", "3000", "limit", limit)
    end.run("tc", "qdisc", "add", "dev", end.device, "root", "tbf", *shape)
    try:
        yield
    finally:
        end.run("tc", "qdisc", "del", "dev", end.device, "root")


class Loss:
    def __init__(self, end: End) -> None:
        self._end = end

    def dropped(self) -> int:
        """Packets dropped so far, as tc counts them."""
        said = self._end.run("tc", "-s", "qdisc", "show", "dev", self._end.device, "clsact")
        return sum(int(count) for count in re.findall(r"dropped (\d+)", said))


@contextlib.contextmanager
def loss(end: End, every: int) -> Iterator[Loss]:
    """Of each connection's IPv4 packets that come to ``end`` every ``every``-th is lost, if it carries data.

    They are dropped where they arrive: the sender's stack would notice a loss on its own side. A connection
    numbers its packets, retransmitted ones too, in the identification field of the IP header: no chance in it.
    """
    instructions = (
        (0x80, 0, 0, 0),  # A = length of the packet
        (0x35, 0, 4, 200),  # below 200: no data, keep
        (0x28, 0, 0, 14 + 4),  # A = identification, behind the Ethernet header
        (0x94, 0, 0, every),  # A %= every
        (0x15, 0, 1, 0),
        (0x06, 0, 0, 2),  # TC_ACT_SHOT
        (0x06, 0, 0, 0),  # TC_ACT_OK
    )
    bytecode = f"{len(instructions)}," + ",".join(" ".join(map(str, each)) for each in instructions)
    end.run("tc", "qdisc", "add", "dev", end.device, "clsact")
    try:
        end.run("tc", "filter", "add", "dev", end.device, "ingress", "bpf", "da", "bytecode", bytecode)
        yield Loss(end)
    finally:
        end.run("tc", "qdisc", "del", "dev", end.device, "clsact")
