"""The HTTP side: ``/metrics`` (text or OpenMetrics, gzip, as accepted), ``/healthz``, ``/readyz``, ``/health``.

What each of the last three answers, and who is to ask which: docs/health.md.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import socketserver
import threading
import time
import zlib
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, cast
from urllib.parse import unquote

from tailspan.attribute.health import Grade, State
from tailspan.errors import CannotError
from tailspan.export import health
from tailspan.export.exposition import OPENMETRICS, TEXT, Exposition
from tailspan.export.families import Registry
from tailspan.export.pulse import Pulse
from tailspan.tls import ServerTls, of_listener, shake_hands

log = logging.getLogger(__name__)

#: A client that neither sends nor reads for so long is cut off.
SOCKET_TIMEOUT_S = 5.0
#: How often the server looks whether it is to close.
CLOSE_POLL_S = 0.1
#: Connections served at a time; more are closed at once, so that idle clients cannot pile up threads.
MAX_CONNECTIONS = 8
#: One that has not had its answer after so long is cut off, however busily it sends or reads.
CONNECTION_S = 30.0
#: Of 1 to 9: the text becomes a twelfth, and more effort would gain little.
GZIP_LEVEL = 1
#: Answers up to here leave as they are.
SMALL_BYTES = 1024
_GZIP = 16 + zlib.MAX_WBITS  # zlib.h: with a gzip header
_PLAIN, _JSON = "text/plain; charset=utf-8", "application/json"
_PATHS = b"try /metrics, /health, /healthz or /readyz\n"


class MetricsServer:
    """Serves until :meth:`close`. Raises :class:`CannotError` where the address cannot be bound.

    ``tls`` is for an address beyond loopback; on loopback it is not used.
    """

    def __init__(
        self,
        registry: Registry,
        host: str = "127.0.0.1",
        port: int = 9464,
        tls: ServerTls | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        self._server = _bind(host, port)
        self._server.tls = of_listener(tls, "export.prometheus", host)
        self._server.exposition = Exposition(registry)
        self._server.pulse = pulse or Pulse()
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
    pulse: Pulse
    tls: ServerTls | None = None

    def __init__(self, family: socket.AddressFamily, address: tuple[Any, ...]) -> None:
        self.address_family = family
        self._lock = threading.Lock()
        self._deadlines: dict[socket.socket, float] = {}  # of the connections being served
        super().__init__(cast("tuple[str, int]", address), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        return self.tls.wrap(connection) if self.tls else connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            full = len(self._deadlines) >= MAX_CONNECTIONS
            if not full:
                self._deadlines[request] = time.monotonic() + CONNECTION_S
        if full:
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the kernel gives no thread: a service's TasksMax
            self._forget(request)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        shake_hands(request)
        super().finish_request(request, client_address)

    def service_actions(self) -> None:
        now = time.monotonic()
        with self._lock:
            for connection, deadline in self._deadlines.items():
                if now > deadline:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._deadlines.pop(connection, None)

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
            self._answer_unless(server.pulse.dead())
        elif path == "/readyz":
            self._answer_unless(server.pulse.unready())
        elif path == "/health":
            report = server.pulse.health()
            self._answer_grade(report.host, health.as_json(report))
        elif path.startswith("/health/"):
            self._answer_of_worker(server.pulse, unquote(path.removeprefix("/health/"), errors="replace"))
        else:
            self._answer(HTTPStatus.NOT_FOUND, _PLAIN, _PATHS)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer_unless(self, problem: str) -> None:
        status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
        self._answer(status, _PLAIN, f"{problem or 'ok'}\n".encode())

    def _answer_of_worker(self, pulse: Pulse, name: str) -> None:
        found = health.found(pulse.health(), name)
        if found:
            self._answer_grade(*found)
        elif pulse.knows():
            self._answer(HTTPStatus.NOT_FOUND, _PLAIN, b"no worker of that service, and no worker of that pid\n")
        else:
            # Who asks may take a worker out of service, and an agent that has just started has heard of none yet.
            grade = Grade(why=pulse.unready() or "not heard of yet")
            self._answer_grade(grade, {"service": name, **health.grade_as_json(grade), "processes": []})

    def _answer_grade(self, grade: Grade, body: health.Json) -> None:
        status = HTTPStatus.SERVICE_UNAVAILABLE if grade.state is State.CRITICAL else HTTPStatus.OK
        self._answer(status, _JSON, json.dumps(body).encode() + b"\n")

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Vary", "Accept, Accept-Encoding")
        if len(body) > SMALL_BYTES and _accepts(self.headers.get("Accept-Encoding", ""), "gzip"):
            self.send_header("Content-Encoding", "gzip")
            body = zlib.compress(body, GZIP_LEVEL, wbits=_GZIP)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
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
