"""The HTTP side of the metrics: ``/metrics`` (text or OpenMetrics, gzip, as accepted), ``/healthz``, else 404."""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
import zlib
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, cast

from tailspan.errors import CannotError
from tailspan.export.exposition import OPENMETRICS, TEXT, Exposition
from tailspan.export.families import Registry

log = logging.getLogger(__name__)

#: A client that neither sends nor reads for so long is cut off.
SOCKET_TIMEOUT_S = 5.0
#: How often the server looks whether it is to close.
CLOSE_POLL_S = 0.1
#: Connections served at a time; more are closed at once, so that idle clients cannot pile up threads.
MAX_CONNECTIONS = 8
#: Of 1 to 9: the text becomes a twelfth, and more effort would gain little.
GZIP_LEVEL = 1
#: Answers up to here leave as they are.
SMALL_BYTES = 1024
_GZIP = 16 + zlib.MAX_WBITS  # zlib.h: with a gzip header


class MetricsServer:
    """Serves until :meth:`close`. Raises :class:`CannotError` where the address cannot be bound.

    ``problem`` gives what is wrong with the agent now, in one line; "" makes ``/healthz`` say 200.
    """

    def __init__(
        self,
        registry: Registry,
        host: str = "127.0.0.1",
        port: int = 9464,
        problem: Callable[[], str] = lambda: "",
    ) -> None:
        self._server = _bind(host, port)
        self._server.exposition = Exposition(registry)
        self._server.problem = problem
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(CLOSE_POLL_S,), name="tailspan-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingTCPServer):
    # Not http.server.HTTPServer: binding it asks the resolver for the host's full name.
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    exposition: Exposition
    problem: Callable[[], str]

    def __init__(self, family: socket.AddressFamily, address: tuple[Any, ...]) -> None:
        self.address_family = family
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(cast("tuple[str, int]", address), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("metrics client %s", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server_version = "tailspan"
    sys_version = ""
    timeout = SOCKET_TIMEOUT_S

    def do_GET(self) -> None:
        server = cast(_Server, self.server)
        path = self.path.partition("?")[0]
        if path == "/metrics":
            openmetrics = _accepts(self.headers.get("Accept", ""), "application/openmetrics-text", "1.0.0")
            content_type = OPENMETRICS if openmetrics else TEXT
            self._answer(HTTPStatus.OK, content_type, server.exposition.render(openmetrics))
        elif path == "/healthz":
            problem = server.problem()
            status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
            self._answer(status, "text/plain; charset=utf-8", f"{problem or 'ok'}\n".encode())
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"try /metrics or /healthz\n")

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Vary", "Accept, Accept-Encoding")
        if len(body) > SMALL_BYTES and _accepts(self.headers.get("Accept-Encoding", ""), "gzip"):
            self.send_header("Content-Encoding", "gzip")
            body = zlib.compress(body, GZIP_LEVEL, wbits=_GZIP)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _accepts(header: str, wanted: str, version: str = "") -> bool:
    """Whether an Accept or Accept-Encoding header has ``wanted``, of that version where it names one."""
    for accepted in header.lower().split(","):
        name, *parameters = (part.strip() for part in accepted.split(";"))
        given = dict(parameter.partition("=")[::2] for parameter in parameters)
        refused = given.get("q", "1").strip("0.") == ""
        if name == wanted and not refused and given.get("version", version) == version:
            return True
    return False


def _bind(host: str, port: int) -> _Server:
    try:
        if not 0 <= port < 1 << 16:
            raise OverflowError("no such port")  # getaddrinfo would take it modulo 65536
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return _Server(family, address)
    except (OSError, OverflowError, UnicodeError) as error:
        raise CannotError(
            f"cannot serve metrics on {host}:{port}: {error}; choose a free address of this host, or port 0"
        ) from None
