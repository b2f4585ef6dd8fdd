"""Backends for OTLP on loopback: one that says what it is told to, over gRPC and HTTP, and dead ones."""

from __future__ import annotations

import gzip
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tailspan.wire.otlp import Signal

SERVICES = {
    Signal.TRACES: "opentelemetry.proto.collector.trace.v1.TraceService",
    Signal.METRICS: "opentelemetry.proto.collector.metrics.v1.MetricsService",
    Signal.LOGS: "opentelemetry.proto.collector.logs.v1.LogsService",
}
CODES = {400: grpc.StatusCode.INVALID_ARGUMENT, 503: grpc.StatusCode.UNAVAILABLE}


@dataclass
class Reply:
    body: bytes = b""
    status: int = 200  #: HTTP's; gRPC's by CODES
    headers: dict[str, str] = field(default_factory=dict)
    metadata: tuple[tuple[str, bytes], ...] = ()
    code: grpc.StatusCode | None = None


@dataclass
class Backend:
    """Takes everything; what it says is ``replies`` one after the other, then that all is well."""

    replies: list[Reply] = field(default_factory=list)
    taken: list[bytes] = field(default_factory=list)  #: payloads that it has said yes to
    paths: list[str] = field(default_factory=list)  #: URL path or method
    types: list[str] = field(default_factory=list)  #: content types
    times_s: list[float] = field(default_factory=list)  #: of every attempt

    def payloads(self, signal: Signal) -> list[bytes]:
        """Those that it has said yes to, of one signal."""
        paths = (f"/v1/{signal}", f"/{SERVICES[signal]}/Export")
        return [payload for path, payload in zip(self.paths, self.taken, strict=True) if path in paths]

    def answer(self, path: str, media: str, payload: bytes) -> Reply:
        reply = self.replies.pop(0) if self.replies else Reply()
        self.times_s.append(time.monotonic())
        if reply == Reply():
            self.taken.append(payload)
            self.paths.append(path)
            self.types.append(media)
        return reply


@contextmanager
def grpc_backend(backend: Backend, port: int = 0, certificates: Certificates | None = None) -> Iterator[str]:
    def export(payload: bytes, context: grpc.ServicerContext, path: str) -> bytes:
        reply = backend.answer(path, "", payload)
        context.set_trailing_metadata(reply.metadata)
        code = reply.code or CODES.get(reply.status)
        if code:
            context.abort(code, "no")
        return reply.body

    class Raw(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(
                lambda payload, context: export(payload, context, details.method)
            )

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Raw()], options=[("grpc.so_reuseport", 0)])
    if certificates:
        credentials = grpc.ssl_server_credentials(
            [(certificates.server_key.read_bytes(), certificates.server.read_bytes())],
            certificates.ca.read_bytes(),
            require_client_auth=True,
        )
        port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    else:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"http{'s' if certificates else ''}://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def http_backend(backend: Backend, port: int = 0, certificates: Certificates | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                payload = gzip.decompress(payload)
            reply = backend.answer(self.path, self.headers["Content-Type"], payload)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that does not trust this server

    server = Server(("127.0.0.1", port), Handler)
    if certificates:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates.ca))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(certificates.server, certificates.server_key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http{'s' if certificates else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


BACKENDS = {"grpc": grpc_backend, "http/protobuf": http_backend}


@contextmanager
def slow() -> Iterator[str]:
    """Reads a kilobyte a second, and never answers."""
    ended = threading.Event()

    def read(connection: socket.socket) -> None:
        with connection:
            while not ended.wait(1.0):
                with suppress(BlockingIOError, ConnectionError):
                    connection.recv(1024, socket.MSG_DONTWAIT)

    def accept(listening: socket.socket) -> None:
        while not ended.is_set():
            try:
                threads.append(threading.Thread(target=read, args=(listening.accept()[0],)))
            except OSError:
                return
            threads[-1].start()

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        threads = [threading.Thread(target=accept, args=(listening,))]
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            ended.set()
            listening.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


@contextmanager
def refusing() -> Iterator[str]:
    """A port that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def silent() -> Iterator[str]:
    """A port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def traces(number: int, size: int = 0) -> bytes:
    """An encoded request of one span, of that name, and some bytes more."""
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.name = f"{number}"
    span.trace_state = "x" * size
    payload: bytes = request.SerializeToString()
    return payload


@dataclass
class Certificates:
    folder: Path

    def __post_init__(self) -> None:
        self.ca = self._made("ca", "-x509", "-days", "2")
        self.client, self.client_key = self._signed("client", days=2)
        self.server, self.server_key = self._signed("server", days=2)

    def expire(self) -> None:
        self.server, self.server_key = self._signed("server", days=-1)

    def _signed(self, name: str, days: int) -> tuple[Path, Path]:
        request, signed = self._made(name), self.folder / f"{name}.pem"
        names = self.folder / "names"
        names.write_text("subjectAltName=IP:127.0.0.1\n")
        ca_key = self.folder / "ca.key"
        self._openssl(
            *("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", ca_key, "-CAcreateserial"),
            *("-days", f"{days}", "-extfile", names, "-out", signed),
        )
        return signed, self.folder / f"{name}.key"

    def _made(self, name: str, *more: str) -> Path:
        path = self.folder / f"{name}.made"
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *more),
            *("-subj", f"/CN={name}", "-keyout", self.folder / f"{name}.key", "-out", path),
        )
        return path

    def _openssl(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
