"""OTLP over HTTP: an exporter's session, and what it sends with, learnt from one call that goes nowhere."""

from __future__ import annotations

import contextlib
import gzip
import math
import time
import zlib
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlparse

import requests
from requests.structures import CaseInsensitiveDict

from tailspan.errors import CannotError, UsageError
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
from tailspan.wire.otlp import Signal

#: What OTLP says may be tried again; 408 and 511 come from what lies between, not from the backend.
RETRYABLE = frozenset({408, 429, 502, 503, 504, 511})
#: An answer to OTLP has some bytes; nobody's login page fills the memory.
MAX_ANSWER_BYTES = 1 << 16

_JSON = "application/json"
_COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


class HttpTransport:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._session = requests.Session()
        self._url, given = _learn(service, self._session)
        self._headers = CaseInsensitiveDict(given.pop("headers", None) or {})
        self._given = given
        encoding = {**self._session.headers, **self._headers}.get("Content-Encoding", "")
        self._compress = _COMPRESS.get(str(encoding).lower())
        self._timeout_s = round(float(given.pop("timeout")), 2)

    def send(self, payload: bytes, is_json: bool) -> Answer:
        headers = CaseInsensitiveDict(self._headers)
        if is_json:
            headers["Content-Type"] = _JSON
        deadline = time.monotonic() + self._timeout_s
        try:
            with self._session.post(
                self._url,
                data=self._compress(payload) if self._compress else payload,
                headers=headers,
                timeout=self._timeout_s,
                stream=True,
                allow_redirects=False,
                **self._given,
            ) as response:
                return self._answer(response, _body(response, deadline))
        except requests.exceptions.SSLError as error:
            return Failed(TLS, str(error))
        except (requests.exceptions.Timeout, TimeoutError) as error:
            return Failed(TIMEOUT, str(error))
        except (requests.exceptions.RequestException, OSError) as error:
            return Failed(UNREACHABLE, str(error))

    def close(self) -> None:
        """A call in flight goes on until its timeout."""
        self._session.close()

    def _answer(self, response: requests.Response, body: bytes | None) -> Answer:
        status = response.status_code
        if 200 <= status < 300:
            media = response.headers.get("Content-Type", "")
            accepted = None
            if body is not None and not media.startswith("text/"):
                accepted = self._service.accepted(body, media.startswith(_JSON))
            return accepted or Failed(GARBAGE, f"HTTP {status} with {media or 'no content type'}")
        if status < 400:
            return Failed(GARBAGE, f"HTTP {status} to {response.headers.get('Location', '')}")
        if status in RETRYABLE:
            return Failed(f"http_{status}", after_s=_retry_after_s(response.headers.get("Retry-After")))
        said = " ".join((body or b"")[:200].decode(errors="replace").split())
        return Refused(f"HTTP {status} {response.reason or ''}: {said}")


def _learn(service: Service, session: requests.Session) -> tuple[str, dict[str, Any]]:
    """The URL and the arguments with which the official exporter uses ``session``.

    By what is public alone: an exporter takes a session, and calls its ``request``.
    """
    calls: list[tuple[str, dict[str, Any]]] = []

    def keep(method: str, url: str, **arguments: Any) -> requests.Response:
        calls.append((url, arguments))
        answer = requests.Response()
        answer.status_code = 200
        return answer

    session.request = keep  # type: ignore[method-assign, assignment]
    service.exporter_class("http")(session=session).export(_nothing(service.signal))
    del session.request
    if len(calls) != 1 or not calls[0][1].get("timeout"):
        raise CannotError("this opentelemetry-exporter-otlp-proto-http is not known: use 1.38 to 1.45")
    url, arguments = calls[0]
    if urlparse(url).scheme not in ("http", "https"):
        raise UsageError(f"OTEL_EXPORTER_OTLP_ENDPOINT: {url} begins with neither http:// nor https://")
    # REQUESTS_CA_BUNDLE overrides a session's certificate, but not a call's.
    kept = {"verify": session.verify, "cert": session.cert, **arguments}
    return url, {name: kept.get(name) for name in ("headers", "timeout", "verify", "cert")}


def _nothing(signal: Signal) -> Any:
    if signal is not Signal.METRICS:
        return []
    from opentelemetry.sdk.metrics.export import MetricsData

    return MetricsData(resource_metrics=[])


def _body(response: requests.Response, deadline: float) -> bytes | None:
    """All of a small answer; None where it is too large, or comes too slowly."""
    body = bytearray()
    for piece in response.iter_content(1):  # by byte, as a larger piece would be waited for
        body += piece
        if len(body) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
            return None
    return bytes(body)


def _retry_after_s(value: str | None) -> float | None:
    """Seconds, or a date (RFC 9110)."""
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None
