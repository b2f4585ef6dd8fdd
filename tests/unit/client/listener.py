"""An agent's ear: a real SOCK_SEQPACKET listener, without the agent."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TypeVar

from tailspan.wire.spans import Hello, Message, Pause, decode

BUDGET_S = 10.0

M = TypeVar("M", bound=Message)


class Peer:
    """One accepted connection. ``heard``: all that was received, in order.

    Pauses are found there only: when a process collects its garbage is no part of what most tests are about.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.heard: list[Message] = []
        self._sock = sock
        self._sock.settimeout(BUDGET_S)

    def receive(self) -> Message | None:
        """The next message; None when the worker's end is closed. Fails the test when none comes in time."""
        while packet := self._sock.recv(1 << 16):
            self.heard.append(decode(packet))
            if not isinstance(self.heard[-1], Pause):
                return self.heard[-1]
        return None

    def expect(self, kind: type[M]) -> M:
        message = self.receive()
        assert isinstance(message, kind), message
        return message

    def waiting(self) -> list[Message]:
        """All that has arrived already."""
        messages: list[Message] = []
        self._sock.setblocking(False)
        try:
            while (message := self.receive()) is not None:
                messages.append(message)
        except BlockingIOError:
            pass
        finally:
            self._sock.settimeout(BUDGET_S)
        return messages

    def close(self) -> None:
        self._sock.close()


class Listener:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.bind(str(path))
        self._sock.listen(16)
        self._sock.settimeout(BUDGET_S)
        self._peers: list[Peer] = []

    def accept(self) -> Peer:
        peer = Peer(self._sock.accept()[0])
        self._peers.append(peer)
        return peer

    def accept_and_greet(self) -> tuple[Peer, Hello]:
        peer = self.accept()
        return peer, peer.expect(Hello)

    def nobody_waits(self) -> bool:
        self._sock.setblocking(False)
        try:
            self.accept()
        except BlockingIOError:
            return True
        finally:
            self._sock.settimeout(BUDGET_S)
        return False

    def stop(self) -> None:
        for peer in self._peers:
            peer.close()
        self._sock.close()
        self.path.unlink(missing_ok=True)
