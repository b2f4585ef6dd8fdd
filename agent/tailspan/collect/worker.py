"""The workers' socket: a SOCK_SEQPACKET unix socket, one message a packet, drained on the agent's timer.

The kernel says who connected (SO_PEERCRED), so a message can only speak of its sender's own threads. A packet that
cannot be decoded is counted and dropped. Processes are read in turn, each within a budget that all its connections
share: what one sends above it is dropped unread and counted, and costs nobody else anything.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import struct
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tailspan.collect.unix import listen
from tailspan.errors import MessageError
from tailspan.log import once_per
from tailspan.timeline.inbox import Received
from tailspan.timeline.tables import LOSS, LOSS_CLIENT
from tailspan.wire.spans import MAX_PACKET, decode

logger = logging.getLogger(__name__)

#: Packets read from one process per poll, and those of them that are dropped for its budget: what a flood leaves
#: waits in its own socket buffers, and its client counts what they do not take.
PACKETS_PER_POLL, DROPS_PER_POLL = 512, 128
#: Packets read from one process before another has its turn.
PACKETS_PER_TURN = 16
#: How long one poll may read, and accept: the rest of the agent waits meanwhile.
READ_NS, ACCEPT_NS = 8_000_000, 2_000_000
#: What a process may send at once after a pause: its budget of so many seconds.
BURST_S = 1.0
#: Connections that a process may open a second: each takes this share of its budget.
CONNECTS_PER_S = 100

OVER_BUDGET = "over_budget"
#: Unread in a connection that was closed because it is not allowed, or takes the place of others.
CLOSED = "closed"

_PEERCRED = struct.Struct("iII")


@dataclass(slots=True, eq=False)
class Peer:
    pid: int
    uid: int
    connection: socket.socket = field(repr=False)


@dataclass(slots=True, eq=False)
class _Process:
    """All connections of one process, and what it may still send."""

    pid: int
    tokens: float
    filled_ns: int
    peers: list[Peer] = field(default_factory=list)
    ready: deque[Peer] = field(default_factory=deque)  #: that have something to read in this poll
    last_turn: int = 0
    may_read: int = 0  #: in this poll
    may_drop: int = 0

    def fill(self, per_s: int, now_ns: int) -> None:
        self.tokens = min(per_s * BURST_S, self.tokens + (now_ns - self.filled_ns) * per_s / 1e9)
        self.filled_ns = now_ns


@dataclass(slots=True)
class _Over:
    """Packets that were dropped for a budget; ``pid``: whose was the first."""

    pid: int
    since_mono_ns: int
    packets: int = 0


class WorkerServer:
    """``dropped`` counts refused packets and connections by reason.

    ``listener``: one that somebody else has made and keeps, as systemd does; None makes one at ``path``.
    """

    def __init__(
        self,
        path: Path,
        mode: int = 0o660,
        group: str = "",
        allow_uids: tuple[int, ...] = (),
        max_connections: int = 256,
        packets_per_s: int = 20_000,
        listener: socket.socket | None = None,
    ) -> None:
        self.path = path
        self._allow_uids = allow_uids
        self._max_connections = max_connections
        self._packets_per_s = packets_per_s
        self.peers: dict[int, Peer] = {}  # by file descriptor
        self.dropped: Counter[str] = Counter()
        self._processes: dict[int, _Process] = {}
        self._turns = 0
        self._left: set[int] = set()
        self._over: _Over | None = None
        self._is_ours = listener is None
        self._listener = listener or listen(path, socket.SOCK_SEQPACKET, mode, group)
        self._listener.setblocking(False)
        self._polled = select.epoll()

    def fileno(self) -> int:
        """Readable when somebody connects."""
        return self._listener.fileno()

    def accept(self) -> list[Peer]:
        """New connections, refused ones closed and counted."""
        accepted: list[Peer] = []
        deadline_ns = time.monotonic_ns() + ACCEPT_NS
        while time.monotonic_ns() < deadline_ns:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                break
            except OSError:
                self.dropped["accept_failed"] += 1
                break
            connection.setblocking(False)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
            pid, uid, _ = _PEERCRED.unpack(credentials)
            peer = Peer(pid, uid, connection)
            reason = self._why_not(peer)
            if reason:
                self.dropped[reason] += 1
                connection.close()
            else:
                self._add(peer)
                accepted.append(peer)
        return [peer for peer in accepted if peer.connection.fileno() in self.peers]

    def read(self) -> list[Received]:
        """What the peers have sent; closes the connections that ended."""
        received: list[Received] = []
        waiting = self._waiting()
        now_ns = time.monotonic_ns()
        deadline_ns = now_ns + READ_NS
        while waiting and now_ns < deadline_ns:
            process = waiting.popleft()
            process.fill(self._packets_per_s, now_ns)
            self._turns += 1
            process.last_turn = self._turns
            if self._has_more(process, received):
                waiting.append(process)
            now_ns = time.monotonic_ns()
        return received

    def limit(self, allow_uids: tuple[int, ...], max_connections: int, packets_per_s: int) -> None:
        """From now on. Connections that are not allowed any more, or too many, are closed and counted."""
        self._allow_uids = allow_uids
        self._max_connections = max_connections
        self._packets_per_s = packets_per_s
        for peer in list(self.peers.values()):
            if allow_uids and peer.uid not in allow_uids:
                self._refuse(peer, "foreign_uid")
        while len(self.peers) > max_connections:
            uid = Counter(peer.uid for peer in self.peers.values()).most_common(1)[0][0]
            self._refuse(self._processes[self._most_of(uid)[0]].peers[-1], "too_many_connections")

    def take_gone(self) -> set[int]:
        """pids whose last connection has ended since the last call."""
        now_ns = time.monotonic_ns()
        for process in list(self._processes.values()):
            process.fill(self._packets_per_s, now_ns)
            # Not before its budget is whole again: one that connects anew would have another.
            if not process.peers and process.tokens >= self._packets_per_s * BURST_S:
                del self._processes[process.pid]
        gone = self._left - {peer.pid for peer in self.peers.values()}
        self._left = set()
        return gone

    def take_losses(self) -> npt.NDArray[np.void]:
        """What was dropped for a budget since the last call, as LOSS rows."""
        over, self._over = self._over, None
        if not over:
            return np.empty(0, LOSS)
        who = "pid %d sends more than worker.packets_per_s = %d: %d packets are dropped"
        once_per(60, OVER_BUDGET, logger, who, over.pid, self._packets_per_s, over.packets)
        return np.array([(over.since_mono_ns, time.monotonic_ns(), over.packets, LOSS_CLIENT, 0)], LOSS)

    def close(self) -> None:
        for peer in self.peers.values():
            peer.connection.close()
        self.peers.clear()
        self._processes.clear()
        self._polled.close()
        self._listener.close()
        if self._is_ours:
            self.path.unlink(missing_ok=True)

    # --- who may connect ------------------------------------------------------------------------------------

    def _why_not(self, peer: Peer) -> str:
        """Why a new connection is refused; "" where it is not."""
        if self._allow_uids and peer.uid not in self._allow_uids:
            self._say_foreign(peer)
            return "foreign_uid"
        if not peer.pid:  # its pid namespace is not below ours: its threads cannot be named
            return "foreign_pid_namespace"
        now_ns = time.monotonic_ns()
        process = self._processes.get(peer.pid)
        if process is None:
            process = _Process(peer.pid, self._packets_per_s * BURST_S, now_ns)
            self._processes[peer.pid] = process
        process.fill(self._packets_per_s, now_ns)
        price = self._packets_per_s / CONNECTS_PER_S
        if process.tokens < price:
            return "too_many_connects"
        process.tokens -= price
        return "" if self._has_room_for(peer) else "too_many_connections"

    def _has_room_for(self, peer: Peer) -> bool:
        """When all places are taken, who has the most of them gives one up to who has less."""
        if len(self.peers) < self._max_connections:
            return True
        of_users = Counter(other.uid for other in self.peers.values())
        uid, places = of_users.most_common(1)[0]
        if places <= of_users[peer.uid] + 1:
            uid = peer.uid
        pid, places = self._most_of(uid)
        if uid == peer.uid and places <= len(self._processes[peer.pid].peers) + 1:
            return False
        self._refuse(self._processes[pid].peers[-1], "too_many_connections")
        return True

    def _most_of(self, uid: int) -> tuple[int, int]:
        """The process of a user that has most connections, and how many."""
        counts = Counter(peer.pid for peer in self.peers.values() if peer.uid == uid)
        return counts.most_common(1)[0] if counts else (0, 0)

    def _add(self, peer: Peer) -> None:
        descriptor = peer.connection.fileno()
        self.peers[descriptor] = peer
        self._processes[peer.pid].peers.append(peer)
        self._polled.register(descriptor, select.EPOLLIN)

    def _refuse(self, peer: Peer, reason: str) -> None:
        """Close a connection that was accepted before; what waits in it is counted."""
        self.dropped[reason] += 1
        if reason == "foreign_uid":
            self._say_foreign(peer)
        with contextlib.suppress(OSError):  # it has gone
            peer.connection.shutdown(socket.SHUT_RDWR)  # else it might send faster than is counted
        while _skip(peer.connection) > 0:
            self.dropped[CLOSED] += 1
        self._remove(peer)

    def _remove(self, peer: Peer) -> None:
        del self.peers[peer.connection.fileno()]
        self._processes[peer.pid].peers.remove(peer)
        self._left.add(peer.pid)
        peer.connection.close()

    def _say_foreign(self, peer: Peer) -> None:
        who = "refused pid %d: worker.allow_uids does not have its user %d"
        once_per(60, "foreign_uid", logger, who, peer.pid, peer.uid)

    # --- reading --------------------------------------------------------------------------------------------

    def _waiting(self) -> deque[_Process]:
        """Processes that have sent something; whose turn is longest ago comes first."""
        found: dict[int, _Process] = {}
        for descriptor, _ in self._polled.poll(0, max(1, len(self.peers))):
            peer = self.peers[descriptor]
            process = self._processes[peer.pid]
            if peer.pid not in found:
                found[peer.pid] = process
                process.ready.clear()
                process.may_read, process.may_drop = PACKETS_PER_POLL, DROPS_PER_POLL
            process.ready.append(peer)
        return deque(sorted(found.values(), key=lambda process: process.last_turn))

    def _has_more(self, process: _Process, received: list[Received]) -> bool:
        """One turn of a process; whether it may have another in this poll."""
        peer = process.ready[0]
        process.ready.rotate(-1)
        has_more = self._take(process, peer, received) if process.tokens >= 1 else self._drop(process, peer)
        if not has_more:
            process.ready.remove(peer)
        return bool(process.ready) and process.may_read > 0 and process.may_drop > 0

    def _take(self, process: _Process, peer: Peer, received: list[Received]) -> bool:
        """Some packets; False where no more are there now."""
        for _ in range(min(PACKETS_PER_TURN, int(process.tokens))):
            try:
                packet, _, flags, _ = peer.connection.recvmsg(MAX_PACKET)
            except BlockingIOError:
                return False
            except OSError:
                packet, flags = b"", 0
            if not packet:
                self._remove(peer)
                return False
            process.tokens -= 1
            process.may_read -= 1
            if flags & socket.MSG_TRUNC:
                self.dropped["oversized"] += 1
                continue
            try:
                received.append(Received(peer.pid, decode(packet), time.monotonic_ns()))
            except MessageError as error:
                self.dropped[error.reason] += 1
        return True

    def _drop(self, process: _Process, peer: Peer) -> bool:
        """Some packets, which nobody looks at; otherwise as :meth:`_take`."""
        dropped, size = 0, 1
        while dropped < PACKETS_PER_TURN and (size := _skip(peer.connection)) > 0:
            dropped += 1
        if dropped:
            process.may_drop -= dropped
            self.dropped[OVER_BUDGET] += dropped
            self._over = self._over or _Over(process.pid, time.monotonic_ns())
            self._over.packets += dropped
        if size == 0:
            self._remove(peer)
        return size > 0


def _skip(connection: socket.socket) -> int:
    """Take the next packet out without looking at it: 1; 0 at the end; -1 where none is there now."""
    try:
        return len(connection.recv(1))
    except BlockingIOError:
        return -1
    except OSError:
        return 0
