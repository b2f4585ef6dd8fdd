"""The workers' socket: who may connect, what is counted, what is left behind."""

import os
import socket
from pathlib import Path

import pytest

from tailspan.collect.worker import PACKETS_PER_POLL, WorkerServer
from tailspan.errors import CannotError
from tailspan.wire.spans import Drops, Hello, encode


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


def test_the_socket_has_its_mode_and_is_removed(tmp_path: Path) -> None:
    server = WorkerServer(tmp_path / "deep" / "w.sock", mode=0o600)

    assert (tmp_path / "deep" / "w.sock").stat().st_mode & 0o777 == 0o600
    server.close()
    assert not server.path.exists()


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "w.sock").write_text("precious")

    with pytest.raises(CannotError, match="is no socket"):
        WorkerServer(tmp_path / "w.sock")
    assert (tmp_path / "w.sock").read_text() == "precious"


def test_an_unknown_group_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotError, match="no group 'nobody-has-this'"):
        WorkerServer(tmp_path / "w.sock", group="nobody-has-this")
