"""Verdicts and a worker's spans through the agent's own spool and transport, to a receiver in another process."""

from __future__ import annotations

import contextlib
import gzip
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from unittest import mock

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind

from tailspan.attribute.verdict import Verdict
from tailspan.errors import TailspanError
from tailspan.export.otlp import Outlets, VerdictExporter
from tailspan.export.tally import Tally
from tailspan.export.verdict_spans import child_span_id, spans_of
from tailspan.timeline.evidence import Evidence
from tailspan.wire.otlp import Origin, Signal
from tests.bench.spread import Figures

HOST = "bench"
#: Spans that the SDK's processor puts into one message.
SDK_BATCH = 512

#: Verdicts on their way at a time: enough to keep every thread busy, and half of those of which some are dropped.
_MOST_QUEUED = 256
_SPOOL_BYTES = 256 << 20
_DELIVERY_S = 60.0

#: Takes every message and says that all is well; ends when its standard input does.
_SINK = """
import sys, threading
protocol = sys.argv[1]
if protocol == "grpc":
    import grpc
    from concurrent.futures import ThreadPoolExecutor
    class Anything(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(lambda message, context: b"")
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Anything(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
else:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()
        def log_message(self, *args):
            pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
print(port, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Judged:
    """A slow request's verdict, its worker's resource, and its share of the block that it is stored in."""

    verdict: Verdict
    resource: Mapping[str, str]
    stored_bytes: float

    def spans(self) -> list[ReadableSpan]:
        return spans_of(self.verdict, self.resource, HOST)


def encoded(spans: Sequence[ReadableSpan]) -> bytes:
    payload: bytes = encode_spans(spans).SerializeToString()
    return payload


def verdicts_sent(
    folder: Path, protocol: str, compression: str, judged: Sequence[Judged], verdicts: int
) -> Figures:
    """From ``submit`` to the receiver's answer, as fast as it goes: CPU of all threads, and the time it took."""
    chosen = list(islice(cycle(judged), verdicts))
    spans = sum(len(one.spans()) for one in chosen)
    with _outlets(folder, protocol, compression) as outlets, contextlib.ExitStack() as stack:
        tally = Tally(Path(tempfile.mkdtemp(dir=folder)) / "tally")
        stack.callback(tally.close)
        exporter = VerdictExporter(outlets, HOST, tally)
        stack.callback(exporter.close)

        def send() -> None:
            for at, one in enumerate(chosen):
                exporter.submit(one.verdict, one.resource)
                if at % 32 == 0:
                    _until(lambda: exporter.stats().queued <= _MOST_QUEUED)
            _until(lambda: exporter.stats().exported == len(chosen))

        dropped = exporter.stats().dropped
        return _timed(send, spans) | {"verdicts": verdicts, "dropped": sum(dropped.values())}


def workers_spans_sent(folder: Path, stored: Sequence[Evidence], verdicts: int) -> Figures:
    """A worker's spans, from ``put`` to the receiver's answer."""
    spans = [span for evidence in stored for span in _workers_own(evidence)]
    message = encoded(list(islice(cycle(spans), SDK_BATCH)))
    messages = max(verdicts // 4, 20)
    with _outlets(folder, "grpc", "gzip") as outlets:

        def send() -> None:
            for _ in range(messages):
                outlets.put(Signal.TRACES, message, SDK_BATCH, Origin.FORWARDED)
            _until(lambda: _delivered(outlets) == messages * SDK_BATCH)

        figures = _timed(send, messages * SDK_BATCH)
    return figures | {
        "spans_per_request": len(spans) / max(sum(len(evidence.requests) for evidence in stored), 1),
        "bytes_per_span": len(message) / SDK_BATCH,
        "gzip_bytes_per_span": len(gzip.compress(message)) / SDK_BATCH,
    }


def _delivered(outlets: Outlets) -> int:
    return outlets.stats()[Signal.TRACES].items[Origin.FORWARDED]


def _workers_own(evidence: Evidence) -> Iterator[ReadableSpan]:
    """The requests and their spans as an instrumented server's SDK tells them."""
    offset = evidence.meta.unix_offset_ns
    resource = Resource(
        {"service.name": "worker", "process.pid": 1, "host.name": HOST, "telemetry.sdk.language": "python"}
    )
    for at, request in enumerate(evidence.requests):
        trace_id = int.from_bytes(bytes(request["trace_id"]))
        root = SpanContext(trace_id, int.from_bytes(bytes(request["span_id"])), is_remote=False)
        name = evidence.strings[request["name"]]
        attributes = {
            "http.request.method": name.partition(" ")[0],
            "http.route": name.partition(" ")[2],
            "http.response.status_code": 200,
            "network.peer.address": "10.0.0.7",
            "network.peer.port": int(request["peer_port"]),
        }
        times = (int(request["start_mono_ns"]) + offset, int(request["end_mono_ns"]) + offset)
        yield _span(name, root, None, resource, SpanKind.SERVER, times, attributes)
        for index, own in enumerate(evidence.spans[evidence.spans["request"] == at]):
            context = SpanContext(trace_id, child_span_id(trace_id, root.span_id, index), is_remote=False)
            times = (int(own["start_mono_ns"]) + offset, int(own["end_mono_ns"]) + offset)
            yield _span(evidence.strings[own["name"]], context, root, resource, SpanKind.INTERNAL, times, {})


def _span(
    name: str,
    context: SpanContext,
    parent: SpanContext | None,
    resource: Resource,
    kind: SpanKind,
    times: tuple[int, int],
    attributes: Mapping[str, str | int],
) -> ReadableSpan:
    start, end = times
    return ReadableSpan(name, context, parent, resource, attributes, kind=kind, start_time=start, end_time=end)


@contextlib.contextmanager
def _outlets(folder: Path, protocol: str, compression: str) -> Iterator[Outlets]:
    """To a receiver of its own, with an empty spool."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    with _sink(protocol) as port:
        ours = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            **({"OTEL_EXPORTER_OTLP_COMPRESSION": compression} if compression else {}),
        }
        with mock.patch.dict(os.environ, kept | ours, clear=True):  # which the official exporters read
            outlets = Outlets(os.environ, Path(tempfile.mkdtemp(dir=folder)), _SPOOL_BYTES)
        try:
            yield outlets
        finally:
            outlets.close(5.0)


@contextlib.contextmanager
def _sink(protocol: str) -> Iterator[int]:
    command = [sys.executable, "-c", _SINK, protocol]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
            process.terminate()


def _timed(work: Callable[[], None], spans: int) -> Figures:
    started_s, cpu_s = time.monotonic(), time.process_time()
    work()
    cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - started_s
    return {"spans": spans, "cpu_s": cpu_s, "wall_s": wall_s}


def _until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _DELIVERY_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise TailspanError(f"not delivered within {_DELIVERY_S:.0f} s")
        time.sleep(0.005)
