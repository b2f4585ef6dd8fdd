"""What is sent to the OTLP receiver's HTTP port: request lines, headers, lengths, chunks, gzip."""

from __future__ import annotations

import functools
import gzip
import random

import numpy as np

from tailspan.collect.otlp.decode import MAX_BODY_BYTES
from tailspan.collect.otlp.http_server import _ANSWERS, HttpServer
from tailspan.collect.otlp.intake import Intake, Told
from tailspan.collect.otlp.senders import Peer, Senders, Table
from tailspan.wire.events import SOCKET_OWNER
from tailspan.wire.otlp import Signal
from tests.fuzz.target import Change, Target
from tests.fuzz.targets import http
from tests.unit.collect.otlp_messages import as_json, metrics, span, traces

_TGID = 4711
_STATUSES = {200, 414, 431, 501, 505} | {int(status) for status, _ in _ANSWERS.values()}


class _Kernel:
    """Of whom every connection is."""

    def socket_owners(self, port: int) -> Table:
        rows = self.processes()
        rows["address"], rows["port"], rows["own_net"] = Peer.of(*http.PEER, port).address, http.PEER[1], 1
        return rows

    def processes(self) -> Table:
        rows = np.zeros(1, SOCKET_OWNER)
        rows["tgid"] = rows["ns_tgid"] = _TGID
        return rows


class _Receiver:
    def __init__(self) -> None:
        self.forwarded: list[bytes] = []
        self.intake = Intake(self._forward, Senders(_Kernel()), ())
        self.server = HttpServer("127.0.0.1:0", self.intake)

    def _forward(self, signal: Signal, body: bytes, items: int, is_json: bool) -> None:
        self.forwarded.append(body)


@functools.cache
def _receiver() -> _Receiver:
    return _Receiver()


def close() -> None:
    _receiver().server.close()
    _receiver().intake.close()
    _receiver.cache_clear()


def check(data: bytes) -> None:
    receiver = _receiver()
    before, forwarded = receiver.intake.refused, len(receiver.forwarded)
    said = http.served(receiver.server._server, data)
    refused = receiver.intake.refused - before
    got, headless = http.answers(said)
    statuses = {status for status, _ in got}
    assert statuses <= _STATUSES, statuses
    assert not refused["failed"], "an error of ours"
    assert not refused["too_many_connections"], "one that has ended still counts"
    taken = len(receiver.forwarded) - forwarded
    assert sum(status == 200 for status, _ in got) == taken, "not as many were forwarded as were told so"
    counted = sum(count for reason, count in refused.items() if reason not in ("unknown_sender", "backlog"))
    assert len(got) - taken + bool(headless) == counted, f"{got}, {headless!r} and {refused}"
    assert all(len(body) <= MAX_BODY_BYTES for body in receiver.forwarded)
    assert not any(told.tgid != _TGID for told in _drained(receiver))
    receiver.forwarded.clear()


def _drained(receiver: _Receiver) -> list[Told]:
    told = receiver.intake.drain()
    while more := receiver.intake.drain():
        told += more
    return told


def _post(
    path: str, body: bytes, *headers: str, kind: str = "application/x-protobuf", length: bool = True
) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: h", f"Content-Type: {kind}", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + body


def seeds() -> dict[str, bytes]:
    trace = traces(span(1), resource={"service.name": "triton"})
    body, points = trace.SerializeToString(), metrics(2).SerializeToString()
    half = len(body) // 2
    chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(piece), piece) for piece in (body[:half], body[half:]))
    chunked = _post("/v1/traces", chunks + b"0\r\nTrailer: x\r\n\r\n", "Transfer-Encoding: chunked", length=False)
    return {
        "post": _post("/v1/traces", body),
        "two": _post("/v1/traces", body) + _post("/v1/metrics?x=1", points, "Connection: close"),
        "json": _post("/v1/traces", as_json(trace), kind="application/json; charset=utf-8"),
        "gzip": _post("/v1/metrics", gzip.compress(points, mtime=0), "Content-Encoding: gzip"),
        "chunked": chunked,
        "continue": _post("/v1/logs", b"", "Expect: 100-continue"),
        "get": b"GET /v1/traces HTTP/1.1\r\nHost: h\r\n\r\n",
        "old": b"GET /v1/traces\r\n\r\n",
        "no-length": _post("/v1/traces", b"", length=False),
        "cut": _post("/v1/traces", body)[:-5],
    }


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    """One line of the head changed, moved or doubled; or the body, with its length kept true."""
    head, gap, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    at = rng.randrange(len(lines))
    act = rng.choice(("line", "line", "body", "double", "drop", "again"))
    if act == "line":
        lines[at] = change(lines[at], len(lines[at]) + 32)
    elif act == "body":
        body = change(body, len(body) + 64)
        lines = [b"Content-Length: %d" % len(body) if b"Content-Length" in line else line for line in lines]
    elif act == "double":
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    elif act == "drop":
        del lines[at]
    else:
        body += data
    return b"\r\n".join(lines) + gap + body


TARGET = Target(
    name="otlp_http",
    reads="what comes to the OTLP receiver's HTTP port, by `collect.otlp.http_server` over a real socket",
    holds="each answer is whole HTTP with a status that is documented; each request is forwarded or refused, and "
    "answered and counted once; no error of the agent's own, no body above the limit",
    sources=(
        "tailspan.collect.otlp.http_server",
        "tailspan.collect.otlp.http_body",
        "tailspan.collect.otlp.intake",
    ),
    check=check,
    close=close,
    seeds=seeds,
    mutate=mutate,
    words=(
        b"Transfer-Encoding: chunked",
        b"Content-Length: ",
        b"Content-Encoding: gzip",
        b"Expect: 100-continue",
        b"\r\n\r\n",
        b"HTTP/1.0",
        b"0\r\n\r\n",
    ),
)
