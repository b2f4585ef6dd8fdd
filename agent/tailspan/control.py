"""The agent's control socket: one JSON line asks, one JSON line answers, both over a unix stream socket.

Served from the agent's own loop without blocking: a slow or silent client is cut off after :data:`PATIENCE_S`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tailspan.collect.unix import listen
from tailspan.errors import CannotError

PATIENCE_S = 2.0
MAX_LINE = 4096
#: Who asks at a time; more are refused: some wait minutes for their answer, each with a descriptor of the agent.
MAX_CLIENTS = 64

#: Connections accepted in one poll.
_AT_ONCE = 16

Answer = dict[str, Any]
#: What a handler makes of a request: called each poll until it returns an answer.
Pending = Callable[[], Answer | None]
Handler = Callable[[dict[str, Any]], Pending]


@runtime_checkable
class Work(Protocol):
    """A :data:`Pending` that is done for its asker only: he is looked after, and when he goes it is told."""

    def __call__(self) -> Answer | None: ...

    def gone(self) -> None: ...


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = b""
        self.pending: Pending | None = None
        self.deadline = time.monotonic() + PATIENCE_S


class ControlServer:
    def __init__(self, path: Path, handler: Handler) -> None:
        self._path, self._handler = path, handler
        self._clients: list[_Client] = []
        self._listener = listen(path, socket.SOCK_STREAM, 0o660)

    def fileno(self) -> int:
        """Readable when somebody connects."""
        return self._listener.fileno()

    @property
    def is_asked(self) -> bool:
        return bool(self._clients)

    def poll(self) -> None:
        with contextlib.suppress(OSError):
            for _ in range(_AT_ONCE):
                self._accept()
        for client in list(self._clients):
            answer = self._advance(client)
            if answer is not None:
                self._finish(client, answer)

    def _accept(self) -> None:
        """Raises :class:`OSError` where nobody wants to connect."""
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        client = _Client(connection)
        self._clients.append(client)
        if len(self._clients) > MAX_CLIENTS:
            self._finish(client, {"ok": False, "error": f"{MAX_CLIENTS} others ask already"})

    def close(self) -> None:
        for client in self._clients:
            client.connection.close()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _advance(self, client: _Client) -> Answer | None:
        if client.pending is None:
            try:
                chunk = client.connection.recv(MAX_LINE)
            except BlockingIOError:
                late = time.monotonic() > client.deadline
                return {"ok": False, "error": "no request came"} if late else None
            except OSError:
                return {}
            client.received += chunk
            if not chunk or len(client.received) > MAX_LINE:
                return {"ok": False, "error": "no request in one line"}
            if b"\n" not in client.received:
                return None
            try:
                request = json.loads(client.received)
            except (ValueError, RecursionError):
                return {"ok": False, "error": "the request is no JSON"}
            if not isinstance(request, dict):
                return {"ok": False, "error": "the request is no JSON object"}
            client.pending = self._handler(request)
        if isinstance(client.pending, Work) and _has_gone(client.connection):
            client.pending.gone()
            return {}
        return client.pending()

    def _finish(self, client: _Client, answer: Answer) -> None:
        self._clients.remove(client)
        try:
            client.connection.settimeout(0.05)  # the answer fits the socket's buffer
            client.connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            pass  # the one who asked has gone
        client.connection.close()


def _has_gone(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def ask(path: Path, request: dict[str, Any], timeout_s: float) -> Answer:
    """Ask the agent that runs on this host. Raises :class:`CannotError` where none answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            received = b""
            while chunk := connection.recv(1 << 16):
                received += chunk
        except OSError as error:
            raise CannotError(f"no agent answers on {path}: {error.strerror or error}") from None
    try:
        answer = json.loads(received)
    except ValueError:
        raise CannotError(f"the agent on {path} answered with no JSON") from None
    if not isinstance(answer, dict):
        raise CannotError(f"the agent on {path} answered with no JSON object")
    return answer
