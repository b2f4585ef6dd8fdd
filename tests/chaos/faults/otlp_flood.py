"""The OTLP receiver: spans as fast as they are taken, what is no OTLP, and connections that say nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.scene import Scene

SENDS = """
import http.client, random, socket
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
ending = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ending.set()), daemon=True).start()
dice = random.Random(3)
port = int(sys.argv[1])
def spans():
    request = ExportTraceServiceRequest()
    of_service = request.resource_spans.add()
    for _ in range(dice.randrange(1, 30)):
        span = of_service.scope_spans.add().spans.add()
        span.trace_id, span.span_id = dice.randbytes(16), dice.randbytes(8)
        span.name, span.kind = "otlp_flood", 2
        span.end_time_unix_nano = time.time_ns() + dice.choice([0, 0, 0, -10**15, 10**15])
        span.start_time_unix_nano = span.end_time_unix_nano - dice.randrange(10**9)
    return request.SerializeToString()
idle, connection = [], http.client.HTTPConnection("127.0.0.1", port, timeout=5)
while not ending.is_set():
    try:
        body = spans()
        kind = dice.randrange(8)
        if kind == 0: body = dice.randbytes(500)
        if kind == 1: body = body[:-3]
        if kind == 2: body = bytes(1 << 20)
        if kind == 3:
            idle.append(socket.create_connection(("127.0.0.1", port), 1.0))
            if len(idle) > 40: idle.pop(0).close()
            continue
        connection.request("POST", "/v1/traces", body, {"Content-Type": "application/x-protobuf"})
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        connection.close()
        time.sleep(0.005)
print("end", flush=True)
"""


@contextlib.contextmanager
def otlp_flood(scene: Scene) -> Iterator[None]:
    with scene.stranger(SENDS, scene.otlp_port) as flood:
        flood.go()
        yield
        flood.go()
        flood.line()


FAULT = Fault(
    "otlp_flood",
    "spans, garbage and silent connections on the OTLP receiver",
    otlp_flood,
    witness="tailspan_otlp_received",
)
