"""OTLP over gRPC. The messages stay bytes: what is forwarded is what came."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import grpc

from tailspan.collect.otlp.address import cannot, resolve
from tailspan.collect.otlp.decode import MAX_BODY_BYTES
from tailspan.collect.otlp.intake import Intake, Turns
from tailspan.collect.otlp.senders import Peer
from tailspan.errors import MessageError
from tailspan.tls import HANDSHAKE_S, ServerTls, of_listener
from tailspan.wire.otlp import Signal

_SERVICES = {
    "opentelemetry.proto.collector.trace.v1.TraceService": Signal.TRACES,
    "opentelemetry.proto.collector.metrics.v1.MetricsService": Signal.METRICS,
    "opentelemetry.proto.collector.logs.v1.LogsService": Signal.LOGS,
}
_CODES = {
    "oversized": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "too_many_parts": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "foreign_uid": grpc.StatusCode.PERMISSION_DENIED,
    "busy": grpc.StatusCode.UNAVAILABLE,
}
_THREADS = 4
#: Of one sender at a time, whose SDK has a connection for each signal; the other threads are for others.
_THREADS_OF_ONE = 3
#: Calls in progress or waiting for a thread, one message each; more are told that resources are exhausted.
_MAX_CALLS = 64
_MAX_CONNECTIONS = 256
_OPTIONS = (
    # Somewhat above what decode() takes: what gRPC refuses itself, before and after decompression, is not counted.
    ("grpc.max_receive_message_length", MAX_BODY_BYTES + (1 << 20)),
    ("grpc.max_allowed_incoming_connections", _MAX_CONNECTIONS),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.so_reuseport", 0),  # two agents on one port would get half of the messages each
)


class GrpcServer:
    """Serves until :meth:`close`. Raises :class:`CannotError` where the address cannot be bound."""

    def __init__(self, address: str, intake: Intake, tls: ServerTls | None = None) -> None:
        """``tls`` is for an address beyond loopback; on loopback it is not used."""
        self._intake = intake
        self._turns = Turns(_THREADS, _THREADS_OF_ONE)
        family, bound = resolve(address)
        _try(address, family, bound)
        host = f"[{bound[0]}]" if family == socket.AF_INET6 else bound[0]
        options = (*_OPTIONS, ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_S * 1000)))
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, "tailspan-otlp"), options=options, maximum_concurrent_rpcs=_MAX_CALLS
        )
        self._server.add_generic_rpc_handlers([self._handler(name, signal) for name, signal in _SERVICES.items()])
        tls = of_listener(tls, "otlp.grpc", bound[0])
        try:
            self.port = int(
                self._server.add_secure_port(f"{host}:{bound[1]}", _credentials(tls))
                if tls
                else self._server.add_insecure_port(f"{host}:{bound[1]}")
            )
        except RuntimeError as error:
            raise cannot(address, str(error)) from None
        self._server.start()

    def close(self) -> None:
        """Calls in progress are let finish for a second."""
        self._server.stop(1.0).wait()

    def _handler(self, service: str, signal: Signal) -> grpc.GenericRpcHandler:
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(self._export(signal))
        return grpc.method_handlers_generic_handler(service, {"Export": method})

    def _export(self, signal: Signal) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def export(body: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                peer = self._peer(context.peer())
                with self._turns.of(self._intake.sender(peer), wait_s=0):
                    self._intake.take(signal, body, False, peer)
            except MessageError as error:
                self._intake.count(error.reason)
                context.set_code(_CODES.get(error.reason, grpc.StatusCode.INVALID_ARGUMENT))
                context.set_details(str(error))
            except Exception:
                self._intake.failed()
                context.set_code(grpc.StatusCode.INTERNAL)
            return b""  # every Export*ServiceResponse without a word

        return export

    def _peer(self, told: str) -> Peer | None:
        """``ipv4:127.0.0.1:43210``, ``ipv6:%5B::1%5D:43210``; None for what is neither."""
        host, _, port = unquote(told.partition(":")[2]).rpartition(":")
        try:
            return Peer.of(host.strip("[]"), int(port), self.port)
        except ValueError:
            return None


def _credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Asked for at every handshake, which may be a new certificate's first."""

    def current() -> grpc.ServerCertificateConfiguration:
        loaded = tls.current()
        pair = (loaded.key, loaded.certificate)
        return grpc.ssl_server_certificate_configuration([pair], loaded.client_ca or None)

    return grpc.dynamic_ssl_server_credentials(current(), current, bool(tls.current().client_ca))


def _try(address: str, family: socket.AddressFamily, bound: tuple[str, int]) -> None:
    """gRPC itself does not say why it cannot have an address, but to stderr."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(bound)
            if bound[1]:
                probe.listen(1)
        except OSError as error:
            raise cannot(address, error.strerror or str(error)) from None
