"""A server's handler over a pair of sockets: bytes in, and the answers that came back."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
from socketserver import ThreadingMixIn
from typing import Any

#: The peer of every connection.
PEER = ("127.0.0.1", 41000)


class _Stream(io.BytesIO):
    def makefile(self, mode: str) -> io.BytesIO:
        """As a socket has it: what http.client asks for."""
        return self

    def close(self) -> None:
        """A response that has been read closes its file; the next one follows in the same."""


def served(server: ThreadingMixIn, sent: bytes) -> bytes:
    """All that the server says to a client that sends this and no more. Raises what its handler raises."""
    ours, theirs = socket.socketpair()
    serving: Any = server
    serving.RequestHandlerClass.disable_nagle_algorithm = False  # of TCP alone
    serving.handle_error = _raise
    said = b""
    with ours, contextlib.suppress(ConnectionResetError):  # the end, where not all was read
        ours.sendall(sent)
        ours.shutdown(socket.SHUT_WR)
        serving.process_request_thread(theirs, PEER)
        while piece := ours.recv(1 << 16):
            said += piece
    return said


def _raise(request: object, client_address: object) -> None:
    raise  # what its caller has caught


def answers(said: bytes, head_only: bool = False) -> tuple[list[tuple[int, bytes]], bytes]:
    """(status, body) of each; and the last one's body if it has no head, as HTTP/0.9 has none.

    Raises where they are not HTTP.
    """
    stream: Any = _Stream(said)
    found: list[tuple[int, bytes]] = []
    while said[stream.tell() :].startswith(b"HTTP/1."):
        response = http.client.HTTPResponse(stream, method="HEAD" if head_only else "GET")
        response.begin()
        assert head_only or response.length is not None or response.will_close, "an answer without its length"
        found.append((response.status, response.read()))
    return found, said[stream.tell() :]
