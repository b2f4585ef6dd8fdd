"""Collections are told where they matter, and a worker that collects is as safe as one that does not."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tailspan.client import Client, connection, pauses
from tailspan.wire.spans import Activation, Drops, Message, Pause, PauseKind, Request, encode

from .listener import Listener, Peer

#: Lists that the collector looks at one by one: some 5 ms on a machine of today.
MANY = 100_000


@pytest.fixture
def heap() -> Iterator[list[list[int]]]:
    """Enough that a collection is a pause. Made while the collector is off, so it is all in the youngest.

    What all tests before have made is no part of it: a collection would take ten times as long.
    """
    gc.freeze()
    lists: list[list[int]] = [[] for _ in range(MANY)]
    yield lists
    lists.clear()
    gc.unfreeze()


def serve(client: Client) -> None:
    with client.request("r"):
        pass


def told(peer: Peer) -> list[Pause]:
    return [message for message in peer.heard if isinstance(message, Pause)]


def test_a_pause_is_told_before_the_request_that_it_delayed(
    client_and_peer: tuple[Client, Peer], heap: list[list[int]]
) -> None:
    client, peer = client_and_peer
    before = time.monotonic_ns()
    with client.request("r"):
        gc.collect()
    request = peer.expect(Request)
    pause, *rest = peer.heard[1:]
    assert rest == [request]
    assert isinstance(pause, Pause)
    assert (pause.kind, pause.tid, pause.generation) == (PauseKind.GC, threading.get_native_id(), 2)
    assert before <= request.start_mono_ns <= pause.start_mono_ns
    assert pause.start_mono_ns + pauses.FLOOR_NS <= pause.end_mono_ns <= request.end_mono_ns
    # AND once only
    serve(client)
    assert isinstance(peer.receive(), Request)
    assert len(told(peer)) == 1
    assert client.dropped == 0


def test_a_pause_is_told_before_a_batch_too(client_and_peer: tuple[Client, Peer], heap: list[list[int]]) -> None:
    client, peer = client_and_peer
    with client.batch(1, 1, 1):
        gc.collect(0)
    peer.expect(Activation)
    assert [type(m) for m in peer.heard[1:]] == [Pause, Activation]
    assert told(peer)[0].generation == 0


def test_a_pause_names_the_thread_that_collected(
    client_and_peer: tuple[Client, Peer], heap: list[list[int]]
) -> None:
    client, peer = client_and_peer
    tids = []
    thread = threading.Thread(target=lambda: (tids.append(threading.get_native_id()), gc.collect()))
    thread.start()
    thread.join()
    serve(client)
    peer.expect(Request)
    assert [pause.tid for pause in told(peer)] == tids != [threading.get_native_id()]


def test_a_short_collection_is_not_told(client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    gc.freeze()  # what pytest has loaded is not looked at
    try:
        for _ in range(23):
            gc.collect()
    finally:
        gc.unfreeze()
    serve(client)
    peer.expect(Request)
    # A machine that stops this process for a millisecond makes it a pause: not 23 times out of 23.
    assert len(told(peer)) < 23


def test_of_more_pauses_than_can_wait_the_last_are_told_and_a_drop(
    client_and_peer: tuple[Client, Peer], heap: list[list[int]]
) -> None:
    client, peer = client_and_peer
    first = 0
    for number in range(pauses.MAX_WAITING + 23):
        if number == 23:
            first = time.monotonic_ns()
        gc.collect()
    serve(client)
    peer.expect(Request)
    starts = [pause.start_mono_ns for pause in told(peer)]
    assert len(starts) == pauses.MAX_WAITING
    assert starts == sorted(starts)
    assert starts[0] >= first
    assert peer.expect(Drops).count == 1


def test_a_pause_that_the_socket_does_not_take_is_counted(
    client_and_peer: tuple[Client, Peer], heap: list[list[int]]
) -> None:
    client, _ = client_and_peer
    while not client.dropped:
        serve(client)
    gc.collect()
    before = client.dropped
    serve(client)
    assert client.dropped == before + 2


def test_pauses_wait_for_an_agent_that_is_absent(
    socket_path: object, connect: Callable[[], Client], heap: list[list[int]], every_try: None
) -> None:
    client = connect()
    gc.collect()
    serve(client)
    assert client.dropped == 1
    assert len(pauses.waiting) == 1


def test_a_collection_inside_send_is_told_with_the_next_message(
    client_and_peer: tuple[Client, Peer], heap: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, peer = client_and_peer

    def collect_and_encode(message: Message) -> bytes:
        gc.collect()
        return encode(message)

    # GIVEN a collection before every packet, those of pauses too; a send that holds a lock, or goes on until no
    # pause is left, never ends
    monkeypatch.setattr(connection, "encode", collect_and_encode)
    for _ in range(3):
        serve(client)
    for _ in range(3):
        peer.expect(Request)
    # THEN each send tells what came up to its begin: 0, 1 (in the first), 2 (before that pause, and the request)
    assert [type(m) for m in peer.heard[1:]] == [Request, Pause, Request, Pause, Pause, Request]
    assert client.dropped == 0


def test_collections_everywhere_while_many_threads_send(
    client_and_peer: tuple[Client, Peer], heap: list[list[int]]
) -> None:
    client, peer = client_and_peer
    n_threads, each = 4, 100
    heard = threading.Thread(target=lambda: [None for _ in iter(peer.receive, None)])
    heard.start()

    def work() -> None:
        for number in range(each):
            serve(client)
            if number % 23 == 0:
                gc.collect()  # nothing, while another thread collects

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    gc.enable()
    try:
        threads = [threading.Thread(target=work) for _ in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.disable()
        gc.set_threshold(*threshold)
    serve(client)
    client.close()
    heard.join()
    requests = [m for m in peer.heard if isinstance(m, Request)]
    starts = [pause.start_mono_ns for pause in told(peer)]
    assert starts
    assert len(starts) == len(set(starts))
    assert len(requests) + client.dropped >= n_threads * each + 1


class LateError(Exception):
    """What a worker's signal handler raises, as for a timeout."""


def test_what_a_signal_handler_raises_during_a_collection_reaches_the_worker(
    client_and_peer: tuple[Client, Peer],
) -> None:
    def handler(number: int, frame: object) -> None:
        raise LateError

    class Node:
        pass

    def collect_and_be_signalled() -> None:
        node = Node()
        node.itself = node  # type: ignore[attr-defined]
        # Called by the collector, and all of it built in: the timer ends meanwhile, and its signal is pending.
        timer = iter(partial(signal.setitimer, signal.ITIMER_REAL, 0.001), None)
        some_20_ms = iter(partial(sum, range(2_000_000)), None)
        seen = weakref.ref(node, partial(next, zip(timer, some_20_ms, strict=False)))
        del node
        gc.collect()
        assert seen() is None
        pytest.fail("what the handler raised is lost")

    before = signal.signal(signal.SIGALRM, handler)
    others = [callback for callback in gc.callbacks if callback not in pauses._registered]
    for callback in others:  # hypothesis has one, in Python: it would lose the exception
        gc.callbacks.remove(callback)
    try:
        with pytest.raises(LateError):
            collect_and_be_signalled()
    finally:
        gc.callbacks.extend(others)
        signal.signal(signal.SIGALRM, before)


def test_a_fork_tells_its_own_pauses_and_not_its_parents(
    listener: Listener, connect: Callable[[], Client], heap: list[list[int]]
) -> None:
    client = connect()
    listener.accept_and_greet()
    gc.collect()
    child = os.fork()
    if child == 0:
        try:
            with client.request("child's"):
                gc.collect()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    peer, _ = listener.accept_and_greet()
    peer.expect(Request)
    assert [pause.tid for pause in told(peer)] == [child]
    assert len(pauses.waiting) == 1


def test_collections_are_timed_while_a_client_is_open(connect: Callable[[], Client]) -> None:
    before = list(gc.callbacks)
    first, second = connect(), connect()
    registered = [callback for callback in gc.callbacks if callback not in before]
    assert len(registered) == 2
    first.close()
    assert [callback for callback in gc.callbacks if callback not in before] == registered
    second.close()
    assert gc.callbacks == before
    second.close()


AT_EXIT = """
import gc, sys, tailspan.client
client = tailspan.client.connect("resnet", path=sys.argv[1])
class Node:
    def __del__(self):
        gc.collect()
class Holder: pass
kept = [[i] for i in range(200_000)]
holder = Holder()
holder.itself, holder.node = holder, Node()
sys.modules["tailspan.holder"] = holder
"""


def test_an_interpreter_that_shuts_down_collects_in_silence(listener: Listener) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, str(listener.path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
