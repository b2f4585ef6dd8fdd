"""What the TCP sockets of followed threads did, against real traffic on loopback and in networks of our own."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tailspan.collect.bpf.source import BpfSource
from tailspan.wire.events import CONNECTION, SOCKET_WAIT, RecordClass, SocketFlags, SocketOp
from tests.conftest import eventually
from tests.netns import End, link, loss, rate_limit, slow_link
from tests.workloads import Program, program

pytestmark = [pytest.mark.kernel, pytest.mark.both_loaders]

MS = 1_000_000
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, no time

Rows = npt.NDArray[np.void]

#: Accepts one connection on argv[1] and answers each request of argv[2] bytes with argv[3].
SERVER = """
import socket
listener = socket.create_server((sys.argv[1], 0), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
request, answer = int(sys.argv[2]), int(sys.argv[3])
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
print(os.fstat(connection.fileno()).st_ino, flush=True)
while data := connection.recv(request, socket.MSG_WAITALL):
    connection.sendall(b"a" * answer)
connection.close()
print("closed", flush=True)
sys.stdin.readline()
"""

#: The same on loopback, but it accepts, and then reads each request, argv[3] seconds after it is told to.
LATE_SERVER = """
import socket
def told():
    sys.stdin.readline()
    time.sleep(late)
request, answer, late = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
told()
connection, _ = listener.accept()
while True:
    told()
    connection.recv(request, socket.MSG_WAITALL)
    connection.sendall(b"a" * answer)
"""

#: Connects to argv[1]:argv[2], thinks for 3 ms without sleeping, then for each pair of numbers that follow sends
#: that many bytes and awaits as many.
CLIENT = """
import socket
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
until = time.monotonic() + 0.003
while time.monotonic() < until: pass
for sent, awaited in zip(map(int, sys.argv[3::2]), map(int, sys.argv[4::2])):
    connection.sendall(b"q" * sent)
    while awaited > 0:
        awaited -= len(connection.recv(65536))
print("done", flush=True)
sys.stdin.readline()
connection.close()
print("closed", flush=True)
sys.stdin.readline()
"""


class Seen:
    """What a source says of sockets, kept drain after drain."""

    def __init__(self, source: BpfSource) -> None:
        self.source = source
        self._waits, self._connections = np.empty(0, SOCKET_WAIT), np.empty(0, CONNECTION)

    def _drain(self) -> None:
        batch = self.source.drain()
        assert not np.isin(batch.losses["klass"], [RecordClass.SOCKET, RecordClass.CONNECTION]).any()
        waits = np.concatenate([self._waits, batch.sockets])
        self._waits = waits[np.argsort(waits["to_mono_ns"], kind="stable")]  # each CPU has a ring of its own
        self._connections = np.concatenate([self._connections, batch.connections])

    def waits(self, pid: int, op: SocketOp | None = None) -> Rows:
        """Those of a process, in the order of their ends."""
        self._drain()
        waits = self._waits[self._waits["tgid"] == pid]
        assert (waits["from_mono_ns"] <= waits["acked_mono_ns"]).all()
        assert (waits["acked_mono_ns"] <= waits["to_mono_ns"]).all()
        assert (waits["arrived_mono_ns"] <= waits["to_mono_ns"]).all()
        retransmit = waits["retransmit_mono_ns"]
        assert ((retransmit == 0) | (retransmit >= waits["from_mono_ns"])).all()
        return waits if op is None else np.compress(waits["op"] == op, waits)

    def connections(self, pid: int, count: int) -> Rows:
        """Those of a process, in the order of their ends; waits for ``count`` of them, and more are a failure."""

        def over() -> bool:
            self._drain()
            return int((self._connections["tgid"] == pid).sum()) >= count

        eventually(over, f"{count} connections of {pid}")
        connections = self._connections[self._connections["tgid"] == pid]
        assert len(connections) == count
        return np.sort(connections, order="closed_mono_ns")

    @contextlib.contextmanager
    def follow(self, body: str, *arguments: object, end: End | None = None) -> Iterator[Program]:
        """A program that is followed before it does anything."""
        with program(body, *arguments, prefix=end.prefix if end else ()) as running:
            self.source.follow([running.pid])
            running.go()
            yield running


@pytest.fixture
def seen(source: BpfSource) -> Seen:
    return Seen(source)


@contextlib.contextmanager
def upstream(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server of one connection in this process, which nobody follows; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join()


def connect(server: Program) -> socket.socket:
    """To the port that it prints."""
    return socket.create_connection(("127.0.0.1", int(server.line())))


def exchange(connection: socket.socket, sent: int, awaited: int) -> None:
    connection.sendall(b"q" * sent)
    assert len(connection.recv(awaited, socket.MSG_WAITALL)) == awaited


def have(rows: Rows | np.void, flags: SocketFlags) -> npt.NDArray[np.bool_]:
    """Which have all of ``flags``."""
    return np.asarray(rows["flags"] & flags == flags)


def lack(rows: Rows | np.void, flags: SocketFlags) -> npt.NDArray[np.bool_]:
    """Which have none of ``flags``."""
    return np.asarray(rows["flags"] & flags == 0)


def address(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6, raw.ljust(16, b"\0"))


def sockets_of(pid: int) -> set[int]:
    """Inode numbers of a process's sockets, as its descriptors show them."""
    links = [str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()]
    return {int(found[1]) for each in links if (found := re.fullmatch(r"socket:\[(\d+)\]", each))}


def ss(end: End, port: int) -> dict[str, str]:
    """``ss -ti`` of the connection to ``port``: names to values."""
    said = end.run("ss", "-tinH", "dport", "=", f":{port}")
    assert said.count("cubic") + said.count("bbr") + said.count("reno") >= 1
    return dict(re.findall(r"(\w+):(\S+)", said.split("\n", 1)[1]))


def test_each_request_of_an_accepted_connection_is_one_record(seen: Seen) -> None:
    with seen.follow(SERVER, "127.0.0.1", 101, 211) as server:
        port = int(server.line())
        with socket.create_connection(("127.0.0.1", port)) as client:
            client_port = client.getsockname()[1]
            inode = int(server.line())
            assert inode in sockets_of(server.pid)
            for _ in range(23):
                exchange(client, 101, 211)
            waits = seen.waits(server.pid)
        assert server.line() == "closed"
        connection = seen.connections(server.pid, 1)[0]

    assert len(waits) == 23
    assert (waits["op"] == SocketOp.RECEIVE).all()
    assert have(waits, SocketFlags.ACCEPTED | SocketFlags.MESSAGE).all()
    assert have(waits, SocketFlags.FIRST).tolist() == [True] + 22 * [False]
    assert (waits["socket"] == inode).all()
    assert (waits["tid"] == server.pid).all()
    assert (waits["local_port"] == port).all()
    assert (waits["remote_port"] == client_port).all()
    assert {address(bytes(each)) for each in waits["local"]} == {"::ffff:127.0.0.1"}
    assert waits["messages"].tolist() == list(range(1, 24))
    assert waits["received_bytes"].tolist() == [101 * n for n in range(1, 24)]
    assert waits["sent_bytes"].tolist() == [211 * n for n in range(23)]
    # the first waited since the handshake, each other one since the answer before
    assert waits["from_mono_ns"][0] == waits["established_mono_ns"][0]
    assert (waits["from_mono_ns"][1:] > waits["to_mono_ns"][:-1]).all()
    assert (waits["arrived_mono_ns"] > 0).all()
    assert (waits["arrived_mono_ns"][1:] > waits["to_mono_ns"][:-1]).all()

    assert connection["messages"] == 23
    assert connection["received_bytes"] == 23 * 101
    assert connection["sent_bytes"] == 23 * 211
    assert connection["socket"] == inode
    assert (connection["local_port"], connection["remote_port"]) == (port, client_port)
    assert connection["opened_mono_ns"] == connection["established_mono_ns"] == waits["from_mono_ns"][0]
    assert connection["first_byte_mono_ns"] == waits["arrived_mono_ns"][0]
    assert waits["to_mono_ns"][0] < connection["first_sent_mono_ns"] <= waits["from_mono_ns"][1]
    assert connection["closed_mono_ns"] > waits["to_mono_ns"][-1]
    assert connection["flags"] == SocketFlags.ACCEPTED


def test_a_request_that_is_read_late_arrived_early(seen: Seen) -> None:
    with seen.follow(LATE_SERVER, 101, 211, 0.031) as server, connect(server) as client:
        server.go()
        spans = []
        for _ in range(5):
            before = time.monotonic_ns()
            client.sendall(b"q" * 101)
            spans.append((before, time.monotonic_ns()))
            server.go()
            client.recv(211, socket.MSG_WAITALL)
        waits = seen.waits(server.pid)

    assert len(waits) == 5
    for wait, (before, after) in zip(waits, spans, strict=True):
        assert before <= wait["arrived_mono_ns"] <= after
        assert wait["to_mono_ns"] - wait["arrived_mono_ns"] >= 31 * MS
    assert lack(waits[1:], SocketFlags.UNACCEPTED).all()


def test_data_that_waits_in_the_accept_queue_is_told(seen: Seen) -> None:
    with seen.follow(LATE_SERVER, 101, 211, 0.053) as server:
        port = int(server.line())
        asked = time.monotonic_ns()
        with socket.create_connection(("127.0.0.1", port)) as client:
            connected = time.monotonic_ns()
            client.sendall(b"q" * 101)
            sent = time.monotonic_ns()
            server.go()
            server.go()
            client.recv(211, socket.MSG_WAITALL)
            client.sendall(b"q" * 101)
            server.go()
            client.recv(211, socket.MSG_WAITALL)
            first, second = seen.waits(server.pid)

    assert have(first, SocketFlags.FIRST | SocketFlags.UNACCEPTED | SocketFlags.MESSAGE)
    assert asked <= first["from_mono_ns"] <= first["arrived_mono_ns"]
    assert connected <= first["arrived_mono_ns"] <= sent
    assert first["to_mono_ns"] - first["arrived_mono_ns"] >= 2 * 53 * MS
    assert lack(second, SocketFlags.FIRST | SocketFlags.UNACCEPTED)


def test_pipelined_requests_arrived_before_the_answer_to_the_one_before(seen: Seen) -> None:
    with seen.follow(LATE_SERVER, 101, 211, 0.007) as server, connect(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.go()
        client.sendall(b"q" * 101)
        before = time.monotonic_ns()
        client.sendall(b"q" * 101)
        after = time.monotonic_ns()
        server.go()
        server.go()
        client.recv(2 * 211, socket.MSG_WAITALL)
        first, second = seen.waits(server.pid)

    assert first["arrived_mono_ns"] < before <= second["arrived_mono_ns"] <= after
    assert second["arrived_mono_ns"] < second["from_mono_ns"]


def test_a_slow_upstream_is_the_peers_time(seen: Seen) -> None:
    spans: list[tuple[int, int]] = []

    def serve(connection: socket.socket) -> None:
        for _ in range(7):
            connection.recv(101, socket.MSG_WAITALL)
            time.sleep(0.019)
            before = time.monotonic_ns()
            connection.sendall(b"a" * 211)
            spans.append((before, time.monotonic_ns()))

    with upstream(serve) as port, seen.follow(CLIENT, "127.0.0.1", port, *(7 * [101, 211])) as client:
        assert client.line() == "done"
        waits = seen.waits(client.pid)

    assert len(waits) == 7
    assert (waits["op"] == SocketOp.RECEIVE).all()
    assert have(waits, SocketFlags.MESSAGE).all()
    assert lack(waits, SocketFlags.ACCEPTED | SocketFlags.BULK).all()
    assert (waits["remote_port"] == port).all()
    assert (waits["to_mono_ns"] - waits["from_mono_ns"] >= 19 * MS).all()
    assert (waits["acked_mono_ns"] == waits["from_mono_ns"]).all()
    for wait, (before, after) in zip(waits, spans, strict=True):
        assert before <= wait["arrived_mono_ns"] <= after
    assert (waits["retransmits"] == 0).all()
    assert 0 < waits["min_rtt_us"].min() <= waits["srtt_us"].max() < 100_000


def test_lost_segments_are_counted_and_timed_as_tc_counts_them(seen: Seen) -> None:
    with link() as (left, right), program(SERVER, "0.0.0.0", 300_007, 211, prefix=right.prefix) as server:
        server.go()
        port = int(server.line())
        with rate_limit(left, "100mbit"), loss(right, every=13) as lost:
            given = (right.address, port, 300_007, 211, 300_007, 211)
            with seen.follow(CLIENT, *given, end=left) as client:
                assert client.line() == "done"
                dropped = lost.dropped()
                said = ss(left, port)
                client.go()
                assert client.line() == "closed"
                waits, connection = seen.waits(client.pid), seen.connections(client.pid, 1)[0]

    # 600 KB are 415 segments
    assert dropped >= 415 // 13
    assert connection["retransmits"] == int(said["retrans"].split("/")[1])
    # but for those that the receiver says it had already
    assert connection["retransmits"] - int(said.get("dsack_dups", 0)) == dropped
    assert connection["sent_bytes"] == 600_014 == int(said["bytes_sent"]) - int(said["bytes_retrans"])
    assert connection["received_bytes"] == 422 == int(said["bytes_received"])
    assert connection["min_rtt_us"] == round(float(said["minrtt"]) * 1000)
    assert connection["messages"] == 2
    # what was sent again lies in waits, and the last time it happened is in them
    again = waits[waits["retransmits"] > 0]
    assert 0 < again["retransmits"].sum() <= connection["retransmits"]
    assert (again["retransmit_mono_ns"] > again["from_mono_ns"]).all()
    # one that comes on another CPU while the record is made counts as the end of the wait
    assert (again["retransmit_mono_ns"] <= again["to_mono_ns"]).all()
    assert (again["retransmit_mono_ns"] < again["to_mono_ns"]).any()
    last = waits[-1]
    assert last["op"] == SocketOp.RECEIVE
    assert last["srtt_us"] == round(float(said["rtt"].split("/")[0]) * 1000)
    assert last["rto_us"] == round(float(said["rto"]) * 1000)


def test_what_the_peer_lost_comes_out_of_order(seen: Seen) -> None:
    with link() as (left, right), program(SERVER, "0.0.0.0", 101, 300_007, prefix=left.prefix) as server:
        server.go()
        port = int(server.line())
        with (
            rate_limit(left, "20mbit"),
            loss(right, every=13) as lost,
            seen.follow(CLIENT, left.address, port, 101, 300_007, end=right) as client,
        ):
            assert client.line() == "done"
            dropped = lost.dropped()
            said = ss(right, port)
            client.go()
            assert client.line() == "closed"
            waits, connection = seen.waits(client.pid), seen.connections(client.pid, 1)[0]

    assert dropped > 0
    assert connection["retransmits"] == 0
    assert connection["out_of_order"] == int(said["rcv_ooopack"]) > 0
    assert 0 < waits["out_of_order"].sum() <= connection["out_of_order"]


def test_a_slow_link_is_the_networks_time_on_both_sides(seen: Seen) -> None:
    with (
        link() as (left, right),
        rate_limit(left, "10mbit"),
        seen.follow(SERVER, "0.0.0.0", 200_003, 211, end=right) as server,
    ):
        given = (right.address, int(server.line()), 200_003, 211)
        with seen.follow(CLIENT, *given, end=left) as client:
            assert client.line() == "done"
            posted = seen.waits(client.pid)
            # 200 KB at 10 Mbit/s take 160 ms, less what the link takes in a burst
            answer = posted[posted["op"] == SocketOp.RECEIVE]
            assert len(answer) == 1
            network = answer["acked_mono_ns"] - answer["from_mono_ns"]
            sending = posted[posted["op"] == SocketOp.SEND]
            blocked = (sending["to_mono_ns"] - sending["from_mono_ns"]).sum()
            assert network[0] + blocked > 130 * MS
            # ... and next to nothing was left for the server, which answers at once
            assert (answer["arrived_mono_ns"] - answer["acked_mono_ns"])[0] < 15 * MS
            assert lack(answer, SocketFlags.BULK).all()
            received = seen.waits(server.pid)

    # with MSG_WAITALL the post is one receive, which began to arrive at once
    assert len(received) == 1
    assert have(received, SocketFlags.BULK | SocketFlags.FIRST).all()
    assert (received["to_mono_ns"] - received["arrived_mono_ns"])[0] > 130 * MS


def test_a_transfer_that_is_read_as_it_comes_is_bulk(seen: Seen) -> None:
    with (
        link() as (left, right),
        rate_limit(left, "10mbit"),
        program(SERVER, "0.0.0.0", 101, 200_003, prefix=left.prefix) as server,
    ):
        server.go()
        given = (left.address, int(server.line()), 101, 200_003)
        with seen.follow(CLIENT, *given, end=right) as client:
            assert client.line() == "done"
            waits = seen.waits(client.pid, SocketOp.RECEIVE)

    assert have(waits, SocketFlags.MESSAGE).sum() <= 1
    bulk = have(waits, SocketFlags.BULK)
    assert bulk.sum() > 23
    spent = waits["to_mono_ns"] - waits["from_mono_ns"]
    assert spent[bulk].sum() > 100 * MS
    assert spent[bulk].sum() > 0.8 * spent.sum()


def test_a_send_that_finds_the_buffer_full_is_a_wait_and_thinking_is_not(seen: Seen) -> None:
    body = """
    import socket
    listener = socket.create_server(("", 0))
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    connection.recv(101)
    time.sleep(0.017)
    for _ in range(3):
        connection.sendall(b"a" * 101)
        time.sleep(0.017)
    connection.sendall(b"a" * 3_000_017)
    connection.close()
    print("closed", flush=True)
    sys.stdin.readline()
    """
    reads_late = """
    import socket
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    connection.sendall(b"q" * 101)
    got = len(connection.recv(3 * 101, socket.MSG_WAITALL))
    time.sleep(0.307)
    while data := connection.recv(1 << 20):
        got += len(data)
    print(got)
    """
    with link() as (left, right), seen.follow(body, end=left) as server:
        with program(reads_late, left.address, server.line(), prefix=right.prefix) as client:
            client.go()
            got = int(client.line())
        assert server.line() == "closed"
        waits, connection = seen.waits(server.pid), seen.connections(server.pid, 1)[0]

    assert got == 3 * 101 + 3_000_017
    assert waits["op"].tolist() == [SocketOp.RECEIVE, SocketOp.SEND]
    blocked = waits[1]
    assert have(blocked, SocketFlags.ACCEPTED | SocketFlags.ZERO_WINDOW)
    assert blocked["to_mono_ns"] - blocked["from_mono_ns"] >= 300 * MS
    assert connection["zero_windows"] == 1
    assert connection["sent_bytes"] == got


def test_a_non_blocking_send_that_waits_for_room_is_a_wait(seen: Seen) -> None:
    body = """
    import select, socket
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    connection.recv(101)
    connection.setblocking(False)
    left = 20_000_003
    while left:
        left -= connection.send(b"a" * left)
        if left:
            select.select([], [connection], [])
    connection.close()
    """
    with seen.follow(body) as server:
        with connect(server) as client:
            client.sendall(b"q" * 101)
            client.recv(1, socket.MSG_PEEK)
            time.sleep(0.083)
            got = 0
            while data := client.recv(1 << 20):
                got += len(data)
        waits = seen.waits(server.pid, SocketOp.SEND)

    assert got == 20_000_003
    assert (waits["to_mono_ns"] - waits["from_mono_ns"]).max() >= 75 * MS


def test_connecting_over_a_slow_link_takes_a_round_trip(seen: Seen) -> None:
    with slow_link(0.011) as (left, right), program(SERVER, "0.0.0.0", 101, 211, prefix=right.prefix) as server:
        server.go()
        port = int(server.line())
        with seen.follow(CLIENT, right.address, port, 101, 211, end=left) as client:
            assert client.line() == "done"
            client.go()
            assert client.line() == "closed"
            connect, answer = seen.waits(client.pid)
            connection = seen.connections(client.pid, 1)[0]

    assert connect["op"] == SocketOp.CONNECT
    assert connect["tid"] == client.pid
    assert connect["remote_port"] == port
    assert address(bytes(connect["remote"])) == f"::ffff:{right.address}"
    took = connect["to_mono_ns"] - connect["from_mono_ns"]
    assert 22 * MS <= took < 60 * MS
    assert connect["to_mono_ns"] == connect["established_mono_ns"]
    assert connect["min_rtt_us"] == pytest.approx(took / 1000, rel=0.2)
    assert connection["opened_mono_ns"] == connect["from_mono_ns"]
    assert connection["established_mono_ns"] == connect["to_mono_ns"]
    assert connection["local_port"] == connect["local_port"] > 0
    # the answer is a round trip off: no more than its own way is the peer's
    assert answer["op"] == SocketOp.RECEIVE
    assert answer["arrived_mono_ns"] - answer["from_mono_ns"] >= 22 * MS
    assert connection["first_byte_mono_ns"] == answer["arrived_mono_ns"]


def test_connections_that_fail_are_told(seen: Seen) -> None:
    body = """
    import socket
    refused, slow = socket.socket(), socket.socket()
    try:
        refused.connect(("127.0.0.1", int(sys.argv[1])))
    except ConnectionRefusedError:
        print("refused", flush=True)
    slow.settimeout(0.061)
    try:
        slow.connect((sys.argv[2], 7))
    except TimeoutError:
        slow.close()
        print("closed", flush=True)
    sys.stdin.readline()
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed_port = listener.getsockname()[1]
    with link() as (left, _), seen.follow(body, closed_port, "10.98.0.77", end=left) as client:
        assert [client.line(), client.line()] == ["refused", "closed"]
        batch = seen.source.drain()

    refused, slow = batch.connections[batch.connections["tgid"] == client.pid]
    assert have(refused, SocketFlags.RESET)
    assert refused["remote_port"] == closed_port
    assert refused["established_mono_ns"] == slow["established_mono_ns"] == 0
    assert lack(slow, SocketFlags.RESET)
    assert slow["remote_port"] == 7
    (wait,) = batch.sockets[batch.sockets["tgid"] == client.pid]
    assert wait["op"] == SocketOp.CONNECT
    assert wait["established_mono_ns"] == 0
    assert wait["to_mono_ns"] - wait["from_mono_ns"] >= 60 * MS


def test_who_reset_a_connection_is_told(seen: Seen) -> None:
    with seen.follow(SERVER, "127.0.0.1", 101, 211) as server:
        client = connect(server)
        exchange(client, 101, 211)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        client.close()
        connection = seen.connections(server.pid, 1)[0]
    assert connection["flags"] == SocketFlags.ACCEPTED | SocketFlags.RESET

    body = """
    import socket
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    connection.recv(10)
    connection.close()
    sys.stdin.readline()
    """
    with seen.follow(body) as server, connect(server) as client:
        client.sendall(b"q" * 101)
        connection = seen.connections(server.pid, 1)[0]
    # unread data was left: the kernel answers with a reset of our own
    assert connection["flags"] == SocketFlags.ACCEPTED | SocketFlags.ABORTED
    assert connection["received_bytes"] == 101


def test_ipv6_addresses(seen: Seen) -> None:
    with seen.follow(SERVER, "::1", 101, 211) as server:
        port = int(server.line())
        with socket.create_connection(("::1", port)) as client:
            client_port = client.getsockname()[1]
            exchange(client, 101, 211)
            (wait,) = seen.waits(server.pid)
        connection = seen.connections(server.pid, 1)[0]

    for record in (wait, connection):
        assert address(bytes(record["local"])) == address(bytes(record["remote"])) == "::1"
        assert (record["local_port"], record["remote_port"]) == (port, client_port)


def test_sockets_that_are_older_than_their_being_followed_are_known(seen: Seen) -> None:
    body = """
    import socket
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    for _ in range(2):
        connection, _ = listener.accept()
        while data := connection.recv(101, socket.MSG_WAITALL):
            connection.sendall(b"a" * 211)
        connection.close()
        print("closed", flush=True)
    sys.stdin.readline()
    """
    with program(body) as server:
        server.go()
        port = int(server.line())
        with socket.create_connection(("127.0.0.1", port)) as client:
            exchange(client, 101, 211)
            seen.source.follow([server.pid])
            for _ in range(7):
                exchange(client, 101, 211)
        assert server.line() == "closed"
        old = seen.waits(server.pid)
        connection = seen.connections(server.pid, 1)[0]
        with socket.create_connection(("127.0.0.1", port)) as client:
            exchange(client, 101, 211)
        assert server.line() == "closed"
        new = seen.waits(server.pid)[len(old) :]

    assert len(old) == 7
    assert have(old, SocketFlags.ACCEPTED | SocketFlags.MESSAGE).all()
    assert lack(old, SocketFlags.FIRST).all()
    assert (old["established_mono_ns"] == 0).all()
    assert (old["arrived_mono_ns"] > 0).all()
    assert old["received_bytes"].tolist() == [101 * n for n in range(2, 9)]
    assert connection["messages"] == 7
    assert connection["sent_bytes"] == 8 * 211
    assert connection["opened_mono_ns"] == 0
    # its listener was known by then
    assert len(new) == 1
    assert have(new, SocketFlags.ACCEPTED | SocketFlags.FIRST).all()
    assert new["established_mono_ns"][0] > old["to_mono_ns"][-1]


def test_sockets_of_others_write_nothing(seen: Seen) -> None:
    def serve(connection: socket.socket) -> None:
        for _ in range(7):
            connection.recv(101, socket.MSG_WAITALL)
            time.sleep(0.003)
            connection.sendall(b"a" * 211)

    with upstream(serve) as port, program(CLIENT, "127.0.0.1", port, *(7 * [101, 211])) as client:
        client.go()
        assert client.line() == "done"
        client.go()
        assert client.line() == "closed"
        batch = seen.source.drain()

    assert not np.isin(batch.sockets["tgid"], [client.pid, os.getpid()]).any()
    assert not np.isin(batch.connections["tgid"], [client.pid, os.getpid()]).any()
