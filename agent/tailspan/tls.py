"""TLS of what listens beyond loopback: the certificate, and whose clients may connect.

Files are read again when they change, as certbot and Kubernetes replace them: by a rename, or a link that leads
elsewhere then. What cannot be used is counted and logged, and what was read before stays in use.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tailspan.config import Tls
from tailspan.errors import CannotError, UsageError

log = logging.getLogger(__name__)

#: Files are looked at no more often than this, and only when somebody connects.
LOOK_EVERY_S = 1.0
#: What a client has for its handshake.
HANDSHAKE_S = 5.0

#: Of each file, whatever its links lead to now: device, inode, size, time of change.
_Stamp = tuple[tuple[int, int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files had when they were read."""

    context: ssl.SSLContext
    certificate: bytes  #: PEM, as are the others
    key: bytes
    client_ca: bytes  #: empty: anybody may connect
    expires_unix_s: float


class ServerTls:
    """Answers from any thread. Raises :class:`CannotError` for files that cannot be used from the start."""

    def __init__(self, tls: Tls) -> None:
        for name, path in (("certificate", tls.certificate), ("key", tls.key)):
            if not path:
                raise UsageError(f"tls.{name} is not set, but another key of [tls] is: it takes both")
        self._tls = tls
        self._lock = threading.Lock()
        self._looked_s = time.monotonic()
        self._stamp = _stamp(tls)
        self._loaded = _load(tls)
        self._reloads: Counter[str] = Counter()

    @property
    def reloads(self) -> Counter[str]:
        """Times that changed files were taken ("loaded") or not ("refused"); a copy."""
        with self._lock:
            return self._reloads.copy()

    @property
    def expires_unix_s(self) -> float:
        """When the certificate in use ends."""
        return self._loaded.expires_unix_s

    def current(self) -> Loaded:
        """What new connections are to use; looks whether the files have changed, at most once a second."""
        with self._lock:
            if time.monotonic() - self._looked_s >= LOOK_EVERY_S:
                self._looked_s = time.monotonic()
                stamp = _stamp(self._tls)
                if stamp != self._stamp:
                    self._stamp = stamp
                    self._reload()
            return self._loaded

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        """An accepted connection, whose handshake is still to be made. Raises OSError."""
        return self.current().context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def _reload(self) -> None:
        try:
            self._loaded = _load(self._tls)
        except CannotError as error:
            self._reloads["refused"] += 1
            log.warning("what was read before stays in use: %s", error)
        else:
            self._reloads["loaded"] += 1
            log.info("the TLS files have changed and are in use; the certificate ends %s", _day(self._loaded))


def server(tls: Tls) -> ServerTls | None:
    """None where ``tls`` is not configured. Raises :class:`CannotError`, or :class:`UsageError` for half of it."""
    return ServerTls(tls) if tls.certificate or tls.key or tls.client_ca else None


def of_listener(tls: ServerTls | None, what: str, host: str) -> ServerTls | None:
    """What a listener at an address is to use: nothing on loopback; beyond it and without TLS, a warning."""
    if is_loopback(host):
        return None
    if tls is None:
        log.warning(
            "%s is served beyond this host in the clear, on %s: set tls.certificate and tls.key", what, host
        )
    return tls


def is_loopback(host: str) -> bool:
    """Of an address, or a name that has one. What cannot be resolved is not."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    except (OSError, UnicodeError):
        return False
    address = ipaddress.ip_address(str(found).partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def shake_hands(connection: socket.socket) -> None:
    """On the connection's own thread. Raises OSError, TimeoutError among them."""
    if isinstance(connection, ssl.SSLSocket):
        connection.settimeout(HANDSHAKE_S)
        connection.do_handshake()


def _load(tls: Tls) -> Loaded:
    certificate, key = _read("certificate", tls.certificate), _read("key", tls.key)
    client_ca = _read("client_ca", tls.client_ca) if tls.client_ca else b""
    context = _server_context(tls)
    if tls.client_ca:
        with _saying(f"tls.client_ca: {tls.client_ca} has no certificate of an authority"):
            context.load_verify_locations(cafile=tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    loaded = Loaded(context, certificate, key, client_ca, _tried(tls))
    _complain_of_mode(tls.key)
    return loaded


def _server_context(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    with _saying(
        f"tls.certificate: {tls.certificate} is no certificate in PEM, or tls.key: {tls.key} is not its key"
    ):
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password(tls.key))
    return context


def _no_password(path: str) -> Callable[[], str]:
    def ask() -> str:
        raise CannotError(f"tls.key: {path} is encrypted: the agent has nobody to ask for its password")

    return ask


def _tried(tls: Tls) -> float:
    """When the certificate ends, by a handshake in memory with a client that trusts in it and in nothing else."""
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client_context.load_verify_locations(cafile=tls.certificate)
    client = client_context.wrap_bio(theirs, ours)
    server = _server_context(tls).wrap_bio(ours, theirs, server_side=True)
    with _saying(f"tls.certificate: clients will not take {tls.certificate}"):
        for _ in range(2):
            for end in (client, server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
    about = client.getpeercert() or {}
    return float(ssl.cert_time_to_seconds(str(about["notAfter"])))


@contextlib.contextmanager
def _saying(what: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise CannotError(f"{what}: {error.verify_message}") from None
    except (OSError, ValueError) as error:
        raise CannotError(f"{what}: {str(error).partition(' (_ssl')[0]}") from None


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        who = f" (the agent runs as user {os.geteuid()})" if isinstance(error, PermissionError) else ""
        raise CannotError(f"tls.{name}: cannot read {path}: {error.strerror}{who}") from None


def _complain_of_mode(path: str) -> None:
    with contextlib.suppress(OSError):
        if Path(path).stat().st_mode & 0o007:
            log.warning("tls.key: every user of this host may read %s", path)


def _stamp(tls: Tls) -> _Stamp:
    return tuple(_of_file(path) for path in (tls.certificate, tls.key, tls.client_ca))


def _of_file(path: str) -> tuple[int, int, int, int] | None:
    try:
        about = Path(path).stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino, about.st_size, max(about.st_mtime_ns, about.st_ctime_ns)


def _day(loaded: Loaded) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(loaded.expires_unix_s))
