"""What systemd and a service say to each other: word of its state, signs of life, sockets that were opened for it.

All of it goes by environment variables (sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3)); without them
nothing here does anything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from pathlib import Path

logger = logging.getLogger(__name__)

#: Descriptors handed over are numbered from here (SD_LISTEN_FDS_START).
_FIRST = 3


def notify(state: str) -> None:
    """One datagram to the socket that systemd named, if it did; what cannot be sent is not."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.settimeout(1.0)
        channel.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def notify_reloading() -> None:
    """The configuration is about to be read again; ``notify("READY=1")`` says that it was."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


class Watchdog:
    """Signs of life, for as long as somebody calls :meth:`ping` at least as often as the unit's WatchdogSec=."""

    def __init__(self) -> None:
        """Looks whether this process is to give any."""
        ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._every_ns = _number("WATCHDOG_USEC") * 1000 // 3 if ours else 0
        self._next_mono_ns = 0

    def ping(self) -> None:
        """Sent at most three times in the time after which systemd loses patience."""
        if not self._every_ns or time.monotonic_ns() < self._next_mono_ns:
            return
        self._next_mono_ns = time.monotonic_ns() + self._every_ns
        notify("WATCHDOG=1")


def inherited(path: Path, kind: socket.SocketKind) -> socket.socket | None:
    """The listener on ``path`` that systemd has opened for this process, non-blocking; None if there is none.

    It is for one call: what else was handed over is closed, with a warning, and children see nothing of it. The
    listener's file is its maker's: neither its mode nor its end is ours.
    """
    ours = os.environ.get("LISTEN_PID") == str(os.getpid())
    count = _number("LISTEN_FDS") if ours else 0
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    found: socket.socket | None = None
    for fd in range(_FIRST, _FIRST + count):
        given = _listener(fd)
        if given is not None and found is None and given.type == kind and _is_at(given, path):
            given.setblocking(False)
            found = given
            continue
        where = given.getsockname() if given is not None else "no listener"
        logger.warning("systemd handed over descriptor %d (%s), which is not for %s: closed", fd, where, path)
        with contextlib.suppress(OSError):
            given.close() if given is not None else os.close(fd)
    return found


def _listener(fd: int) -> socket.socket | None:
    """None where the descriptor is none, or none that listens."""
    try:
        os.set_inheritable(fd, False)
        given = socket.socket(fileno=fd)
        if given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return given
        given.detach()
    except OSError:
        pass
    return None


def _is_at(listener: socket.socket, path: Path) -> bool:
    name = listener.getsockname()
    if listener.family != socket.AF_UNIX or not isinstance(name, str) or not name:
        return False
    return Path(name).resolve() == path.resolve()


def _number(name: str) -> int:
    """0 where the variable is absent, or no number."""
    value = os.environ.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else 0
