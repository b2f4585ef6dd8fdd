"""Whatever happens to the agent, the worker goes on: no wait, no error, and every loss counted."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import tailspan.client
from tailspan.client import Client, runtime
from tailspan.client.connection import Connection
from tailspan.wire.spans import Drops, Hello, Message, Request

from .listener import Listener, Peer

#: More messages than any socket buffer of a test machine holds.
MORE_THAN_FITS = 20_000


def serve(client: Client, name: str = "r") -> None:
    with client.request(name) as request, request.span("s"):
        pass


def requests(messages: list[Message]) -> list[str]:
    return [m.name for m in messages if isinstance(m, Request)]


def test_the_first_packet_is_a_hello(listener: Listener, connect: Callable[[], Client]) -> None:
    connect()
    _, hello = listener.accept_and_greet()
    assert hello == Hello(os.getpid(), "resnet", "3", {"host.name": "a"}, runtime.locks(), hello.sent)


def test_the_socket_is_found_by_the_environment(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILSPAN_SOCKET", str(listener.path))
    client = tailspan.client.connect("resnet")
    assert listener.accept_and_greet()[1].service == "resnet"
    client.close()


def test_an_absent_agent_is_looked_for_once_a_second(
    socket_path: Path, connect: Callable[[], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN no agent, and a clock that the test moves
    tries = []
    now = 10**12

    def absent(_: Connection) -> None:
        tries.append(now)
        raise FileNotFoundError

    monkeypatch.setattr(Connection, "_open", absent)
    monkeypatch.setattr("tailspan.client.connection.time.monotonic_ns", lambda: now)
    client = connect()
    # WHEN requests are served during 2.3 seconds
    for _ in range(23):
        serve(client)
        now += 100_000_000
    # THEN it was looked for at the start and after each second, and every request is a counted drop
    assert tries == [10**12, 10**12 + 10**9, 10**12 + 2 * 10**9]
    assert client.dropped == 23


@pytest.mark.parametrize("path", ["/nowhere/worker.sock", "x" * 300, "/dev/null", "nul\0byte"])
def test_an_impossible_path_is_an_absent_agent(path: str) -> None:
    client = tailspan.client.connect("resnet", path=path)
    serve(client)
    assert client.dropped == 1


def test_a_listener_of_another_type_is_an_absent_agent(socket_path: Path, connect: Callable[[], Client]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind(str(socket_path))
        stream.listen()
        client = connect()
        serve(client)
        assert client.dropped == 1


def test_an_agent_that_comes_late_is_told_what_was_dropped(
    socket_path: Path, connect: Callable[[], Client], every_try: None
) -> None:
    client = connect()
    for _ in range(23):
        serve(client)
    listener = Listener(socket_path)
    serve(client, "seen")
    peer, _ = listener.accept_and_greet()
    assert peer.expect(Request).name == "seen"
    assert peer.expect(Drops).count == 23
    # AND once only
    serve(client)
    assert isinstance(peer.receive(), Request)
    assert peer.waiting() == []
    listener.stop()


def test_a_restarted_agent_gets_a_hello_and_the_next_request(
    socket_path: Path, connect: Callable[[], Client], every_try: None
) -> None:
    first = Listener(socket_path)
    client = connect()
    first.accept_and_greet()
    first.stop()
    serve(client, "lost")
    second = Listener(socket_path)
    serve(client, "kept")
    peer, hello = second.accept_and_greet()
    assert hello.pid == os.getpid()
    assert peer.expect(Request).name == "kept"
    assert peer.expect(Drops).count == 1
    second.stop()


def test_an_agent_that_does_not_read_costs_messages_and_no_time(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    # GIVEN an agent that reads nothing, WHEN more is sent than the socket holds (a send that waits hangs here)
    for _ in range(MORE_THAN_FITS):
        serve(client)
    # THEN what does not fit is dropped, and not one message is unaccounted for
    assert client.dropped > 0
    assert len(requests(peer.waiting())) + client.dropped == MORE_THAN_FITS
    # AND as soon as it reads again, it is told
    dropped = client.dropped
    serve(client, "again")
    assert peer.expect(Request).name == "again"
    assert peer.expect(Drops).count == dropped


def test_a_stopped_agent_never_holds_up_the_worker(socket_path: Path, connect: Callable[[], Client]) -> None:
    # GIVEN an agent in a process of its own that was stopped with a client connected and a full backlog
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(socket_path))
    listener.listen(1)
    agent = os.fork()
    if agent == 0:
        signal.pause()
        os._exit(0)
    try:
        os.kill(agent, signal.SIGSTOP)
        os.waitpid(agent, os.WUNTRACED)
        clients = [connect() for _ in range(5)]
        # WHEN they send more than it could ever hold
        dropped = []
        for client in clients:
            before = client.dropped
            for _ in range(MORE_THAN_FITS // 5):
                serve(client)
            dropped.append(client.dropped - before)
        # THEN those in the backlog fill their sockets, the others were refused, and nobody waited
        assert all(dropped)
        assert dropped[0] < MORE_THAN_FITS // 5
        assert dropped[-1] == MORE_THAN_FITS // 5
    finally:
        os.kill(agent, signal.SIGKILL)
        os.waitpid(agent, 0)
        listener.close()


def test_many_threads_send_at_once_and_nothing_is_lost_uncounted(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    n_threads, each = 8, 400
    arrived: list[Message] = []

    def read() -> None:
        while (message := peer.receive()) is not None:
            arrived.append(message)

    def work(number: int) -> None:
        for i in range(each):
            serve(client, f"{number}-{i}")

    reader = threading.Thread(target=read)
    reader.start()
    workers = [threading.Thread(target=work, args=(n,)) for n in range(n_threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    client.close()
    reader.join()
    names = requests(arrived)
    assert len(names) == len(set(names))
    assert len(names) + client.dropped == n_threads * each
    # AND the messages of one thread arrive in order
    for number in range(n_threads):
        mine = [int(name.split("-")[1]) for name in names if name.startswith(f"{number}-")]
        assert mine == sorted(mine)


def test_drops_of_many_threads_are_all_counted(connect: Callable[[], Client]) -> None:
    client = connect()
    threads = [threading.Thread(target=lambda: [serve(client) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.dropped == 8 * 500


def test_a_lost_connection_is_closed_only_when_no_thread_sends_on_it(
    listener: Listener, connect: Callable[[], Client]
) -> None:
    client = connect()
    sending = client.connection._socket  # what a thread holds that is on its way into send()
    assert sending is not None
    fd = sending.fileno()
    listener.stop()
    serve(client)
    assert client.connection._socket is None
    assert sending.fileno() == fd
    del sending
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def in_child(work: Callable[[], None]) -> int:
    """Fork, do ``work`` there, and give the child's pid once it has ended well."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    return child


def test_a_fork_says_its_own_hello_on_its_own_connection(
    listener: Listener, connect: Callable[[], Client]
) -> None:
    # GIVEN a server that connects, and then forks workers
    client = connect()
    parent, _ = listener.accept_and_greet()
    # WHEN parent and child both serve
    child = in_child(lambda: serve(client, "child's"))
    serve(client, "parent's")
    # THEN each is heard on its own connection
    peer, hello = listener.accept_and_greet()
    assert hello.pid == child
    assert peer.expect(Request).name == "child's"
    assert parent.expect(Request).name == "parent's"
    assert parent.waiting() == []


def test_a_fork_lets_go_of_its_parents_socket(listener: Listener, connect: Callable[[], Client]) -> None:
    client = connect()
    sending = client.connection._socket  # what a thread held that was on its way into send()
    assert sending is not None

    def work() -> None:
        assert sending.fileno() == -1

    in_child(work)
    assert sending.fileno() != -1


def test_a_fork_that_serves_nothing_stays_unknown_to_the_agent(
    listener: Listener, connect: Callable[[], Client]
) -> None:
    connect()
    listener.accept_and_greet()
    in_child(lambda: None)
    assert listener.nobody_waits()


def test_a_fork_begins_its_own_count(socket_path: Path, connect: Callable[[], Client]) -> None:
    client = connect()
    serve(client)

    def work() -> None:
        assert client.dropped == 0
        serve(client)
        assert client.dropped == 1

    in_child(work)
    assert client.dropped == 1


def test_a_fork_inside_a_request_leaves_that_request_to_the_parent(
    listener: Listener, connect: Callable[[], Client]
) -> None:
    client = connect()
    parent, _ = listener.accept_and_greet()
    with client.request("forks") as request:
        in_child(lambda: request.__exit__(None, None, None))
    assert parent.expect(Request).name == "forks"
    assert listener.nobody_waits()


def test_a_fork_while_another_thread_connects_is_not_stuck(
    listener: Listener, connect: Callable[[], Client]
) -> None:
    client = connect()
    listener.accept_and_greet()
    client.connection._connecting.acquire()  # held by a thread that the child will not have
    child = in_child(lambda: serve(client))
    assert listener.accept_and_greet()[1].pid == child


def test_a_closed_client_drops_and_counts(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    client.close()
    serve(client)
    assert client.dropped == 1
    assert peer.receive() is None


def test_what_two_clients_of_a_process_lose_is_one_count(
    listener: Listener, connect: Callable[[], Client], every_try: None
) -> None:
    # GIVEN two clients of one process, each of which has lost requests
    clients = [connect(), connect()]
    listener.stop()
    for number in range(23):
        serve(clients[number % 2])
    again = Listener(listener.path)
    # WHEN each can tell it
    for client in clients:
        serve(client)
    # THEN both say what the process has lost, as the agent knows processes only
    peers = [again.accept_and_greet()[0] for _ in clients]
    for peer in peers:
        assert peer.expect(Request)
        assert peer.expect(Drops).count == 23
    again.stop()


def test_a_hello_says_how_many_messages_the_process_has_sent_before(
    socket_path: Path, connect: Callable[[], Client], every_try: None
) -> None:
    # GIVEN 23 requests on two connections, one that was dropped with its agent, and one while there was none
    first = Listener(socket_path)
    clients = [connect(), connect()]
    _, hello = first.accept_and_greet()
    for number in range(23):
        serve(clients[number % 2])
    first.stop()
    serve(clients[0], "lost")
    serve(clients[0], "lost too")
    # WHEN the next agent is there
    second = Listener(socket_path)
    serve(clients[0])
    serve(clients[1], "lost")
    serve(clients[1])
    # THEN it is told of those, not of the hellos, nor of what was dropped
    peer, again = second.accept_and_greet()
    assert again.sent - hello.sent == 23
    assert peer.expect(Request)
    assert peer.expect(Drops).count == 2
    # AND the other connection's hello says the one more; what says the drops is not counted
    _, of_other = second.accept_and_greet()
    assert of_other.sent == again.sent + 1
    second.stop()


def test_what_is_sent_by_many_threads_and_by_signal_handlers_is_all_counted(
    socket_path: Path, connect: Callable[[], Client], every_try: None
) -> None:
    first = Listener(socket_path)
    client = connect()
    _, hello = first.accept_and_greet()
    before = signal.signal(signal.SIGALRM, lambda *_: serve(client, "from the handler"))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        threads = [threading.Thread(target=lambda: [serve(client) for _ in range(300)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(300):
            serve(client)
        for thread in threads:
            thread.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    sent = len(requests(first._peers[0].waiting()))
    first.stop()
    serve(client)
    second = Listener(socket_path)
    serve(client)
    assert second.accept_and_greet()[1].sent - hello.sent == sent
    second.stop()


def test_a_fork_has_sent_nothing_yet(listener: Listener, connect: Callable[[], Client]) -> None:
    client = connect()
    listener.accept_and_greet()
    serve(client)
    in_child(lambda: serve(client, "child's"))
    assert listener.accept_and_greet()[1].sent == 0
