"""Listening on a unix socket that nobody else listens on."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from pathlib import Path

from tailspan.errors import CannotError


def listen(path: Path, kind: socket.SocketKind, mode: int, group: str = "") -> socket.socket:
    """A non-blocking listener with these permissions from its first moment on.

    Takes over a socket that a killed agent left; raises :class:`CannotError` where another one listens.
    """
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.chmod(0o755)  # anybody may enter: the socket has a mode of its own
        _remove_stale(path, kind)
        old_mask = os.umask(0o777 & ~mode)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old_mask)
        if group:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        listener.listen(128)
        listener.setblocking(False)
    except KeyError:
        listener.close()
        raise CannotError(f"worker.group: there is no group {group!r}") from None
    except OSError as error:
        listener.close()
        raise CannotError(f"cannot listen on {path}: {error.strerror or error}") from None
    except CannotError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path, kind: socket.SocketKind) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise CannotError(f"{path} exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                raise
            path.unlink()
        else:
            raise CannotError(f"another agent listens on {path}")
