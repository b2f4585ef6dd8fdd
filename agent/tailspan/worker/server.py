"""HTTP/1.1 in front of the batcher: one thread per connection.

``POST /v1/infer``  ``{"seed": 7}`` or a list of 1 to 64 numbers (the rest of the vector is zeros) -> class scores
``GET /healthz``    200 while requests are taken, and how many are not answered yet
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from tailspan import __version__
from tailspan.client import ActiveRequest, Client
from tailspan.worker import model
from tailspan.worker.batching import Batcher, Job, QueueFullError, StoppingError
from tailspan.worker.model import FEATURES, Floats

MAX_BODY = 64 * 1024


class HttpError(Exception):
    """An answer that is no success."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Server(ThreadingHTTPServer):
    """Listens once it is made. ``serve_forever()`` in one thread, ``stop()`` in another."""

    daemon_threads = True  # a connection that is kept alive has a thread that waits for ever
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], batcher: Batcher, client: Client) -> None:
        self.batcher = batcher
        self.client = client
        self.stopping = False
        self.in_flight = 0
        self._changed = threading.Condition()
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hung up is no fault of the worker's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @contextmanager
    def request_in_flight(self) -> Iterator[None]:
        with self._changed:
            self.in_flight += 1
        try:
            yield
        finally:
            with self._changed:
                self.in_flight -= 1
                self._changed.notify_all()

    def stop(self, grace_s: float) -> bool:
        """Take no more; answer what was taken. False if some of it was not answered within ``grace_s``."""
        self.stopping = True
        self.shutdown()
        self.server_close()
        with self._changed:
            return self._changed.wait_for(lambda: self.in_flight == 0, grace_s)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # buffered: an answer leaves in one packet
    server_version = f"tailspan-worker/{__version__}"
    server: Server

    def handle_expect_100(self) -> bool:
        proceed = super().handle_expect_100()
        self.wfile.flush()
        return proceed

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._answer(
                HTTPStatus.OK,
                {
                    "status": "ok",
                    "model": model.NAME,
                    "version": model.VERSION,
                    "in_flight": self.server.in_flight,
                },
            )
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": f"no such path: {self.path}"})

    def do_POST(self) -> None:
        with (
            self.server.request_in_flight(),
            self.server.client.request(
                "POST /v1/infer" if self.path == "/v1/infer" else "POST",
                headers=self.headers.items(),
                request_id=self.headers.get("x-request-id", ""),
                model=model.NAME,
                model_version=model.VERSION,
                peer=self.client_address[:2],
            ) as request,
        ):
            try:
                answer = self._infer(request)
            except HttpError as error:
                request.status = "error" if error.status >= 500 else "rejected"
                self._answer(error.status, {"error": str(error)}, request)
            else:
                with request.span("postprocess"):
                    self._answer(HTTPStatus.OK, answer, request)

    def _infer(self, request: ActiveRequest) -> dict[str, Any]:
        body = self._read_body()
        if self.path != "/v1/infer":
            raise HttpError(HTTPStatus.NOT_FOUND, f"no such path: {self.path}")
        with request.span("preprocess"):
            vector = preprocess(body)
        job = self._run(vector, request)
        execution = job.execution
        assert execution is not None
        if job.output is None:
            raise HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, f"the model failed: {job.error}")
        return {
            "model": model.NAME,
            "version": model.VERSION,
            "batch": {"id": execution.batch_id, "size": execution.size, "capacity": execution.capacity},
            "scores": [round(float(score), 6) for score in job.output],
        }

    def _run(self, vector: Floats, request: ActiveRequest) -> Job:
        try:
            job = self.server.batcher.submit(vector)
        except QueueFullError:
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "the queue is full") from None
        except StoppingError:
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "stopping") from None
        job.done.wait()
        done = job.execution
        assert done is not None
        request.queued(job.enqueue_mono_ns, done.start_mono_ns, tid=done.tid)
        request.add_span("run", done.tid, done.start_mono_ns, done.end_mono_ns)
        request.batch(done.batch_id, done.size, done.capacity)
        request.device(done.facts.device, done.facts.provider)
        if done.facts.profile is not None:
            with request.span("profile"):
                operators = done.facts.profile.operators()
            for operator in operators:
                request.add_span(*operator)
        return job

    def _read_body(self) -> bytes:
        """Raises HttpError; the connection is then closed if the body was left unread."""
        given = self.headers.get("content-length")
        close, self.close_connection = self.close_connection, True
        if given is None:
            raise HttpError(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
        if not (given.isascii() and given.isdigit()):
            raise HttpError(HTTPStatus.BAD_REQUEST, "Content-Length is no number")
        # The number of digits first: Python refuses to convert a very long one.
        if len(given) > 12 or int(given) > MAX_BODY:
            raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have {MAX_BODY} bytes")
        body = self.rfile.read(int(given))
        if len(body) < int(given):
            raise HttpError(HTTPStatus.BAD_REQUEST, "the body is shorter than its Content-Length")
        self.close_connection = close
        return body

    def _answer(self, status: HTTPStatus, body: dict[str, Any], request: ActiveRequest | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if request is not None:
            self.send_header("traceparent", request.traceparent())
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", "1")
        if self.close_connection or self.server.stopping:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()  # now, so that the request ends when its answer has left

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line per request would be most of what this worker does."""


def preprocess(body: bytes) -> Floats:
    """The input vector that a body asks for. Raises HttpError 400."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"the body is no JSON: {error}") from None
    if isinstance(asked, dict) and type(asked.get("seed")) is int and 0 <= asked["seed"] < 1 << 32:
        return np.random.default_rng(asked["seed"]).random(FEATURES, np.float32)
    if isinstance(asked, list) and 1 <= len(asked) <= FEATURES and all(map(_is_number, asked)):
        return np.array(asked + [0.0] * (FEATURES - len(asked)), np.float32)
    raise HttpError(HTTPStatus.BAD_REQUEST, f'give {{"seed": 7}} or a list of 1 to {FEATURES} numbers')


def _is_number(value: Any) -> bool:
    """Finite, as a 32-bit float too."""
    return type(value) in (int, float) and abs(value) < 1e38
