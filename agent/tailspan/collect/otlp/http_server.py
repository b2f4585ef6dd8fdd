"""OTLP over HTTP: ``POST /v1/traces``, ``/v1/metrics``, ``/v1/logs``; protobuf or JSON, gzip or none."""

from __future__ import annotations

import io
import json
import logging
import socket
import socketserver
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, cast

from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from tailspan.collect.otlp.address import cannot, resolve
from tailspan.collect.otlp.http_body import read_body
from tailspan.collect.otlp.intake import Intake, Sender, Turns
from tailspan.collect.otlp.senders import Peer
from tailspan.errors import MessageError
from tailspan.tls import ServerTls, of_listener, shake_hands
from tailspan.wire.otlp import Signal

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

log = logging.getLogger(__name__)

#: Connections at a time, a thread each; more are closed at once.
MAX_CONNECTIONS = 128
#: Of them, of one sender.
MAX_CONNECTIONS_OF_ONE = 32
#: Messages that are read or decoded at a time; another waits so long, and is then told to come again.
MAX_MESSAGES = 8
#: Of them, of one sender.
MAX_MESSAGES_OF_ONE = 4
WAIT_FOR_TURN_S = 5.0
#: A connection that says nothing for so long is closed.
IDLE_S = 120.0
#: What a request has from its first byte to its last, and an answer.
MESSAGE_S = 10.0
#: For how long what else comes is read after a refusal: closed before, the sender would not read the answer.
LINGER_S = 1.0
_CLOSE_POLL_S = 0.1

_PROTOBUF, _JSON = "application/x-protobuf", "application/json"
_PATHS = {f"/v1/{signal}": signal for signal in Signal}
_ANSWERS: dict[str, tuple[HTTPStatus, int]] = {  # reason -> (status, google.rpc.Code)
    "malformed": (HTTPStatus.BAD_REQUEST, Code.INVALID_ARGUMENT),
    "oversized": (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, Code.INVALID_ARGUMENT),
    "too_many_parts": (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, Code.INVALID_ARGUMENT),
    "foreign_uid": (HTTPStatus.FORBIDDEN, Code.PERMISSION_DENIED),
    "unsupported": (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, Code.INVALID_ARGUMENT),
    "length_required": (HTTPStatus.LENGTH_REQUIRED, Code.INVALID_ARGUMENT),
    "no_such_path": (HTTPStatus.NOT_FOUND, Code.NOT_FOUND),
    "no_such_method": (HTTPStatus.METHOD_NOT_ALLOWED, Code.UNIMPLEMENTED),
    "busy": (HTTPStatus.SERVICE_UNAVAILABLE, Code.UNAVAILABLE),
    "slow": (HTTPStatus.REQUEST_TIMEOUT, Code.DEADLINE_EXCEEDED),
    "failed": (HTTPStatus.INTERNAL_SERVER_ERROR, Code.INTERNAL),
}


class HttpServer:
    """Serves until :meth:`close`. Raises :class:`CannotError` where the address cannot be bound."""

    def __init__(self, address: str, intake: Intake, tls: ServerTls | None = None) -> None:
        """``tls`` is for an address beyond loopback; on loopback it is not used."""
        family, bound = resolve(address)
        try:
            self._server = _Server(family, bound, intake, of_listener(tls, "otlp.http", bound[0]))
        except OSError as error:
            raise cannot(address, error.strerror or str(error)) from None
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_CLOSE_POLL_S,), name="tailspan-otlp-http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Cuts off who is connected, and waits for the threads."""
        self._server.shutdown()
        self._server.cut_off()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self, family: socket.AddressFamily, bound: tuple[str, int], intake: Intake, tls: ServerTls | None
    ) -> None:
        self.address_family = family
        self.intake = intake
        self._tls = tls
        self.turns = Turns(MAX_MESSAGES, MAX_MESSAGES_OF_ONE)
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self.senders: dict[socket.socket, Sender] = {}  # whose connections they are
        super().__init__(bound, _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        return self._tls.wrap(connection) if self._tls else connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            full = len(self._connections) >= MAX_CONNECTIONS
            if not full:
                self._connections.add(request)
        try:
            if full:
                raise RuntimeError(f"{MAX_CONNECTIONS} connections")
            super().process_request(request, client_address)
        except RuntimeError:  # or the kernel gives no thread: a service's TasksMax
            self.intake.count("too_many_connections")
            self._forget(request)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            shake_hands(request)
        except OSError as error:
            self.intake.count("tls")
            log.debug("OTLP client %s: %s", client_address, error)
            return
        address, port, *_ = client_address
        sender = self.intake.sender(Peer.of(address, port, self.server_address[1]))
        with self._lock:
            full = list(self.senders.values()).count(sender) >= MAX_CONNECTIONS_OF_ONE
            if not full:
                self.senders[request] = sender
        if full:
            self.intake.count("too_many_connections")
        else:
            super().finish_request(request, client_address)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)
            self.senders.pop(connection, None)

    def cut_off(self) -> None:
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("OTLP client %s", client_address, exc_info=True)


class _Incoming(io.RawIOBase):
    """What a connection sends, until a deadline: one that trickles must not hold a thread for ever."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline_s = 0.0

    def allow(self, seconds: float) -> None:
        self._deadline_s = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("it takes too long")
        self._connection.settimeout(left_s)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "tailspan"
    sys_version = ""
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._incoming = _Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming, 1 << 16)
        server = cast(_Server, self.server)
        self._intake = server.intake
        address, port, *_ = self.client_address
        self._peer = Peer.of(address, port, server.server_address[1])

    def finish(self) -> None:
        super().finish()
        self._intake.senders.forget(self._peer)

    def handle_one_request(self) -> None:
        self.close_connection = True
        self._incoming.allow(IDLE_S)
        try:
            begun = cast(io.BufferedReader, self.rfile).peek(1)
        except OSError:
            return
        if begun:
            self._incoming.allow(MESSAGE_S)
            super().handle_one_request()

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.request_version == "HTTP/0.9":
            self.send_error(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
            return False
        return True

    def do_POST(self) -> None:
        try:
            signal, is_json = self._signal(), self._is_json()
            server = cast(_Server, self.server)
            with server.turns.of(server.senders[self.request], WAIT_FOR_TURN_S):
                body = read_body(self.rfile, self.headers)
                self._intake.take(signal, body, is_json, self._peer)
        except MessageError as error:
            self._refuse(error.reason, str(error))
        except TimeoutError:
            self._refuse("slow", f"the request took longer than {MESSAGE_S:.0f} s")
        except ConnectionError:
            self.close_connection = True
        except Exception:
            self._intake.failed()
            self._answer_error(*_ANSWERS["failed"], "an error of the agent's")
        else:
            self._answer(HTTPStatus.OK, _JSON if is_json else _PROTOBUF, b"{}" if is_json else b"")

    def _other_method(self) -> None:
        try:
            self._signal()
            reason, text = "no_such_method", "only POST"
        except MessageError as error:
            reason, text = error.reason, str(error)
        self._refuse(reason, text)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class finds wrong with a request, before one of the methods above has it."""
        self._intake.count("malformed")
        self.request_version = "HTTP/1.0"  # of 0.9 its answer would have no head: nobody could tell what it says
        self._answer_error(HTTPStatus(code), Code.INVALID_ARGUMENT, message or HTTPStatus(code).phrase)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def _signal(self) -> Signal:
        path = self.path.partition("?")[0]
        if path not in _PATHS:
            raise MessageError("no_such_path", "try " + ", ".join(_PATHS))
        return _PATHS[path]

    def _is_json(self) -> bool:
        kind = self._content_type()
        if kind not in (_PROTOBUF, _JSON):
            raise MessageError("unsupported", f"Content-Type {kind[:40]!r}, this is for {_PROTOBUF} or {_JSON}")
        return kind == _JSON

    def _content_type(self) -> str:
        return str(self.headers.get("Content-Type", "")).partition(";")[0].strip().lower()

    def _refuse(self, reason: str, text: str) -> None:
        self._intake.count(reason)
        self._answer_error(*_ANSWERS[reason], text)

    def _answer_error(self, status: HTTPStatus, code: int, text: str) -> None:
        self.close_connection = True
        if getattr(self, "headers", None) is not None and self._content_type() == _PROTOBUF:
            self._answer(status, _PROTOBUF, Status(code=code, message=text).SerializeToString())
        else:
            self._answer(status, _JSON, json.dumps({"code": code, "message": text}).encode())
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self._incoming.allow(LINGER_S)
            while cast(io.BufferedReader, self.rfile).read1(1 << 16):
                pass

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.connection.settimeout(MESSAGE_S)
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if self.close_connection:
                self.send_header("Connection", "close")
            if status is HTTPStatus.METHOD_NOT_ALLOWED:
                self.send_header("Allow", "POST")
            if status is HTTPStatus.SERVICE_UNAVAILABLE:
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True

    do_GET = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _other_method  # noqa: N815 (the base class's names)
