"""What died with an agent is counted, exactly, by the next one."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tailspan.client
from tailspan.client import Client
from tailspan.collect.worker import WorkerServer
from tailspan.export.tally import Tally
from tailspan.timeline.handover import MAX_PROCESSES, Handover
from tailspan.timeline.inbox import Received
from tailspan.timeline.tables import LOSS_CLIENT
from tailspan.wire.spans import Drops, Hello, Message, Pause, PauseKind
from tests.conftest import eventually

BOOT = "1b4e28ba"
PID = 900


def started(pid: int) -> int:
    """When the process did, in clock ticks since the machine did; 0 where it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(stat.rpartition(b")")[2].split()[19])


def always(_: int) -> int:
    return 23


def said(*messages: Message, pid: int = PID, at: int = 5) -> list[Received]:
    return [Received(pid, message, at) for message in messages]


def work(count: int = 1) -> list[Message]:
    return [Pause(PauseKind.GC, 4, 1, 2, 0)] * count


@pytest.fixture
def tally(tmp_path: Path) -> Iterator[Callable[[], Tally]]:
    """Opens the same tally again; the one before is closed, as it is when its process dies."""
    opened: list[Tally] = []

    def open_again() -> Tally:
        for before in opened:
            before.close()
        opened.append(Tally(tmp_path / "tally"))
        return opened[-1]

    yield open_again
    for one in opened:
        one.close()


def lost(handover: Handover, *messages: Message, pid: int = PID) -> int:
    return int(handover.take(said(*messages, pid=pid))["count"].sum())


def test_what_nobody_took_is_a_loss_at_the_hello(tally: Callable[[], Tally]) -> None:
    Handover(tally(), always, BOOT).take(said(Hello(4, "w"), *work(23), Drops(3)))

    losses = Handover(tally(), always, BOOT).take(said(Hello(4, "w", sent=30), *work(5), at=77))

    assert losses.tolist() == [(77, 77, 7, LOSS_CLIENT, 0)]
    # AND the next agent starts from what is accounted for
    assert lost(Handover(tally(), always, BOOT), Hello(4, "w", sent=35)) == 0


def test_of_a_process_that_no_agent_knew_nothing_is_lost_until_the_next(tally: Callable[[], Tally]) -> None:
    assert lost(Handover(tally(), always, BOOT), Hello(4, "w", sent=1000), *work(5)) == 0
    assert lost(Handover(tally(), always, BOOT), Hello(4, "w", sent=1007)) == 2


def test_only_the_first_hello_of_a_process_is_compared(tally: Callable[[], Tally]) -> None:
    Handover(tally(), always, BOOT).take(said(Hello(4, "w"), *work(10)))
    handover = Handover(tally(), always, BOOT)
    assert lost(handover, Hello(4, "w", sent=10), *work(5)) == 0

    # a second connection, while messages of the first are still on their way
    assert lost(handover, Hello(4, "w", sent=40)) == 0
    assert lost(handover, *work(25)) == 0
    assert lost(Handover(tally(), always, BOOT), Hello(4, "w", sent=40)) == 0


def test_a_count_that_came_late_is_made_up_for(tally: Callable[[], Tally]) -> None:
    # GIVEN a message that was taken, and that its thread had not counted yet when another said hello
    Handover(tally(), always, BOOT).take(said(Hello(4, "w"), *work(10)))
    assert lost(Handover(tally(), always, BOOT), Hello(4, "w", sent=9)) == 0
    assert lost(Handover(tally(), always, BOOT), Hello(4, "w", sent=10)) == 0
    assert lost(Handover(tally(), always, BOOT), Hello(4, "w", sent=13)) == 3


def test_a_client_that_does_not_count_loses_nothing(tally: Callable[[], Tally]) -> None:
    Handover(tally(), always, BOOT).take(said(Hello(4, "w"), *work(10)))
    assert lost(Handover(tally(), always, BOOT), Hello(4, "w")) == 0


@pytest.mark.parametrize("other", ["boot", "process", "gone"])
def test_a_number_that_means_another_process_now_is_not_compared(other: str, tally: Callable[[], Tally]) -> None:
    Handover(tally(), always, BOOT).take(said(Hello(4, "w"), *work(10)))

    start = {"boot": always, "process": lambda _: 24, "gone": lambda _: 0}[other]
    handover = Handover(tally(), start, "another" if other == "boot" else BOOT)

    assert lost(handover, Hello(4, "w", sent=50)) == 0


def test_processes_that_are_gone_are_forgotten_and_their_number_is_bounded(tally: Callable[[], Tally]) -> None:
    alive = set(range(1, MAX_PROCESSES + 24))
    handover = Handover(kept := tally(), lambda pid: 23 * (pid in alive), BOOT)
    for pid in alive:
        handover.take(said(Hello(4, "w"), *work(1), pid=pid))
    assert len(kept.keys("taken.")) == MAX_PROCESSES

    alive = {1, 1000}
    handover.take(said(Hello(4, "w"), *work(1), pid=1000))
    assert sorted(kept.keys("taken.")) == ["taken.1.23", "taken.1000.23"]


@pytest.mark.parametrize("key", ["taken.", "taken.x.1", "taken.٣.1", "taken.900"])
def test_keys_that_no_agent_wrote_are_removed(key: str, tally: Callable[[], Tally]) -> None:
    Handover(kept := tally(), always, BOOT)
    kept.set(key, 5)

    Handover(kept, always, BOOT)
    assert kept.keys("taken.") == []


def _be_agent(path: Path, folder: Path, judges: int, reads: int, writer: int) -> None:
    server = WorkerServer(path)
    handover = Handover(Tally(folder / "tally"), started, BOOT)
    os.write(writer, b"listens")
    received: list[Received] = []
    while len(received) < reads:
        server.accept()
        received += server.read()
        time.sleep(0.001)
    handover.take(received[:judges])
    os.write(writer, b"has read")
    signal.pause()


@contextmanager
def agent(path: Path, folder: Path, judges: int, reads: int) -> Iterator[int]:
    """A process that reads so many messages, takes some of them, and then does nothing; gives its pid."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _be_agent(path, folder, judges, reads, writer)
        finally:
            os._exit(1)
    try:
        assert os.read(reader, 16) == b"listens"
        yield pid
        assert os.read(reader, 16) == b"has read"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


def serve(client: Client, count: int) -> None:
    """In three threads."""

    def some() -> None:
        for _ in range(count // 3):
            with client.request("r"):
                pass

    threads = [threading.Thread(target=some) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture
def no_collections() -> Iterator[None]:
    """One of a millisecond, as on a busy machine, would be a message more."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("judged", [0, 1, 50, 100])
def test_every_message_of_a_real_client_that_a_killed_agent_had_not_judged_is_counted(
    judged: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailspan.client.connection.RETRY_NS", 0)
    path = tmp_path / "worker.sock"
    # GIVEN an agent that judged some of 99 messages, and was killed with 30 more unread in its socket
    with agent(path, tmp_path, judges=judged, reads=100):
        client = tailspan.client.connect("w", path=path)
        hello_at = client.connection._hello.sent
        serve(client, 99)
        serve(client, 30)
    assert client.dropped == 0
    # WHEN the next one comes, and the client has something to say
    server = WorkerServer(path)
    handover = Handover(Tally(tmp_path / "tally"), started, BOOT)
    serve(client, 30)
    received: list[Received] = []

    def all_came() -> bool:
        server.accept()
        received.extend(server.read())
        return len(received) >= 1 + 30 - client.dropped

    eventually(all_came, "the client's hello and messages")
    losses = handover.take(received)
    client.close()
    server.close()

    # THEN it knows how many nobody judged, if the one before had come as far as the hello
    hello = next(item.message for item in received if isinstance(item.message, Hello))
    assert hello.sent - hello_at == 129
    taken = max(judged - 1, 0)
    assert losses["count"].tolist() == ([129 - taken] if judged else [])
