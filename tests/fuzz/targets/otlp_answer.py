"""What a backend, or whatever answers in its place, says to an export over HTTP."""

from __future__ import annotations

import math
import random

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tailspan.export.otlp.over_http import _retry_after_s
from tailspan.export.otlp.transport import SERVICES
from tailspan.wire.otlp import Signal
from tests.fuzz.target import Change, Target

_SIGNALS = tuple(Signal)


def check(data: bytes) -> None:
    if not data:
        return
    if data[0] % 8 == 7:
        seconds = _retry_after_s(data[1:].decode("latin-1"))
        assert seconds is None or (math.isfinite(seconds) and seconds >= 0), seconds
        return
    accepted = SERVICES[_SIGNALS[data[0] % 3]].accepted(data[1:], is_json=bool(data[0] & 128))
    assert accepted is None or 0 <= accepted.rejected < 1 << 63


def seeds() -> dict[str, bytes]:
    partial = ExportTraceServiceResponse()
    partial.partial_success.rejected_spans, partial.partial_success.error_message = 23, "too many"
    points = ExportMetricsServiceResponse()
    points.partial_success.rejected_data_points = -1
    of_traces, of_metrics = _SIGNALS.index(Signal.TRACES), _SIGNALS.index(Signal.METRICS)
    json_head = next(byte for byte in range(128, 135) if byte % 3 == of_traces and byte % 8 != 7)
    return {
        "taken": bytes([of_traces]),
        "partly": bytes([of_traces]) + partial.SerializeToString(),
        "negative": bytes([of_metrics]) + points.SerializeToString(),
        "partly-json": bytes([json_head]) + b'{"partialSuccess":{"rejectedSpans":"23","errorMessage":"no"}}',
        "login-page": bytes([json_head]) + b"<!doctype html><title>Sign in</title>",
        "later": b"\x07120",
        "later-date": b"\x07Wed, 21 Oct 2026 07:28:00 GMT",
        "later-zone": b"\x07Wed, 21 Oct 2026 07:28:00 -0330",
    }


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    if len(data) > 1 and data[0] % 8 == 7:
        words = data[1:].split(b" ")
        at = rng.randrange(len(words))
        words[at] = rng.choice((change(words[at], len(words[at]) + 12), b"9" * rng.randrange(12), b"0", b"-9999"))
        return data[:1] + b" ".join(words)
    return change(data, len(data) + 64)


TARGET = Target(
    name="otlp_answer",
    reads="a backend's answers, by `export.otlp.transport`, and its `Retry-After`",
    holds="an answer is one of success or none; what is rejected is no negative count; a time to wait is finite",
    sources=("tailspan.export.otlp.transport", "tailspan.export.otlp.over_http"),
    check=check,
    seeds=seeds,
    mutate=mutate,
    words=(b"partialSuccess", b"rejectedSpans", b"1e400", b"nan", b"-inf", b"31 Dec 9999", b"1 Jan 0001"),
    max_bytes=1024,
)
