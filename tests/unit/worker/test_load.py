"""The load generator keeps its schedule, and does not hide what a worker's pause did to those who had to wait."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from tailspan.worker.load import Generator, Row, percentile, summarise

PAUSE_S = 0.4


class Scripted(ThreadingHTTPServer):
    """Answers 200. The request numbered ``pauses`` holds up the others for PAUSE_S; ``fails`` gets a 503."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[str] = []
        self.turn = threading.Lock()
        self.pauses: int | None = None
        self.fails: int | None = None

    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/infer"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Scripted

    def do_POST(self) -> None:
        number = int(re.findall(rb"\d+", self.rfile.read(int(self.headers["content-length"])))[0])
        with self.server.turn:
            self.server.seen.append(self.headers["traceparent"])
            if number == self.server.pauses:
                time.sleep(PAUSE_S)  # what is tested: a worker that stands still
        self.send_response(503 if number == self.server.fails else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Scripted]:
    server = Scripted()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_request_of_the_schedule_is_sent_once_in_a_trace_of_its_own(server: Scripted) -> None:
    rows = Generator(urlsplit(server.url()), rate=100, seconds=0.23, connections=8).run()
    assert [row.intended_offset_s for row in rows] == [n / 100 for n in range(23)]
    assert all(row.status == 200 and row.latency_ms > 0 for row in rows)
    assert sorted(row.trace_id for row in rows) == sorted(header.split("-")[1] for header in server.seen)
    assert len({row.trace_id for row in rows}) == 23


def test_a_pause_makes_all_slow_that_were_meant_for_it(server: Scripted) -> None:
    # GIVEN fewer connections than requests that the pause holds up
    server.pauses = 10
    rows = Generator(urlsplit(server.url()), rate=50, seconds=0.6, connections=2).run()
    # THEN the one that was meant for the middle of the pause waited half of it, though it was sent after it
    middle = rows[10 + round(PAUSE_S / 2 * 50)]
    assert middle.latency_ms > 1000 * PAUSE_S / 2 * 0.9
    assert middle.sent_late_ms > 1000 * PAUSE_S / 2 * 0.9


def test_an_answer_that_is_no_success_is_an_error(server: Scripted) -> None:
    server.fails = 3
    summary = summarise(Generator(urlsplit(server.url()), rate=100, seconds=0.07, connections=2).run())
    assert (summary.count, summary.errors) == (7, 1)


def test_no_answer_is_an_error_and_the_next_request_is_sent_all_the_same(server: Scripted) -> None:
    server.server_close()  # nobody listens at this port any more
    rows = Generator(urlsplit(server.url()), rate=100, seconds=0.05, connections=1).run()
    assert [row.status for row in rows] == [0] * 5


def test_percentiles_are_values_that_occurred() -> None:
    assert [percentile([1.0], p) for p in (50, 90, 99)] == [1.0, 1.0, 1.0]
    ordered = [float(n) for n in range(1, 201)]
    assert [percentile(ordered, p) for p in (50, 90, 99)] == [100.0, 180.0, 198.0]


def test_the_summary_counts_what_its_rows_say() -> None:
    rows = [Row("a", 200, 0.0, 0.1, 10.0), Row("b", 503, 1.0, 0.3, 1000.0)]
    summary = summarise(rows)
    assert (summary.count, summary.errors, summary.max_ms, summary.sent_late_max_ms) == (2, 1, 1000.0, 0.3)
    assert (summary.seconds, summary.throughput_per_s) == (2.0, 0.5)
