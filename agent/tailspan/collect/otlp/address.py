"""Addresses to listen on."""

from __future__ import annotations

import socket

from tailspan.errors import CannotError


def split(address: str) -> tuple[str, int]:
    """``[::1]:4318`` -> ``::1``, 4318. Raises :class:`CannotError` for what is no ``host:port``."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise cannot(address, "it is no host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def resolve(address: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """The family and the first address to bind to. Raises :class:`CannotError` where the name means nothing."""
    try:
        family, _, _, _, found = socket.getaddrinfo(*split(address), type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise cannot(address, str(error)) from None
    return family, (str(found[0]), int(found[1]))


def cannot(address: str, why: str) -> CannotError:
    return CannotError(
        f"cannot take OTLP on {address}: {why}; choose a free address of this host, or port 0. If a collector has"
        " this port, let the workers send to another one, and the agent to the collector"
    )
