"""The workers' socket: who may connect, what is counted, what is left behind."""

import os
import socket
import statistics
import time
from collections import Counter
from pathlib import Path

import pytest

from tailspan.collect.worker import PACKETS_PER_POLL, READ_NS, WorkerServer
from tailspan.errors import CannotError
from tailspan.timeline.inbox import Received
from tailspan.timeline.tables import LOSS_CLIENT
from tailspan.wire.spans import Drops, Hello, encode
from tests.workloads import Program, program


def connect(server: WorkerServer) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(server.path))
    return connection


def test_a_peer_is_who_the_kernel_says_it_is(tmp_path: Path) -> None:
    server = WorkerServer(tmp_path / "w.sock")
    with connect(server) as worker:
        (peer,) = server.accept()
        worker.send(encode(Hello(1, "it claims to be pid 1")))
        (received,) = server.read()

    assert peer.pid == received.tgid == os.getpid()
    assert server.take_gone() == set()
    assert server.read() == []
    assert server.take_gone() == {os.getpid()}
    server.close()


def test_a_process_is_gone_only_with_its_last_connection(tmp_path: Path) -> None:
    server = WorkerServer(tmp_path / "w.sock")
    with connect(server):
        with connect(server):
            server.accept()
        server.read()
        assert server.take_gone() == set()
    server.read()
    assert server.take_gone() == {os.getpid()}
    server.close()


def test_a_connection_too_many_is_closed_and_counted(tmp_path: Path) -> None:
    server = WorkerServer(tmp_path / "w.sock", max_connections=2)
    with connect(server), connect(server), connect(server) as third:
        assert len(server.accept()) == 2
        assert third.recv(1) == b""
    assert server.dropped == {"too_many_connections": 1}
    server.close()


def test_one_peers_flood_does_not_keep_another_waiting(tmp_path: Path) -> None:
    server = WorkerServer(tmp_path / "w.sock")
    with connect(server) as flood, connect(server) as quiet:
        server.accept()
        flood.setblocking(False)
        sent = 0
        try:
            while sent < 3 * PACKETS_PER_POLL:
                flood.send(encode(Drops(1)))
                sent += 1
        except BlockingIOError:
            pass  # its own socket buffer is full: nobody else's
        quiet.send(encode(Drops(2)))

        first = server.read()

        counts = [r.message.count for r in first if isinstance(r.message, Drops)]
        assert counts.count(2) == 1
        assert counts.count(1) == min(sent, PACKETS_PER_POLL)
    server.close()


FLOOD = """
import socket
from tailspan.wire.spans import Drops, encode
connections = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(int(sys.argv[2]))]
for connection in connections:
    connection.connect(sys.argv[1])
    connection.setblocking(False)
packet, sent, refused = encode(Drops(1)), 0, 0
until = time.monotonic() + float(sys.argv[3])
while time.monotonic() < until:
    for connection in connections:
        try:
            connection.send(packet)
            sent += 1
        except BlockingIOError:
            refused += 1
print(sent, refused, flush=True)
sys.stdin.readline()
"""
STEADY = """
import socket
from tailspan.wire.spans import Drops, encode
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(sys.argv[1])
connection.setblocking(False)
for number in range(1, 501):
    connection.send(encode(Drops(number)))
    time.sleep(0.002)
print("sent", flush=True)
sys.stdin.readline()
"""


def polled_until_empty(server: WorkerServer, programs: list[Program]) -> tuple[list[Received], list[int]]:
    """All that they send, and how many ns each poll took; each of them has printed one line, and has ended."""
    received: list[Received] = []
    took: list[int] = []
    deadline = time.monotonic() + 60
    left = len(programs)
    while server.peers or left:
        assert time.monotonic() < deadline
        server.accept()
        left = min(left, len(programs) - len({peer.pid for peer in server.peers.values()}))
        started = time.monotonic_ns()
        received += server.read()
        took.append(time.monotonic_ns() - started)
        time.sleep(0.01)
    return received, took


def test_a_flood_costs_its_sender_alone_and_is_counted_exactly(tmp_path: Path) -> None:
    # GIVEN a budget that two processes flood over, one of them on eight connections, and a third does not reach
    server = WorkerServer(tmp_path / "w.sock", packets_per_s=2000)
    with (
        program(FLOOD, server.path, 1, 2) as flood,
        program(FLOOD, server.path, 8, 2) as wide,
        program(STEADY, server.path) as steady,
    ):
        programs = [flood, wide, steady]
        for each in programs:
            each.go()
        for each in programs:
            each.go()  # to end when they are done
        received, took = polled_until_empty(server, programs)
        reports = [each.finish() for each in programs]

    # THEN the third has lost nothing, in order
    told = [one.message.count for one in received if one.tgid == steady.pid and isinstance(one.message, Drops)]
    assert told == list(range(1, 501))
    # AND the floods are bounded by their budgets, whatever the number of their connections
    taken = Counter(one.tgid for one in received)
    for each in (flood, wide):
        assert 2000 < taken[each.pid] < 2000 * 60
    # AND what they sent was either taken or counted
    sent = sum(int(line.split()[0]) for report in reports[:2] for line in report)
    assert sent == taken[flood.pid] + taken[wide.pid] + server.dropped["over_budget"]
    assert server.dropped["over_budget"] > 0
    losses = server.take_losses()
    assert losses["count"].tolist() == [server.dropped["over_budget"]]
    assert losses["klass"].tolist() == [LOSS_CLIENT]
    assert server.take_losses().tolist() == []
    # AND no poll kept the rest of the agent waiting
    assert statistics.median(took) < 2 * READ_NS
    server.close()


def test_a_budget_is_of_the_process_and_outlives_its_connections(tmp_path: Path) -> None:
    server = WorkerServer(tmp_path / "w.sock", packets_per_s=100)
    began = time.monotonic()
    taken = 0
    with connect(server) as first, connect(server) as second:
        assert len(server.accept()) == 2
        for worker in (first, second):
            for _ in range(100):
                worker.send(encode(Drops(1)))
    while server.peers:
        taken += len(server.read())
    server.take_gone()
    assert taken + server.dropped["over_budget"] == 200

    with connect(server) as third:
        refused = not server.accept()
        if not refused:
            third.send(encode(Drops(1)))
    while server.peers:
        taken += len(server.read())
    assert server.dropped["too_many_connects"] == refused
    assert taken <= 100 + 100 * (time.monotonic() - began)
    server.close()


CONNECTS = """
import socket
until = time.monotonic() + 2
held = []
while time.monotonic() < until:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(1)
    try:
        connection.connect(sys.argv[1])
    except OSError:
        continue
    held = (held + [connection])[-500:]
print("done", flush=True)
sys.stdin.readline()
"""


def test_a_process_that_connects_without_end_leaves_room_for_others(tmp_path: Path) -> None:
    server = WorkerServer(tmp_path / "w.sock", max_connections=8)
    with program(CONNECTS, server.path) as flood, program(STEADY, server.path) as steady:
        flood.go()
        while len(server.peers) < 8:  # all of them its own
            server.accept()
        steady.go()
        steady.go()
        received: list[Received] = []
        deadline = time.monotonic() + 60
        while sum(one.tgid == steady.pid for one in received) < 500:
            assert time.monotonic() < deadline
            server.accept()
            received += server.read()
            time.sleep(0.01)
        assert steady.finish() == ["sent"]
        assert len(server.peers) <= 8
        flood.go()
        while flood.process.poll() is None:
            server.accept()
            time.sleep(0.01)
    assert server.dropped["too_many_connections"] > 0
    server.close()


def test_of_what_is_full_who_has_most_gives_to_who_has_less(tmp_path: Path) -> None:
    server = WorkerServer(tmp_path / "w.sock", max_connections=3)
    greedy = [connect(server) for _ in range(3)]
    server.accept()
    greedy[2].send(encode(Drops(1)))

    with program(STEADY, server.path) as other:
        other.go()
        while other.pid not in {peer.pid for peer in server.peers.values()}:
            server.accept()
            time.sleep(0.005)

        assert sorted(peer.pid for peer in server.peers.values()) == sorted([os.getpid()] * 2 + [other.pid])
        assert greedy[2].recv(1) == b""  # the newest went
        assert server.dropped == {"too_many_connections": 1, "closed": 1}
        with connect(server) as another:
            assert server.accept() == []
            assert another.recv(1) == b""
    for connection in greedy:
        connection.close()
    server.close()


def test_limits_change_while_it_runs(tmp_path: Path) -> None:
    server = WorkerServer(tmp_path / "w.sock")
    connections = [connect(server) for _ in range(3)]
    server.accept()
    connections[1].send(encode(Drops(1)))

    server.limit((), 2, 20_000)
    assert len(server.peers) == 2
    server.limit((os.getuid() + 1,), 2, 20_000)
    assert server.peers == {}
    assert server.dropped == {"too_many_connections": 1, "foreign_uid": 2, "closed": 1}
    assert server.take_gone() == {os.getpid()}

    server.limit((os.getuid(),), 2, 100)
    with connect(server) as worker:
        assert len(server.accept()) == 1
        for _ in range(200):
            worker.send(encode(Drops(1)))
        taken = 0
        while (seen := taken + server.dropped["over_budget"]) < 200:
            taken += len(server.read())
        assert seen == 200
        assert taken < 200
    for connection in connections:
        connection.close()
    server.close()


def test_a_listener_of_somebody_elses_is_used_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "w.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        server = WorkerServer(path, listener=listener.dup())
        with connect(server):
            assert len(server.accept()) == 1
        server.close()
        with connect(server):
            assert path.exists()


def test_the_socket_has_its_mode_and_is_removed(tmp_path: Path) -> None:
    server = WorkerServer(tmp_path / "deep" / "w.sock", mode=0o600)

    assert (tmp_path / "deep" / "w.sock").stat().st_mode & 0o777 == 0o600
    server.close()
    assert not server.path.exists()


def test_the_folder_it_makes_may_be_entered_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        server = WorkerServer(tmp_path / "made" / "w.sock")
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o755
    assert server.path.stat().st_mode & 0o777 == 0o660
    server.close()


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "w.sock").write_text("precious")

    with pytest.raises(CannotError, match="is no socket"):
        WorkerServer(tmp_path / "w.sock")
    assert (tmp_path / "w.sock").read_text() == "precious"


def test_an_unknown_group_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotError, match="no group 'nobody-has-this'"):
        WorkerServer(tmp_path / "w.sock", group="nobody-has-this")
