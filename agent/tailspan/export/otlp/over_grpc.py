"""OTLP over gRPC: an exporter's channel, with bytes in place of messages.

Here alone private parts of the official exporter are used: its channel, its headers, its timeout.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from tailspan.errors import CannotError
from tailspan.export.otlp.transport import (
    GARBAGE,
    TIMEOUT,
    TLS,
    UNREACHABLE,
    Answer,
    Failed,
    Refused,
    Service,
)
from tailspan.wire.otlp import parse_json

#: What OTLP says may be tried again; RESOURCE_EXHAUSTED only where the backend says when.
RETRYABLE = frozenset(
    {
        StatusCode.CANCELLED,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.ABORTED,
        StatusCode.OUT_OF_RANGE,
        StatusCode.UNAVAILABLE,
        StatusCode.DATA_LOSS,
    }
)
#: When to try again is the breaker's to say: the channel itself connects anew soon.
_CHANNEL = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000))
_TLS_WORDS = ("ssl", "tls", "certificate", "handshake")


class GrpcTransport:
    def __init__(self, service: Service) -> None:
        self._service = service
        try:
            exporter = service.exporter_class("grpc")(channel_options=_CHANNEL)
            self._channel = exporter._channel
            self._metadata = tuple(exporter._headers)
            self._timeout_s = float(exporter._timeout)
            self._call = self._channel.unary_unary(
                service.method, request_serializer=None, response_deserializer=None
            )
        except (AttributeError, TypeError) as error:
            raise CannotError(
                f"this opentelemetry-exporter-otlp-proto-grpc is not known ({error}): use 1.38 to 1.45"
            ) from None

    def send(self, payload: bytes, is_json: bool) -> Answer:
        if is_json:
            message = self._service.request()
            try:
                parse_json(payload, message)
            except ValueError as error:
                return Refused(str(error))
            payload = message.SerializeToString()
        try:
            body = self._call(payload, metadata=self._metadata, timeout=self._timeout_s)
        except grpc.RpcError as error:
            return _failure(error)
        except ValueError as error:  # the channel is closed
            return Failed(UNREACHABLE, str(error))
        return self._service.accepted(body) or Failed(GARBAGE, f"{len(body)} bytes that are no answer")

    def close(self) -> None:
        self._channel.close()


def _failure(error: Any) -> Answer:
    code, detail = error.code(), error.details() or ""
    after_s = _retry_after_s(error.trailing_metadata() or ())
    if code is StatusCode.UNAVAILABLE:
        is_tls = any(word in detail.lower() for word in _TLS_WORDS)
        return Failed(TLS if is_tls else UNREACHABLE, detail, after_s)
    if code is StatusCode.DEADLINE_EXCEEDED:
        return Failed(TIMEOUT, detail, after_s)
    if code in RETRYABLE or (code is StatusCode.RESOURCE_EXHAUSTED and after_s is not None):
        return Failed(f"grpc_{code.name.lower()}", detail, after_s)
    return Refused(f"{code.name}: {detail}")


def _retry_after_s(metadata: Any) -> float | None:
    """What google.rpc.RetryInfo says, in the status's details or, as some send it, by itself."""
    for key, value in metadata:
        info = RetryInfo()
        try:
            if key == "grpc-status-details-bin":
                details = [
                    detail for detail in Status.FromString(value).details if detail.Is(RetryInfo.DESCRIPTOR)
                ]
                if not details:
                    continue
                details[0].Unpack(info)
            elif key == "google.rpc.retryinfo-bin":
                info.ParseFromString(value)
            else:
                continue
        except Exception:  # protobuf's DecodeError, of whichever implementation
            continue
        delay_s: float = info.retry_delay.seconds + info.retry_delay.nanos * 1e-9
        return max(0.0, delay_s)
    return None
