"""What is unknowable before kernel 6.2 is said, and never ruled out. Runs in a guest: not collected by itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tailspan.attribute.causes import CAUSES, Cause
from tailspan.collect.bpf.source import BpfSource
from tailspan.wire.events import SocketOp
from tests.conftest import eventually
from tests.e2e.conftest import AgentProcess
from tests.netns import slow_link
from tests.workloads import program

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

LACKS = "this kernel has no sock_recv_length, sock_send_length"

#: Asks another process over TCP, which answers after 5 ms: 30 times; and then 8 times after 80 ms.
ASKS = """
import socket, tailspan.client
client = tailspan.client.connect(service="toy", path=sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
if not os.fork():
    connection, _ = listener.accept()
    while late := connection.recv(1):
        time.sleep(late[0] / 1000)
        connection.sendall(b"x")
    os._exit(0)
upstream = socket.create_connection(listener.getsockname())
for late in [5] * 30 + [80] * 8:
    with client.request("POST /toy", model="toy") as request:
        with request.span("ask"):
            upstream.sendall(bytes([late])); upstream.recv(1)
upstream.close()
os.wait()
"""


def test_a_wait_for_an_upstream_is_one_for_a_socket_and_the_verdict_says_what_is_missing(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    try:
        with program(ASKS, agent.socket) as worker:
            worker.go()
            worker.finish()
        agent.stop()
    finally:
        agent.process.kill()
        agent.process.wait()

    slow = [verdict for verdict in agent.verdicts() if verdict.request.wall_ns > 60_000_000]
    assert len(slow) >= 5
    unknowable = {info.label for info in CAUSES.values() if info.probe == "tcp"}
    for verdict in slow:
        assert verdict.cause is Cause.SOCKET, verdict.sentence
        assert f"probe tcp is off: {LACKS}" in verdict.trust.notes
        assert not unknowable & set(verdict.ruled_out)


LISTENS = """
import socket
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
connection.recv(1)
"""
CONNECTS = """
import socket
socket.create_connection((sys.argv[1], int(sys.argv[2]))).close()
"""


def test_connections_and_connecting_are_seen_all_the_same(open_source: Callable[..., BpfSource]) -> None:
    source = open_source(loader=os.environ.get("TAILSPAN_PROBES_LOADER", "auto"))
    assert source.status["tcp"].attached
    assert source.status["tcp"].why == LACKS
    batches = []

    def over() -> bool:
        batches.append(source.drain())
        return bool((batches[-1].connections["tgid"] == client.pid).any())

    with slow_link(0.031) as (left, right), program(LISTENS, right.address, prefix=right.prefix) as server:
        server.go()
        port = int(server.line())
        with program(CONNECTS, right.address, port, prefix=left.prefix) as client:
            source.follow([client.pid])
            client.go()
            client.finish()
        eventually(over, "the connection is over")

    waits, connections = (
        np.concatenate([getattr(batch, name) for batch in batches]) for name in ("sockets", "connections")
    )
    (wait,) = waits[waits["tgid"] == client.pid]
    (connection,) = connections[connections["tgid"] == client.pid]
    assert (wait["op"], wait["remote_port"]) == (SocketOp.CONNECT, port)
    assert wait["to_mono_ns"] - wait["from_mono_ns"] >= 62_000_000
    assert connection["established_mono_ns"] == wait["to_mono_ns"]
