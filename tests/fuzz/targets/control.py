"""What comes to the agent's control socket: one line of JSON."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import socket
from types import SimpleNamespace
from typing import Any, cast

from tailspan.collect.bpf.source import BpfSource
from tailspan.collect.bpf.syscalls import SyscallTracing
from tailspan.control import MAX_LINE, ControlServer, Pending
from tailspan.export.pulse import Pulse
from tests.fuzz import mutation
from tests.fuzz.target import Change, Target
from tests.fuzz.targets import scratch


@functools.cache
def _server() -> ControlServer:
    # a probe that is not loaded: whatever is asked for, nothing is attached
    absent = SimpleNamespace(
        status={"syscalls": SimpleNamespace(attached=False, loaded=False, why="it is not there")}
    )
    syscalls, pulse = SyscallTracing(cast(BpfSource, absent), "off", 1), Pulse()

    def answer(request: dict[str, Any]) -> Pending:
        return pulse.answer if request.get("do") == "health" else syscalls.answer(request)

    return ControlServer(scratch.folder("control") / "socket", answer)


def close() -> None:
    _server().close()
    _server.cache_clear()


def check(data: bytes) -> None:
    server = _server()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(server._path))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        for _ in range(3 + len(data) // MAX_LINE):  # one takes it up, each reads a piece, the last sees the end
            server.poll()
        assert not server._clients, "it is still being served"
        said = b""
        with contextlib.suppress(ConnectionResetError):  # the end, where not all was read
            while piece := client.recv(1 << 16):
                said += piece
    assert said.endswith(b"\n") and said.count(b"\n") == 1
    answer = json.loads(said)
    assert isinstance(answer, dict) and (answer.get("ok") is True or answer["error"]), answer


def seeds() -> dict[str, bytes]:
    requests: dict[str, object] = {
        "syscalls": {"do": "syscalls", "seconds": 5},
        "health": {"do": "health"},
        "unknown": {"do": ["x", {"y": 1.5}]},
        "list": [1, 2],
    }
    return {name: json.dumps(request).encode() + b"\n" for name, request in requests.items()}


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    if rng.random() < 0.1:
        deep = rng.choice((100, 500, 900, 1100, 2000))
        opened, closed = rng.choice(((b"[", b"]"), (b'{"do":', b"}")))
        return b'{"do": ' + opened * deep + b"1" + closed * deep + b"}\n"
    try:
        return json.dumps(mutation.tree_value(json.loads(data), rng, change)).encode() + b"\n"
    except (ValueError, TypeError, RecursionError):
        return change(data, len(data) + 32)


TARGET = Target(
    name="control",
    reads="requests to the agent's control socket, by `control` over a real one",
    holds="each is answered with one line of JSON, whatever it was; the agent's loop sees no exception",
    sources=("tailspan.control",),
    check=check,
    close=close,
    seeds=seeds,
    mutate=mutate,
    words=(b'"do"', b'"syscalls"', b'"seconds"', b'"health"', b"NaN", b"[[[[[[[["),
    max_bytes=5000,
)
