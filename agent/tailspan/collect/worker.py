"""The workers' socket: a SOCK_SEQPACKET unix socket, one message a packet, drained on the agent's timer.

The kernel says who connected (SO_PEERCRED), so a message can only speak of its sender's own threads. A packet that
cannot be decoded is counted and dropped; a connection that sends nothing but those costs nobody else anything.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tailspan.collect.unix import listen
from tailspan.errors import MessageError
from tailspan.timeline.inbox import Received
from tailspan.wire.spans import MAX_PACKET, decode

#: Packets read from one connection per poll: what a flood leaves waits in its own socket buffer.
PACKETS_PER_POLL = 512

_PEERCRED = struct.Struct("iII")


@dataclass(slots=True)
class Peer:
    pid: int
    uid: int
    connection: socket.socket = field(repr=False)


class WorkerServer:
    """``dropped`` counts refused packets and connections by reason."""

    def __init__(
        self,
        path: Path,
        mode: int = 0o660,
        group: str = "",
        allow_uids: tuple[int, ...] = (),
        max_connections: int = 256,
    ) -> None:
        self.path = path
        self._allow_uids = allow_uids
        self._max_connections = max_connections
        self.peers: dict[int, Peer] = {}  # by file descriptor
        self.dropped: Counter[str] = Counter()
        self._left: set[int] = set()
        self._listener = listen(path, socket.SOCK_SEQPACKET, mode, group)

    def accept(self) -> list[Peer]:
        """New connections, refused ones closed and counted."""
        accepted: list[Peer] = []
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return accepted
            except OSError:
                self.dropped["accept_failed"] += 1
                return accepted
            pid, uid, _ = _PEERCRED.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
            )
            if self._allow_uids and uid not in self._allow_uids:
                self.dropped["foreign_uid"] += 1
            elif len(self.peers) >= self._max_connections:
                self.dropped["too_many_connections"] += 1
            elif not pid:  # its pid namespace is not below ours: its threads cannot be named
                self.dropped["foreign_pid_namespace"] += 1
            else:
                connection.setblocking(False)
                peer = Peer(pid, uid, connection)
                self.peers[connection.fileno()] = peer
                accepted.append(peer)
                continue
            connection.close()

    def read(self) -> list[Received]:
        """What the peers have sent; closes the connections that ended."""
        received: list[Received] = []
        for fd, peer in list(self.peers.items()):
            if not self._read_peer(peer, received):
                peer.connection.close()
                del self.peers[fd]
                self._left.add(peer.pid)
        return received

    def take_gone(self) -> set[int]:
        """pids whose last connection has ended since the last call."""
        gone = self._left - {peer.pid for peer in self.peers.values()}
        self._left = set()
        return gone

    def close(self) -> None:
        for peer in self.peers.values():
            peer.connection.close()
        self.peers.clear()
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _read_peer(self, peer: Peer, received: list[Received]) -> bool:
        for _ in range(PACKETS_PER_POLL):
            try:
                packet, _, flags, _ = peer.connection.recvmsg(MAX_PACKET)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not packet:
                return False
            if flags & socket.MSG_TRUNC:
                self.dropped["oversized"] += 1
                continue
            try:
                received.append(Received(peer.pid, decode(packet), time.monotonic_ns()))
            except MessageError as error:
                self.dropped[error.reason] += 1
        return True
