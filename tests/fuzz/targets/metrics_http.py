"""What is sent to the port of ``/metrics`` and ``/health``."""

from __future__ import annotations

import functools

from tailspan.export.families import Registry
from tailspan.export.scrape import MetricsServer
from tests.fuzz.target import Target
from tests.fuzz.targets import http

_STATUSES = {200, 400, 404, 414, 431, 501, 503, 505}


@functools.cache
def _server() -> MetricsServer:
    return MetricsServer(Registry(), port=0)


def close() -> None:
    _server().close()
    _server.cache_clear()


def check(data: bytes) -> None:
    said = http.served(_server()._server, data)
    words = data.partition(b"\n")[0].decode("latin-1").split()
    # Of an error in the first line the base class sends a body all the same.
    got, headless = http.answers(said, head_only=words[:1] == ["HEAD"] and said.endswith(b"\r\n\r\n"))
    assert {status for status, _ in got} <= _STATUSES, got
    assert len(got) + bool(headless) <= 1, "HTTP/1.0: one answer a connection"


def seeds() -> dict[str, bytes]:
    paths = {"metrics": "/metrics?name=x", "healthz": "/healthz", "readyz": "/readyz", "health": "/health"}
    accept = (
        "Accept: application/openmetrics-text; version=1.0.0; q=0.5, text/plain;q=0\r\nAccept-Encoding: gzip\r\n"
    )
    return {
        **{name: f"GET {path} HTTP/1.1\r\nHost: h\r\n{accept}\r\n".encode() for name, path in paths.items()},
        "worker": b"GET /health/caf%C3%A9%ff HTTP/1.0\r\n\r\n",
        "head": b"HEAD /metrics HTTP/1.1\r\n\r\n",
        "old": b"GET /metrics\r\n\r\n",
    }


TARGET = Target(
    name="metrics_http",
    reads="what comes to the port of `/metrics` and `/health`, by `export.scrape` over a real socket",
    holds="one whole answer with a status that is documented; no exception reaches the server",
    sources=("tailspan.export.scrape",),
    check=check,
    close=close,
    seeds=seeds,
    words=(b"GET /health/", b"Accept: ", b"Accept-Encoding: ", b"gzip", b";q=0.0", b"HTTP/1.1", b"\r\n\r\n", b"%"),
    max_bytes=1024,
)
