"""All programs off and on again: what is seen after it is exact, and nothing is said of the time between."""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest

from tailspan.collect.bpf.source import BpfSource
from tailspan.errors import ProbeError
from tailspan.wire.events import CycleFlags, ThreadMode
from tests.conftest import eventually
from tests.kernel.conftest import Recorder
from tests.kernel.sleeper import NANOSLEEP, seams, sleep_23_times, sleeping_on_order, voluntary
from tests.workloads import LAST_CPU, cpu_hog, program

pytestmark = [pytest.mark.kernel, pytest.mark.both_loaders]

MS = 1_000_000
#: Where ``waiters`` lies in struct cpu_state of bpf/maps.bpf.h, and how long that is.
WAITERS_AT, CPU_STATE_LEN = 32, 128


def waiters(source: BpfSource) -> list[int]:
    cpus = source._loaded.object.map("cpus")
    states = (cpus.lookup(struct.pack("<I", cpu), CPU_STATE_LEN) for cpu in range(os.cpu_count() or 1))
    return [struct.unpack_from("<i", state, WAITERS_AT)[0] for state in states if state]


def test_23_sleeps_are_exact_after_three_pauses(source: BpfSource, recorder: Recorder) -> None:
    source.tune(short_wait_ns=1)
    with sleeping_on_order() as worker:
        source.follow([worker.pid])
        for _ in range(3):
            # WHEN it sleeps while probes are off
            (before,) = source.pause()
            assert before["tid"] == worker.pid
            drained = recorder_rows(recorder)
            sleep_23_times(worker)
            # THEN nothing of it is there
            assert recorder_rows(recorder) == drained
            assert not len(source.threads())

            # AND what comes after is whole
            (state,) = source.resume().states
            resumed = int(state["followed_mono_ns"])
            waited = sleep_23_times(worker)
            recorder.drain()
            cycles = recorder.cycles(worker.pid)
            after = cycles[cycles["on_mono_ns"] >= resumed]
            assert len(voluntary(after)) == waited
            assert 11 < (voluntary(after)["syscall_nr"] == NANOSLEEP).sum() <= 23
            # No turn begins, and no sleep reaches back, before all began anew
            assert (after["run_mono_ns"] >= resumed).all()
            assert (after["off_mono_ns"] >= resumed).all()
            assert not seams(after).any()
            assert int(state["total_waits"]) == 0
    assert recorder.lost() == 0


def recorder_rows(recorder: Recorder) -> int:
    recorder.drain()
    names = ("cycles", "slices", "thread_events", "sockets", "connections", "blocks", "incidents", "syscalls")
    return sum(len(recorder.table(name)) for name in names)


def test_a_sleep_through_the_pause_has_no_turn_that_covers_it(source: BpfSource, recorder: Recorder) -> None:
    with program("time.sleep(0.3)\nprint('up', flush=True)\nsys.stdin.readline()") as worker:
        source.follow([worker.pid])
        worker.go()
        eventually(lambda: mode_of(source, worker.pid) is ThreadMode.BLOCKED, "it sleeps")
        source.pause()
        source.resume()
        resumed = int(source.threads()["followed_mono_ns"].min())
        assert worker.line() == "up"
        recorder.drain()

    cycles = recorder.cycles(worker.pid)
    (slept,) = cycles[(cycles["syscall_nr"] == NANOSLEEP) & (cycles["on_mono_ns"] >= resumed)]
    assert slept["flags"] & CycleFlags.SEEDED
    assert slept["off_mono_ns"] >= resumed
    assert not ((cycles["run_mono_ns"] < resumed) & (cycles["on_mono_ns"] >= resumed)).any()


def mode_of(source: BpfSource, tid: int) -> ThreadMode | None:
    states = source.threads()
    found = states[states["tid"] == tid]
    return ThreadMode(int(found["mode"][0])) if len(found) else None


def test_who_waits_for_a_cpu_when_probes_go_off_is_in_no_queue_after_it(source: BpfSource) -> None:
    with program("while True: pass", cpu=LAST_CPU) as spinner, cpu_hog(LAST_CPU) as hog:
        source.follow([spinner.pid, hog])
        spinner.go()
        for _ in range(7):
            eventually(lambda: mode_of(source, spinner.pid) is ThreadMode.RUNNABLE, "it waits")
            source.pause()
            assert waiters(source) == [0] * len(waiters(source))
            source.resume()
            # one of the two waits, ever
            eventually(lambda: sum(waiters(source)) == 1, "one of the two is in the queue")
            assert min(waiters(source)) >= 0
        source.unfollow([spinner.pid, hog])
        eventually(lambda: sum(waiters(source)) == 0, "nobody is in a queue's count")
        assert min(waiters(source)) == 0


def test_threads_and_children_that_begin_in_a_pause_are_followed_after_it(source: BpfSource) -> None:
    body = """
        sys.stdin.readline()
        for _ in range(7): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        child = os.fork()
        if not child:
            grandchild = os.fork()
            time.sleep(60)
        print(child, flush=True)
        sys.stdin.readline()
        os.killpg(0, 9)
    """
    with program(
        "os.setpgid(0, 0)\n" + "\n".join(line.strip() and line[8:] for line in body.splitlines())
    ) as worker:
        source.follow([worker.pid])
        worker.go()
        source.pause()
        worker.go()
        child = int(worker.line())
        eventually(lambda: len(children_of(child)) == 1, "the grandchild is there")
        (grandchild,) = children_of(child)
        resumed = source.resume()

        assert resumed.born == {child: worker.pid, grandchild: child}
        tgids = resumed.states["tgid"].tolist()
        assert tgids.count(worker.pid) == 1 + 7
        assert tgids.count(child) == tgids.count(grandchild) == 1
        os.killpg(worker.pid, 9)


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(each) for each in file.read().split()]


def test_who_is_followed_without_children_is_so_after_a_pause(source: BpfSource) -> None:
    body = """
        child = os.fork()
        if not child:
            time.sleep(60)
        print(child, flush=True)
        sys.stdin.readline()
        os.kill(child, 9)
    """
    with program(body) as peer:
        source.follow([peer.pid], only_threads=True)
        source.pause()
        peer.go()
        child = int(peer.line())
        resumed = source.resume()
        peer.go()
        peer.finish()

    assert resumed.born == {}
    assert resumed.states["tgid"].tolist() == [peer.pid]
    assert child not in resumed.states["tgid"]


def test_a_connection_that_is_used_in_a_pause_is_met_anew(source: BpfSource, recorder: Recorder) -> None:
    body = """
        import socket
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        print("connected", flush=True)
        for line in sys.stdin:
            client.send(b"x")
            time.sleep(0.02)
            server.recv(1)
            print("received", flush=True)
    """
    with program(body) as worker:
        source.follow([worker.pid])
        worker.go()
        assert worker.line() == "connected"
        source.pause()
        worker.go()
        assert worker.line() == "received"
        resumed = int(source.resume().states["followed_mono_ns"].min())
        before = len(recorder.table("sockets"))
        worker.go()
        assert worker.line() == "received"
        recorder.drain()

    rows = recorder.table("sockets")[before:]
    rows = rows[rows["tgid"] == worker.pid]
    assert len(rows)
    assert (rows["from_mono_ns"] >= resumed - 50 * MS).all()  # met while all began anew
    assert (rows["messages"] <= 1).all()


def test_nobody_is_followed_while_it_is_paused(source: BpfSource) -> None:
    source.pause()
    for refused in (lambda: source.follow([os.getpid()]), lambda: source.unfollow([os.getpid()]), source.pause):
        with pytest.raises(ProbeError, match="paused"):
            refused()
    source.resume()
    with pytest.raises(ProbeError, match="not paused"):
        source.resume()
    assert all(status.attached for status in source.status.values() if status.probe.default and status.loaded)


def test_slices_and_short_waits_can_be_done_without(source: BpfSource, recorder: Recorder) -> None:
    with program("while True: pass", cpu=LAST_CPU) as spinner, cpu_hog(LAST_CPU):
        source.follow([spinner.pid])
        spinner.go()
        recorder.drain()

        def waits() -> np.ndarray:
            recorder.drain()
            cycles = recorder.cycles(spinner.pid)
            return cycles[cycles["on_mono_ns"] > cycles["ready_mono_ns"]]

        eventually(lambda: len(waits()) >= 11, "it waits for the hog")
        source.tune(slices=False)
        recorder.drain()
        slices, known = len(recorder.table("slices")), len(waits())
        eventually(lambda: len(waits()) >= known + 13, "it goes on")
        # THEN the waits are there, and nobody who ran meanwhile
        assert len(recorder.table("slices")) == slices
        assert not (waits()[known + 1 :]["flags"] & CycleFlags.RUNNER).any()
        source.tune()
        seen = len(waits())
        eventually(lambda: len(waits()) >= seen + 7, "it goes on")
        assert (waits()[seen + 1 :]["flags"] & CycleFlags.RUNNER).any() or len(recorder.table("slices")) > slices


def test_sums_stay_exact_where_the_floor_of_short_waits_is_raised(source: BpfSource, recorder: Recorder) -> None:
    body = """
        for line in sys.stdin:
            for _ in range(211): time.sleep(0.0001)
            print("done", flush=True)
    """
    with program(body) as worker:
        source.follow([worker.pid])
        worker.go()
        worker.go()
        assert worker.line() == "done"
        recorder.drain()
        single = recorder.cycles(worker.pid)
        source.tune(short_wait_ns=50 * MS)
        worker.go()
        assert worker.line() == "done"
        recorder.drain()
        (state,) = source.threads()

    cycles = recorder.cycles(worker.pid)
    folded = cycles[len(single) :]
    # WHEN no wait is written for itself, a turn is written every 20 ms at the latest
    assert (single["syscall_nr"] == NANOSLEEP).sum() > 100
    assert len(folded) < 60
    # THEN they are in the turns that they fell into, all of them
    counted = sum(int(cycles[name].sum()) for name in ("short_count",)) + len(cycles) + int(state["short_count"])
    assert counted >= int(state["total_waits"])
    blocked = int((cycles["ready_mono_ns"] - cycles["off_mono_ns"]).sum() + cycles["short_blocked_ns"].sum())
    assert blocked + int(state["short_blocked_ns"]) == int(state["total_blocked_ns"])
