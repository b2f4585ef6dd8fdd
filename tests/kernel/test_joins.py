"""Real servers that do not say which thread served a request: whoever is named is the one that did."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from tailspan import clock
from tailspan.collect.bpf.source import BpfSource
from tailspan.config import Config
from tailspan.pipeline import Moment, Pipeline
from tailspan.timeline.evidence import Meta
from tailspan.timeline.inbox import Received
from tailspan.timeline.tables import Join
from tailspan.wire.spans import Request
from tests.workloads import Program, program

pytestmark = pytest.mark.kernel

REQUESTS = 101
CONNECTIONS = 5

#: What each server does for a request, and how it tells of it: times of the wall clock, as a tracer takes them.
WORK = """
import json, socket
told = []
def spin(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until: pass
def tell(begin, port, tid):
    told.append((begin, time.time_ns(), port, tid))
def tell_all():
    sys.stdin.readline()
    while len(told) < int(sys.argv[1]): time.sleep(0.001)
    print(json.dumps(told), flush=True)
    sys.stdin.readline()
"""

THREADS = (
    WORK
    + """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    def do_GET(self):
        begin = time.time_ns()
        spin(0.0005)
        time.sleep(0.004)
        spin(0.0005)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
        self.wfile.flush()
        tell(begin, self.client_address[1], threading.get_native_id())
    def log_message(self, *_): pass
class Server(ThreadingHTTPServer):
    daemon_threads = True
server = Server(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
tell_all()
"""
)

LOOP = (
    WORK
    + """
import asyncio
async def serve(reader, writer):
    port = writer.get_extra_info("peername")[1]
    while await reader.readline():
        while await reader.readline() != b"\\r\\n": pass
        begin = time.time_ns()
        spin(0.0005)
        await asyncio.sleep(0.004)
        spin(0.0005)
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
        await writer.drain()
        tell(begin, port, threading.get_native_id())
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
tell_all()
"""
)

#: One thread reads, and hands what it read to one of four others.
HANDED_ON = (
    WORK
    + """
import queue, selectors
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
work, selector, lock = queue.Queue(), selectors.DefaultSelector(), threading.Lock()
def serve():
    while True:
        connection = work.get()
        begin = time.time_ns()
        spin(0.001)
        time.sleep(0.004)
        spin(0.001)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
        tell(begin, connection.getpeername()[1], threading.get_native_id())
def read():
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                selector.register(listener.accept()[0], selectors.EVENT_READ)
            elif key.fileobj.recv(65536):
                work.put(key.fileobj)
            else:
                selector.unregister(key.fileobj)
for target in (read, *(4 * [serve])):
    threading.Thread(target=target, daemon=True).start()
tell_all()
"""
)


@dataclass
class Found:
    """By request: which thread served it, which was found, and how."""

    true_tid: npt.NDArray[np.int64]
    tid: npt.NDArray[np.int64]
    join: npt.NDArray[np.int64]
    arrived: npt.NDArray[np.bool_]

    def none_is_wrong(self) -> bool:
        return bool(((self.tid == 0) | (self.tid == self.true_tid)).all())


def requests_of(connection: socket.socket, count: int) -> None:
    """One after another on one connection."""
    connection.settimeout(60)
    for _ in range(count):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while not answer.endswith(b"\r\n\r\nok"):
            answer += connection.recv(65536)


def load(port: int, connections: int) -> None:
    with ExitStack() as stack:
        threads = []
        for number in range(connections):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            count = REQUESTS // connections + (number < REQUESTS % connections)
            threads.append(threading.Thread(target=requests_of, args=(connection, count)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@contextmanager
def served(source: BpfSource, body: str, connections: int) -> Iterator[tuple[Program, Pipeline, list[list[int]]]]:
    """A server that has answered the requests, what the kernel says of it, and (begin, end, port, tid) of each."""
    pipeline = Pipeline(Config())
    with program(body, REQUESTS) as server:
        pipeline.threads.see(source.follow([server.pid]))
        server.go()
        load(int(server.line()), connections)
        server.go()
        yield server, pipeline, json.loads(server.line())


def joined(
    source: BpfSource, body: str, with_port: bool, connections: int = CONNECTIONS, tick_ns: int = 1
) -> Found:
    """``tick_ns``: the server's tracer cuts its times off to whole ones of these."""
    with served(source, body, connections) as (server, pipeline, told):
        offset = clock.measure().offset_ns
        open_threads = source.threads()
        batch = source.drain()
        assert not len(batch.losses)
        pipeline.take({"cycles": batch.cycles, "sockets": batch.sockets}, batch.thread_events)
        received = [
            Received(
                server.pid,
                Request(
                    number.to_bytes(16, "big"),
                    number.to_bytes(8, "big"),
                    bytes(8),
                    "",
                    "GET /",
                    0,
                    begin // tick_ns * tick_ns - offset,
                    end // tick_ns * tick_ns - offset,
                    peer_port=port if with_port else 0,
                ),
                end - offset + 1_000_000,
            )
            for number, (begin, end, port, _) in enumerate(told, 1)
        ]
        (judged,) = pipeline.judge(received, Moment(open_threads, Meta(), lambda _: ""))
    assert len(told) == REQUESTS
    rows = judged.requests
    return Found(
        np.array([tid for *_, tid in told]),
        rows["tid"].astype(np.int64),
        rows["join"].astype(np.int64),
        rows["arrived_mono_ns"] > 0,
    )


@pytest.mark.parametrize("body", [THREADS, LOOP], ids=["threads", "loop"])
def test_by_its_port_every_request_has_the_thread_that_served_it(source: BpfSource, body: str) -> None:
    found = joined(source, body, with_port=True)

    assert (found.join == Join.SOCKET).all()
    assert np.array_equal(found.tid, found.true_tid)
    assert found.arrived.all()


def test_without_a_port_the_loop_that_reads_everything_is_the_thread(source: BpfSource) -> None:
    found = joined(source, LOOP, with_port=False)

    assert (found.join == Join.SOCKET).all()
    assert np.array_equal(found.tid, found.true_tid)


def test_without_a_port_no_thread_that_is_named_is_wrong_and_most_are(source: BpfSource) -> None:
    found = joined(source, THREADS, with_port=False)

    assert found.none_is_wrong()
    assert (found.join == Join.SOCKET).mean() > 0.5


def test_without_a_port_one_request_at_a_time_has_its_thread_and_its_arrival(source: BpfSource) -> None:
    found = joined(source, THREADS, with_port=False, connections=1)

    assert (found.join == Join.SOCKET).all()
    assert np.array_equal(found.tid, found.true_tid)
    assert found.arrived.all()


def test_a_tracer_of_whole_milliseconds_finds_the_loop_too(source: BpfSource) -> None:
    found = joined(source, LOOP, with_port=True, tick_ns=1_000_000)

    assert found.none_is_wrong()
    assert (found.join == Join.SOCKET).mean() > 0.5


@pytest.mark.parametrize("with_port", [True, False])
def test_who_reads_for_others_did_not_serve_it(source: BpfSource, with_port: bool) -> None:
    found = joined(source, HANDED_ON, with_port, connections=2)

    assert found.none_is_wrong()
    assert (found.join == Join.PROCESS).mean() > 0.5
