"""How encoded bytes of one signal reach the backend, and what it said to them.

The official exporters read the ``OTEL_EXPORTER_OTLP_*`` variables (endpoint, headers, certificates, compression,
timeout) and connect; over what they have set up go bytes that are encoded already. They do not retry here: when to
try again is the breaker's to say, so that nothing waits twice.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tailspan.errors import CannotError, UsageError
from tailspan.wire.otlp import Signal, parse_json

GARBAGE = "garbage"  #: what came back is no answer to OTLP: a login page, another service
TIMEOUT = "timeout"
TLS = "tls"
UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The backend has taken it, all but ``rejected`` items."""

    rejected: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """It may be tried again."""

    reason: str  #: a label's value: one of the above, ``http_503``, ``grpc_aborted``
    detail: str = ""
    after_s: float | None = None  #: not before, the backend has said


@dataclass(frozen=True, slots=True)
class Refused:
    """It will never be taken."""

    detail: str


Answer = Accepted | Failed | Refused


class Transport(Protocol):
    """Used by one thread; :meth:`close` may come from another, and ends a call in flight where it can."""

    def send(self, payload: bytes, is_json: bool) -> Answer: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Service:
    """What OpenTelemetry calls the things of one signal."""

    signal: Signal
    package: str
    noun: str
    module: str
    exporter: str
    rejected: str

    @property
    def method(self) -> str:
        return f"/opentelemetry.proto.collector.{self.package}.v1.{self.noun}Service/Export"

    def request(self) -> Any:
        return self._message("Request")

    def accepted(self, body: bytes, is_json: bool = False) -> Accepted | None:
        """What an answer of success says; None where it is no such answer."""
        response = self._message("Response")
        try:
            if is_json and body:
                parse_json(body, response)
            else:
                response.ParseFromString(body)
        except Exception:  # protobuf's DecodeError, of whichever implementation
            return None
        partial = response.partial_success
        return Accepted(max(0, getattr(partial, self.rejected)), partial.error_message)

    def exporter_class(self, protocol: str) -> Any:
        """Raises ImportError."""
        module = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{protocol}.{self.module}")
        return getattr(module, self.exporter)

    def _message(self, kind: str) -> Any:
        name = f"opentelemetry.proto.collector.{self.package}.v1.{self.package}_service_pb2"
        return getattr(importlib.import_module(name), f"Export{self.noun}Service{kind}")()


SERVICES = {
    service.signal: service
    for service in (
        Service(Signal.TRACES, "trace", "Trace", "trace_exporter", "OTLPSpanExporter", "rejected_spans"),
        Service(
            Signal.METRICS, "metrics", "Metrics", "metric_exporter", "OTLPMetricExporter", "rejected_data_points"
        ),
        Service(Signal.LOGS, "logs", "Logs", "_log_exporter", "OTLPLogExporter", "rejected_log_records"),
    )
}


def configured(environ: Mapping[str, str], signal: Signal = Signal.TRACES) -> bool:
    """True where an endpoint is named: no variable, no export, as the agent must not invent a backend."""
    return bool(
        environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    )


def open_transport(signal: Signal, environ: Mapping[str, str]) -> Transport:
    """Connects to nothing yet. Raises UsageError where a variable is wrong, CannotError where a library is.

    ``environ`` is ``os.environ``: the exporters read that one.
    """
    protocol = (
        environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL")
        or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "grpc"  # the Python SDK's own default
    )
    _check(signal, environ, protocol)
    try:
        if protocol == "grpc":
            from tailspan.export.otlp.over_grpc import GrpcTransport

            return GrpcTransport(SERVICES[signal])
        if protocol == "http/protobuf":
            from tailspan.export.otlp.over_http import HttpTransport

            return HttpTransport(SERVICES[signal])
    except (UsageError, CannotError):
        raise
    except ImportError as error:
        raise CannotError(
            f"OTLP cannot be sent: {error}; install opentelemetry-exporter-otlp 1.38 to 1.45"
        ) from None
    except Exception as error:  # a bad timeout, compression or certificate: each raises a type of its own
        raise UsageError(f"OTEL_EXPORTER_OTLP_* is wrong: {error!r}") from None
    raise UsageError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: only grpc and http/protobuf are supported")


def _check(signal: Signal, environ: Mapping[str, str], protocol: str) -> None:
    """What the exporters themselves do not refuse, or not in words. Raises UsageError."""
    for what in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE", "COMPRESSION"):
        names = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_{what}", f"OTEL_EXPORTER_OTLP_{what}")
        name = next((name for name in names if environ.get(name)), "")
        value = environ.get(name, "")
        if what == "COMPRESSION":
            if value == "none" and protocol == "grpc":
                raise UsageError(f"{name}=none: the gRPC exporter does not know it; none is what it does if unset")
        elif value:
            try:
                with open(value, "rb"):
                    pass
            except OSError as error:
                raise UsageError(f"{name}={value}: {error.strerror}") from None
