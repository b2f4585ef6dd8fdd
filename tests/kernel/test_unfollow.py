"""A process that is let go of leaves nothing behind: no record, no storage, no count."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tailspan.collect.bpf.source import BpfSource
from tailspan.wire.events import ThreadMode
from tests.conftest import eventually
from tests.kernel.conftest import Recorder
from tests.kernel.sleeper import seams, sleep_23_times, sleeping_on_order, voluntary
from tests.workloads import LAST_CPU, cpu_hog, program

pytestmark = [pytest.mark.kernel, pytest.mark.both_loaders]

#: Threads, a child, signals, a connection: all that a followed process writes records about.
BUSY = """
import signal, socket
signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.create_server(("127.0.0.1", 0))
here = socket.create_connection(listener.getsockname())
there, _ = listener.accept()
def work():
    here.send(b"x"); there.recv(1)
    thread = threading.Thread(target=time.sleep, args=(0.002,)); thread.start(); thread.join()
    os.kill(os.getpid(), signal.SIGTERM)
    if not os.fork(): os._exit(0)
    os.wait()
work()
print("up", flush=True)
sys.stdin.readline()
for _ in range(7): work()
here.close(); there.close()
"""
TABLES = ("cycles", "thread_events", "sockets", "incidents")


def waiters(source: BpfSource) -> int:
    """Over all CPUs; cpu_state of bpf/maps.bpf.h."""
    cpus = source._loaded.object.map("cpus")
    values = [cpus.lookup(struct.pack("<I", cpu), 128) for cpu in range(os.cpu_count() or 1)]
    return sum(struct.unpack_from("<i", value, 32)[0] for value in values if value)


def deep_sleepers(source: BpfSource) -> int:
    value = source._loaded.object.map("deep_sleepers").lookup(bytes(4), 8)
    assert value is not None
    return int(struct.unpack("<q", value)[0])


def mode_of(source: BpfSource, tid: int) -> ThreadMode | None:
    states = source.threads()
    mine = states[states["tid"] == tid]
    return ThreadMode(int(mine[0]["mode"])) if len(mine) else None


def test_nothing_is_recorded_of_a_process_that_is_let_go_and_all_of_the_others(
    source: BpfSource, recorder: Recorder
) -> None:
    source.tune(short_wait_ns=1)
    with program(BUSY) as busy, sleeping_on_order() as other:
        source.follow([busy.pid, other.pid])
        busy.go()
        assert busy.line() == "up"
        source.unfollow([busy.pid])
        recorder.drain()
        before = {name: len(recorder.table(name)) for name in TABLES}
        assert all(before.values())

        assert set(source.threads()["tgid"].tolist()) == {other.pid}
        busy.go()
        waited = sleep_23_times(other)
        busy.finish()
        recorder.drain()

    for name in TABLES:
        rows = recorder.table(name)[before[name] :]
        assert set(rows["target_tgid" if name == "incidents" else "tgid"].tolist()) <= {other.pid}, name
    assert not len(recorder.table("connections"))
    assert len(voluntary(recorder.cycles(other.pid))) == waited


def test_whoever_waits_for_a_cpu_when_it_is_let_go_is_not_waited_for(source: BpfSource) -> None:
    with program("while True: pass", cpu=LAST_CPU) as spinner, cpu_hog(LAST_CPU):
        spinner.go()
        for _ in range(11):
            source.follow([spinner.pid])
            eventually(lambda: mode_of(source, spinner.pid) is ThreadMode.RUNNABLE, "it waits")
            source.unfollow([spinner.pid])
            eventually(lambda: waiters(source) == 0, "it had the CPU, and is in no queue's count")
            assert mode_of(source, spinner.pid) is None


def test_whoever_sleeps_uninterruptibly_when_it_is_let_go_is_not_counted_on(
    source: BpfSource, tmp_path: Path
) -> None:
    # GIVEN a process that waits for its vfork()ed child, which waits for somebody to write to a pipe
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    body = """
        actions = [(os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)]
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}, file_actions=actions), 0)
    """
    with program(body, pipe) as parent:
        source.follow([parent.pid])
        parent.go()
        eventually(lambda: deep_sleepers(source) == 1, "it waits for its child")
        source.unfollow([parent.pid])
        pipe.open("w").close()
        parent.finish()

    eventually(lambda: deep_sleepers(source) == 0, "it was woken, and is in no count")


@pytest.mark.parametrize("awake_between", [False, True])
def test_what_is_followed_again_is_followed_as_if_for_the_first_time(
    source: BpfSource, recorder: Recorder, awake_between: bool
) -> None:
    source.tune(short_wait_ns=1)
    with sleeping_on_order() as worker:
        source.follow([worker.pid])
        sleep_23_times(worker)
        source.unfollow([worker.pid])
        if awake_between:
            sleep_23_times(worker)
        states = source.follow([worker.pid])
        waited = sleep_23_times(worker)
        recorder.drain()

    (again,) = states[states["tgid"] == worker.pid]
    cycles = recorder.cycles(worker.pid)
    after = cycles[cycles["on_mono_ns"] > again["followed_mono_ns"]]
    assert len(voluntary(after)) == waited
    assert not seams(after).any()


def test_threads_started_while_it_is_let_go_are_not_followed_either(source: BpfSource) -> None:
    starting = """
        print("up", flush=True)
        while True:
            thread = threading.Thread(target=time.sleep, args=(0.0005,)); thread.start(); thread.join()
    """
    for _ in range(7):
        with program(starting) as starter:
            source.follow([starter.pid])
            starter.go()
            assert starter.line() == "up"
            source.unfollow([starter.pid])
            assert mode_of(source, starter.pid) is None
            assert not (source.threads()["tgid"] == starter.pid).any()


def test_letting_go_of_what_is_not_there_is_no_error(source: BpfSource) -> None:
    with program("") as worker:
        source.follow([worker.pid])
        worker.go()
        worker.finish()
        source.unfollow([worker.pid, 2**22, os.getpid()])

    assert not len(source.threads())
