"""Which process sent a message over TCP, as the host numbers it.

A unix socket says who connected. For TCP the kernel is asked who holds the connection's other end (a BPF iterator,
``bpf/owner.bpf.c``); where that cannot be had, /proc, which shows what it shows. A sender on another host has no
process here, and is unknown.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tailspan.collect.otlp import proc
from tailspan.errors import ProbeError

Table = npt.NDArray[np.void]

#: What is known of a connection, or a process, is asked for again after this: its number may be another's by then.
REMEMBER_S = 10.0
MAX_REMEMBERED = 1024
#: A process that was not there is looked for again after this.
LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Process:
    tgid: int
    ns_tgid: int  #: in its own pid namespace
    uid: int  #: effective


@dataclass(frozen=True, slots=True)
class Peer:
    """A connection, by its other end."""

    address: bytes  #: 16 bytes, IPv4 as ``::ffff:a.b.c.d``
    port: int
    own_port: int  #: of our end

    @classmethod
    def of(cls, address: str, port: int, own_port: int) -> Peer:
        """Raises :class:`ValueError` where ``address`` is none."""
        parsed = ipaddress.ip_address(address.partition("%")[0])
        packed = bytes(10) + b"\xff\xff" + parsed.packed if parsed.version == 4 else parsed.packed
        return cls(packed, port, own_port)

    @property
    def is_loopback(self) -> bool:
        address = ipaddress.IPv6Address(self.address)
        return (address.ipv4_mapped or address).is_loopback


class Kernel(Protocol):
    """What is asked of :class:`~tailspan.collect.bpf.source.BpfSource`."""

    def socket_owners(self, port: int) -> Table: ...

    def processes(self) -> Table: ...


class Senders:
    """Answers from any thread. ``kernel`` None: /proc alone is asked."""

    def __init__(self, kernel: Kernel | None) -> None:
        self._kernel = kernel
        self._lock = threading.Lock()
        self._known: OrderedDict[Peer, tuple[float, tuple[Process, ...]]] = OrderedDict()
        self._processes: dict[int, Process] = {}
        self._processes_read_s = 0.0

    def holders(self, peer: Peer) -> tuple[Process, ...]:
        """The processes that hold the connection, the oldest first: the others inherited it. Empty if unknown."""
        now = time.monotonic()
        with self._lock:
            asked_s, holders = self._known.get(peer, (now, ()))
        if holders and now - asked_s < REMEMBER_S:
            return holders
        holders = self._ask_for_holders(peer)
        if holders:
            with self._lock:
                self._known[peer] = now, holders
                self._known.move_to_end(peer)
                if len(self._known) > MAX_REMEMBERED:
                    self._known.popitem(last=False)
        return holders

    def forget(self, peer: Peer) -> None:
        """The connection is closed."""
        with self._lock:
            self._known.pop(peer, None)

    def process(self, tgid: int) -> Process | None:
        """One that lives, or did :data:`REMEMBER_S` ago."""
        now = time.monotonic()
        with self._lock:
            fresh_s = REMEMBER_S if tgid in self._processes else LOOK_AGAIN_S
            if not self._processes or now - self._processes_read_s > fresh_s:
                self._processes = {process.tgid: process for process in self._ask_for_processes()}
                self._processes_read_s = now
            return self._processes.get(tgid)

    def _ask_for_holders(self, peer: Peer) -> tuple[Process, ...]:
        try:
            if self._kernel:
                return _holders(self._kernel.socket_owners(peer.own_port), peer)
        except (ProbeError, OSError):
            pass  # the probe's status says why
        return tuple(Process(*ids) for ids in proc.holders(peer.address, peer.port, peer.own_port))

    def _ask_for_processes(self) -> list[Process]:
        try:
            if self._kernel:
                return [_process(row) for row in self._kernel.processes()]
        except (ProbeError, OSError):
            pass
        return [Process(*ids) for ids in proc.processes()]


def _holders(owners: Table, peer: Peer) -> tuple[Process, ...]:
    """On the loopback of another network namespace the same addresses and ports mean another connection."""
    found = owners[(owners["port"] == peer.port) & (owners["address"] == peer.address.rstrip(b"\0"))]
    own = found[found["own_net"] == 1]
    if len(own) or peer.is_loopback:
        found = own
    processes = {int(row["tgid"]): _process(row) for row in np.sort(found, order="started_mono_ns")}
    return tuple(processes.values())


def _process(row: np.void) -> Process:
    return Process(int(row["tgid"]), int(row["ns_tgid"]), int(row["uid"]))
