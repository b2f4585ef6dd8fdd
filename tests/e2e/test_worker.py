"""The reference worker as a process: HTTP in, facts out, and a clean end."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tailspan.wire.spans import Activation, ActivationKind, Hello, Request, SpanKind
from tests.fakes import build
from tests.fakes.device import FakeGpu
from tests.unit.client.listener import Listener, Peer

BUDGET_S = 30.0
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Worker:
    """A worker process that is ready; ``port`` is where it listens."""

    def __init__(self, socket_path: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tailspan.worker", "--port", "0", "--intra-op-threads", "1", *arguments],
            env=os.environ | {"TAILSPAN_SOCKET": str(socket_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.told = False
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on 127.0.0.1:"), line
        self.port = int(line.rsplit(":", 1)[1])

    def tell_to_end(self) -> None:
        self.told = True
        self.process.send_signal(signal.SIGTERM)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=BUDGET_S)

    def ask(self, body: Any, path: str = "/v1/infer", **headers: str) -> tuple[http.client.HTTPResponse, Any]:
        """One request on a connection of its own: the answer and its JSON."""
        connection = self.connect()
        connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body), headers)
        response = connection.getresponse()
        content = json.loads(response.read())
        connection.close()
        return response, content

    def end(self) -> int:
        """Its exit code after SIGTERM, sent once: a second one may meet an interpreter that is closing down."""
        if self.process.poll() is None and not self.told:
            self.tell_to_end()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(BUDGET_S)


def health(worker: Worker) -> Any:
    connection = worker.connect()
    connection.request("GET", "/healthz")
    content = json.loads(connection.getresponse().read())
    connection.close()
    return content


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BUDGET_S
    while not holds():
        assert time.monotonic() < deadline, "not in time"


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path / "worker.sock")
    yield listener
    listener.stop()


@pytest.fixture
def start(listener: Listener) -> Iterator[Callable[..., tuple[Worker, Peer]]]:
    started: list[Worker] = []

    def start(*arguments: str) -> tuple[Worker, Peer]:
        started.append(Worker(listener.path, *arguments))
        peer, hello = listener.accept_and_greet()
        assert hello == Hello(started[-1].process.pid, "tailspan-worker", "1", {}, hello.runtime_locks)
        assert len(hello.runtime_locks) == 1
        return started[-1], peer

    yield start
    for worker in started:
        worker.end()


def test_an_answer_carries_the_callers_trace_and_the_agent_hears_the_same(
    start: Callable[..., tuple[Worker, Peer]],
) -> None:
    worker, peer = start("--model-width", "8")
    response, content = worker.ask({"seed": 7}, traceparent=f"00-{TRACE}-{PARENT}-01", **{"x-request-id": "r-1"})
    assert response.status == 200
    assert len(content["scores"]) == 10
    messages = [peer.receive(), peer.receive()]
    (request,) = [m for m in messages if isinstance(m, Request)]
    (batch,) = [m for m in messages if isinstance(m, Activation)]
    assert response.getheader("traceparent") == f"00-{TRACE}-{request.span_id.hex()}-01"
    assert (request.trace_id.hex(), request.parent_id.hex()) == (TRACE, PARENT)
    assert (request.name, request.request_id, request.status) == ("POST /v1/infer", "r-1", "ok")
    assert (request.model, request.model_version) == (content["model"], content["version"])
    # AND the batch that carried it is named alike by the answer, the request and the executor
    assert (request.batch_id, request.batch_size, request.batch_capacity) == (
        batch.owner,
        batch.size,
        batch.capacity,
    )
    assert content["batch"] == {"id": batch.owner, "size": 1, "capacity": 8}
    assert batch.kind == ActivationKind.BATCH
    # AND its spans follow one another, on the handler's thread and the executor's
    spans = {span.name: span for span in request.spans}
    assert set(spans) == {"preprocess", "queue", "run", "postprocess"}
    assert spans["preprocess"].tid == spans["postprocess"].tid == request.tid
    assert spans["queue"].tid == spans["run"].tid == batch.tid != request.tid
    assert spans["queue"].kind == SpanKind.QUEUED
    order = [spans[name] for name in ("preprocess", "queue", "run", "postprocess")]
    times = [
        request.start_mono_ns,
        *(t for s in order for t in (s.start_mono_ns, s.end_mono_ns)),
        request.end_mono_ns,
    ]
    assert times == sorted(times)


def test_a_connection_is_kept_for_many_requests(start: Callable[..., tuple[Worker, Peer]]) -> None:
    worker, peer = start("--model-width", "8")
    connection = worker.connect()
    connection.connect()
    sock = connection.sock
    port = sock.getsockname()[1]
    for number in range(23):
        connection.request("POST", "/v1/infer", json.dumps([number, 0.5]))
        response = connection.getresponse()
        response.read()
        assert response.status == 200
    # THEN the agent is told of each which connection it came on
    heard = [peer.receive() for _ in range(2 * 23)]
    assert [m.peer_port for m in heard if isinstance(m, Request)] == [port] * 23
    connection.request("GET", "/healthz")
    assert json.loads(connection.getresponse().read())["status"] == "ok"
    assert connection.sock is sock
    connection.close()


def test_a_caller_that_asks_before_it_sends_is_told_to_go_on(start: Callable[..., tuple[Worker, Peer]]) -> None:
    worker, _ = start("--model-width", "8")
    with socket.create_connection(("127.0.0.1", worker.port), BUDGET_S) as caller, caller.makefile("rb") as answer:
        caller.sendall(b"POST /v1/infer HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert answer.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert answer.readline() == b"\r\n"
        caller.sendall(b"[7]")
        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("body", "path", "headers", "status"),
    [
        (b"{no json", "/v1/infer", {}, 400),
        (b"[]", "/v1/infer", {}, 400),
        ({"seed": 7}, "/v2/infer", {}, 404),
        ({"seed": 7}, "/v1/infer", {"Content-Length": "65537"}, 413),
        ({"seed": 7}, "/v1/infer", {"Content-Length": "9" * 5000}, 413),
        ({"seed": 7}, "/v1/infer", {"Content-Length": "-1"}, 400),
    ],
)
def test_a_wrong_request_is_told_so(
    start: Callable[..., tuple[Worker, Peer]], body: Any, path: str, headers: dict[str, str], status: int
) -> None:
    worker, peer = start("--model-width", "8")
    response, content = worker.ask(body, path, **headers)
    assert response.status == status
    assert content["error"]
    assert peer.expect(Request).status == "rejected"
    # AND the next one is served
    assert worker.ask({"seed": 7})[0].status == 200


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(
    start: Callable[..., tuple[Worker, Peer]],
) -> None:
    # GIVEN a worker that takes long for each request, and in which one may wait
    worker, peer = start("--model-width", "256", "--max-batch", "1", "--queue", "1")
    answers: list[tuple[http.client.HTTPResponse, Any]] = []
    callers = [threading.Thread(target=lambda: answers.append(worker.ask({"seed": 7}))) for _ in range(12)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    refused = [(response, content) for response, content in answers if response.status == 503]
    served = [response for response, _ in answers if response.status == 200]
    assert refused
    assert served
    assert len(refused) + len(served) == 12
    assert all(r.getheader("Retry-After") == "1" and c == {"error": "the queue is full"} for r, c in refused)
    # AND the agent hears of every one of them
    statuses = [m.status for m in (peer.receive() for _ in range(12 + len(served))) if isinstance(m, Request)]
    assert sorted(statuses) == ["error"] * len(refused) + ["ok"] * len(served)


def test_sigterm_answers_what_was_taken_and_ends(start: Callable[..., tuple[Worker, Peer]]) -> None:
    # GIVEN a request that the executor works on, and an idle connection that is kept alive
    worker, _ = start("--model-width", "256", "--max-wait-ms", "200")
    idle = worker.connect()
    idle.connect()
    connection = worker.connect()
    connection.request("POST", "/v1/infer", json.dumps({"seed": 7}))
    wait_until(lambda: health(worker)["in_flight"] == 1)
    worker.tell_to_end()
    # THEN it is answered, and the process ends well
    response = connection.getresponse()
    assert response.status == 200
    assert len(json.loads(response.read())["scores"]) == 10
    assert response.getheader("Connection") == "close"
    assert worker.end() == 0
    idle.close()
    connection.close()


def test_the_worker_serves_without_an_agent(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "absent.sock", "--model-width", "8")
    assert worker.ask({"seed": 7})[0].status == 200
    assert worker.end() == 0


def test_a_port_that_is_taken_is_a_clear_error(start: Callable[..., tuple[Worker, Peer]], tmp_path: Path) -> None:
    worker, _ = start("--model-width", "8")
    second = subprocess.run(
        [sys.executable, "-m", "tailspan.worker", "--port", str(worker.port), "--model-width", "8"],
        capture_output=True,
        text=True,
        timeout=BUDGET_S,
    )
    assert second.returncode == 2
    assert second.stderr.startswith(f"error: cannot listen on port {worker.port}: ")


def test_all_threads_run_on_the_cpus_asked_for(start: Callable[..., tuple[Worker, Peer]]) -> None:
    cpu = max(os.sched_getaffinity(0))
    worker, _ = start("--model-width", "8", "--cpus", str(cpu))
    connection = worker.connect()
    connection.request("GET", "/healthz")
    connection.getresponse().read()  # and the handler's thread waits for the next request
    tids = [int(task.name) for task in Path(f"/proc/{worker.process.pid}/task").iterdir()]
    assert len(tids) >= 4
    assert all(os.sched_getaffinity(tid) == {cpu} for tid in tids)
    connection.close()


def request_of(peer: Peer) -> Request:
    """The next one; batches are passed over."""
    while not isinstance(message := peer.receive(), Request):
        assert isinstance(message, Activation)
    return message


def test_a_request_on_the_cpu_names_its_provider(start: Callable[..., tuple[Worker, Peer]]) -> None:
    worker, peer = start("--model-width", "8", "--device", "cpu")
    worker.ask({"seed": 7})
    request = request_of(peer)
    assert (request.device, request.provider) == ("", "CPUExecutionProvider")


def test_after_a_signal_requests_tell_their_operators(
    start: Callable[..., tuple[Worker, Peer]],
) -> None:
    worker, peer = start("--model-width", "64", "--profile-all", "--profile-seconds", "30")
    for number in range(5):
        worker.ask({"seed": number})
        assert {span.name for span in request_of(peer).spans} == {"preprocess", "queue", "run", "postprocess"}
    worker.process.send_signal(signal.SIGUSR2)
    found: list[Request] = []

    def has_operators() -> bool:
        worker.ask({"seed": 7})
        found.append(request_of(peer))
        return "profile" in {span.name for span in found[-1].spans}

    wait_until(has_operators)
    spans = {span.name: span for span in found[-1].spans}
    run = spans["run"]
    operators = [span for span in found[-1].spans if span.name.startswith("Conv ")]
    assert len(operators) == 8
    assert all(run.start_mono_ns <= o.start_mono_ns < o.end_mono_ns <= run.end_mono_ns for o in operators)
    assert {o.tid for o in operators} == {run.tid}
    # AND what the request waited for them is told too
    assert spans["profile"].start_mono_ns >= run.end_mono_ns
    # AND the window, which is still open, does not spoil the worker's end
    assert worker.end() == 0


def test_a_batch_runs_on_the_gpu_and_one_that_fails_there_is_an_error(
    start: Callable[..., tuple[Worker, Peer]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu(tmp_path / "gpu", kernel_ns=1_000_000)
    monkeypatch.setenv("FAKE_GPU", str(gpu.path))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(build.library("cuda.c", "libcuda.so.1")))
    worker, peer = start("--model-width", "8", "--device", "cpu", "--gpu-calls", "23", "--gpu-allocate", "4096")
    assert worker.ask({"seed": 7})[0].status == 200
    request = request_of(peer)
    assert gpu.devices[0].launches == 23
    assert request.device == "GPU-00000000-0000-4000-8000-000000000000"
    run = next(span for span in request.spans if span.name == "run")
    assert run.end_mono_ns - run.start_mono_ns >= 23_000_000
    # WHEN a call fails
    gpu.devices[0].set(sync_result=700)
    response, content = worker.ask({"seed": 7})
    assert (response.status, request_of(peer).status) == (500, "error")
    assert content["error"] == "the model failed: cuMemcpyHtoD_v2 returned CUresult 700"  # it waits too
    # THEN the next one is served
    gpu.devices[0].set(sync_result=0)
    assert worker.ask({"seed": 7})[0].status == 200


def test_a_gpu_that_is_asked_for_and_not_there_is_a_clear_error(tmp_path: Path) -> None:
    for arguments in (["--gpu-calls", "1", "--device", "cpu"], ["--device", "cuda"]):
        ended = subprocess.run(
            [sys.executable, "-m", "tailspan.worker", "--port", "0", "--device-id", "63", *arguments],
            env=os.environ | {"TAILSPAN_SOCKET": str(tmp_path / "absent.sock")},
            capture_output=True,
            text=True,
            timeout=BUDGET_S,
        )
        assert ended.returncode == 3
        assert "no CUDA device 63" in ended.stderr
        assert ended.stderr.count("\n") == 1
