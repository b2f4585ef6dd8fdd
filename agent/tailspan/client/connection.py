"""The worker process's connection to the agent: it never blocks, never raises, and counts what it loses.

A message that the socket does not take at once is dropped and counted: the agent is absent, stopped or slow,
and the worker must not notice. No lock is taken to send: one packet is one message, and the kernel keeps
packets whole.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
import time
import weakref

from tailspan.client import pauses
from tailspan.wire.spans import MAX_PACKET, Drops, Hello, Message, encode

#: The agent is looked for at most this often.
RETRY_NS = 1_000_000_000

#: Errors of one packet; any other error but EAGAIN means that the connection is gone.
_PACKET_ERRORS = {errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM}


class _Socket(socket.socket):
    """Closed when the last thread that sends on it lets go of it.

    To close it earlier would let the kernel give its number to another file of the worker while a sender is
    on its way into the system call.
    """

    def __del__(self) -> None:
        self.close()


class _Counter:
    """Counts up in one step of the interpreter: no lock, and neither a thread nor a signal handler loses one."""

    def __init__(self) -> None:
        count = itertools.count()
        self.add = count.__next__
        self._read = 0  # looking at an iterator moves it
        self._lock = threading.Lock()

    def total(self) -> int:
        with self._lock:
            self._read += 1
            return self.add() - self._read + 1


#: Messages that this process has handed to the kernel, on all its connections: all but hellos and drops.
_sent = _Counter()
#: What this process has lost, on all its connections, by thread: no lock, and no update is lost.
_dropped: dict[int, int] = {}


class Connection:
    """``hello`` opens every connection; its ``pid`` is set to that of the process that connects."""

    def __init__(self, path: str, hello: Hello) -> None:
        self.pid = os.getpid()
        self._path = path
        self._hello = hello
        self._socket: _Socket | None = None
        self._next_try_mono_ns = 0
        self._connecting = threading.Lock()
        self._drops_unsent = False
        _connections.add(self)

    @property
    def dropped(self) -> int:
        """By this process, on all its connections: that is what the agent is told."""
        return sum(list(_dropped.values()))

    def drop(self) -> None:
        """Count one message, or one part of a message, that the agent will never see."""
        thread = threading.get_ident()
        _dropped[thread] = _dropped.get(thread, 0) + 1
        self._drops_unsent = True

    def ready(self) -> bool:
        """Whether the agent is there. Looks for it, at most once a second, if it was not."""
        return (self._socket or self._connect()) is not None

    def send(self, message: Message) -> None:
        sock = self._socket or self._connect()
        if pauses.waiting and sock is not None:
            self._send_pauses(sock)
        if sock is None or not self._send(sock, message):
            self.drop()
            return
        _sent.add()
        if self._drops_unsent:
            self._drops_unsent = False  # first: a drop of another thread meanwhile is due again
            if not self._send(sock, Drops(self.dropped)):
                self._drops_unsent = True

    def close(self) -> None:
        """Disconnect for good; what is sent later is dropped."""
        self._next_try_mono_ns = 1 << 63
        self._socket = None

    def _send_pauses(self, sock: _Socket) -> None:
        if len(pauses.waiting) == pauses.MAX_WAITING:
            self.drop()  # one or more: how many were pushed out is not known
        for pause in pauses.take():
            if self._send(sock, pause):
                _sent.add()
            else:
                self.drop()

    def _send(self, sock: _Socket, message: Message) -> bool:
        try:
            packet = encode(message)
            if len(packet) <= MAX_PACKET:
                sock.send(packet, socket.MSG_NOSIGNAL)
                return True
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in _PACKET_ERRORS and self._socket is sock:
                self._socket = None
        except Exception:  # the worker gave something that cannot be packed
            pass
        return False

    def _connect(self) -> _Socket | None:
        now = time.monotonic_ns()
        if now < self._next_try_mono_ns or not self._connecting.acquire(blocking=False):
            return None
        try:
            if self._socket is None:  # else another thread was faster
                self._next_try_mono_ns = now + RETRY_NS
                self._socket = self._open()
            return self._socket
        except Exception:  # absent, its backlog is full, the path is impossible, no descriptor is left ...
            return None
        finally:
            self._connecting.release()

    def _open(self) -> _Socket:
        # SOCK_NONBLOCK from birth: even connect() must not wait for a stopped agent.
        sock = _Socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        sock.connect(self._path)
        self._hello.pid, self._hello.sent = self.pid, _sent.total()
        sock.send(encode(self._hello), socket.MSG_NOSIGNAL)
        return sock

    def _after_fork_in_child(self) -> None:
        """A new process: its own hello, on a connection of its own, as soon as it has something to say.

        Not at once, for many children never serve a request. The lock may have been held by a thread that is
        not here.
        """
        self.pid = os.getpid()
        self._connecting = threading.Lock()
        self._drops_unsent = False
        inherited, self._socket = self._socket, None
        if self._next_try_mono_ns < 1 << 63:
            self._next_try_mono_ns = 0
        if inherited is not None:
            inherited.close()  # a thread that is not here may have held it, and will never let go


_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    global _sent, _dropped
    _sent, _dropped = _Counter(), {}
    pauses.forget()
    for connection in list(_connections):
        connection._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
