"""The scheduler's records against workloads whose counts are known."""

import os
from collections.abc import Callable

import numpy as np
import pytest

from tailspan.attribute.intervals import disjoint, tile
from tailspan.collect.bpf.source import BpfSource
from tailspan.wire.events import CycleFlags, SliceFlags, ThreadEventKind, ThreadMode
from tailspan.wire.syscalls import SYSCALLS
from tests.conftest import eventually
from tests.kernel.conftest import Recorder
from tests.kernel.sleeper import NANOSLEEP, seams, sleep_23_times, sleeping_on_order, voluntary
from tests.workloads import LAST_CPU, cpu_cgroup, cpu_hog, program

pytestmark = [pytest.mark.kernel, pytest.mark.both_loaders]

MS = 1_000_000


def test_23_sleeps_are_23_intervals(source: BpfSource, recorder: Recorder) -> None:
    source.tune(short_wait_ns=1)
    with sleeping_on_order() as sleeping:
        source.follow([sleeping.pid])
        waited = sleep_23_times(sleeping)
        recorder.drain()

    waiting = voluntary(recorder.cycles(sleeping.pid))
    assert len(waiting) == waited
    sleeps = waiting[waiting["syscall_nr"] == NANOSLEEP]
    assert 11 < len(sleeps) <= 23
    # Its timer was set in the turn before it: from that on, it lasts as long as it was to.
    assert (sleeps["ready_mono_ns"] - sleeps["run_mono_ns"] >= 3 * MS).all()
    assert np.median(sleeps["ready_mono_ns"] - sleeps["off_mono_ns"]) > 2 * MS
    assert recorder.lost() == 0


def test_a_timer_is_not_blamed_on_the_task_it_interrupted(source: BpfSource, recorder: Recorder) -> None:
    with program("for _ in range(7): time.sleep(0.003)") as sleeper:
        source.follow([sleeper.pid])
        sleeper.go()
        sleeper.finish()
    recorder.drain()

    cycles = recorder.cycles(sleeper.pid)
    sleeps = cycles[cycles["syscall_nr"] == NANOSLEEP]
    sleeps = sleeps[sleeps["ready_mono_ns"] > sleeps["off_mono_ns"]]  # not the rest of a wait, on another CPU
    assert 3 < len(sleeps) <= 7  # one that the kernel did not tell of has no system call
    assert (sleeps["flags"] & CycleFlags.WAKER_IRQ != 0).all()


def held_while_waiting(recorder: Recorder, tid: int) -> tuple[np.ndarray, list[dict[int, int]]]:
    """The run-queue waits of ``tid``, and for each tgid -> ns that it held the CPU meanwhile (-1: not seen)."""
    cycles, slices = recorder.cycles(tid), recorder.table("slices")
    waits = cycles[cycles["on_mono_ns"] > cycles["ready_mono_ns"]]
    inline = cycles[cycles["flags"] & CycleFlags.RUNNER != 0]
    cpu = np.concatenate((slices["cpu"], inline["wait_cpu"])).astype(np.int64)
    start = np.concatenate((slices["start_mono_ns"], inline["runner_since_mono_ns"]))
    end = np.concatenate((slices["end_mono_ns"], inline["on_mono_ns"]))
    tgid = np.concatenate((slices["runner"]["tgid"], inline["runner"]["tgid"]))
    order = np.lexsort((start, cpu))
    cpu, tgid = cpu[order], tgid[order]
    cut_start, cut_end = disjoint(cpu, start[order], end[order])
    # THE slices of one CPU may touch, never overlap
    assert np.array_equal(cut_start, start[order])
    parts = tile(
        waits["wait_cpu"].astype(np.int64), waits["ready_mono_ns"], waits["on_mono_ns"], cpu, cut_start, cut_end
    )
    held: list[dict[int, int]] = [{} for _ in waits]
    for wait, begin, until, cover in zip(parts.parent, parts.start, parts.end, parts.cover, strict=True):
        who = int(tgid[cover]) if cover >= 0 else -1
        held[wait][who] = held[wait].get(who, 0) + int(until - begin)
    return waits, held


def shares_by_runner(recorder: Recorder, tid: int) -> tuple[dict[int, int], int]:
    """(tgid -> ns that it held the CPU while ``tid`` waited, all run-queue ns of ``tid``)."""
    waits, held = held_while_waiting(recorder, tid)
    found: dict[int, int] = {}
    for wait in held:
        for who, ns in wait.items():
            found[who] = found.get(who, 0) + ns
    return found, int((waits["on_mono_ns"] - waits["ready_mono_ns"]).sum())


PREEMPTER = """
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
for _ in range(int(sys.argv[1])):
    time.sleep(0.015)
    until = time.thread_time() + 0.002
    while time.thread_time() < until: pass
"""


def test_17_preemptions_are_17_waits_and_name_the_preempter(source: BpfSource, recorder: Recorder) -> None:
    # GIVEN a thread that never sleeps, and a real-time one that takes its CPU 17 times for 2 ms
    spin = "print('up', flush=True)\nwhile True: pass"
    with program(spin, cpu=LAST_CPU) as victim, program(PREEMPTER, 17, cpu=LAST_CPU) as taker:
        source.follow([victim.pid])
        victim.go()
        assert victim.line() == "up"
        recorder.drain()
        taker.go()
        taker.finish()
        recorder.drain()

    # THEN it waited 17 times for those 2 ms, and each wait says who had the CPU
    waits, held = held_while_waiting(recorder, victim.pid)
    taken = np.array([wait.get(taker.pid, 0) >= 1.9 * MS for wait in held])
    assert taken.sum() == 17
    assert (waits["flags"][taken] & CycleFlags.PREEMPTED != 0).all()
    assert (waits["ready_mono_ns"][taken] == waits["off_mono_ns"][taken]).all()


def test_a_threads_records_tile_its_time(source: BpfSource, recorder: Recorder) -> None:
    with program("for _ in range(200): time.sleep(0.0005)", cpu=LAST_CPU) as sleeper, cpu_hog(LAST_CPU):
        source.follow([sleeper.pid])
        sleeper.go()
        sleeper.finish()
    recorder.drain()

    cycles = recorder.cycles(sleeper.pid)
    assert len(cycles) > 100
    assert not seams(cycles).any()
    for earlier, later in (("run", "off"), ("off", "ready"), ("ready", "on")):
        assert (cycles[f"{earlier}_mono_ns"] <= cycles[f"{later}_mono_ns"]).all()


SPIN_2S = "until = time.monotonic() + 2\nwhile time.monotonic() < until: pass"


def test_two_neighbours_in_two_cgroups_get_their_own_milliseconds(source: BpfSource, recorder: Recorder) -> None:
    with (
        cpu_cgroup("tailspan-a") as a,
        cpu_cgroup("tailspan-b") as b,
        cpu_hog(LAST_CPU, a) as hog_a,
        cpu_hog(LAST_CPU, b) as hog_b,
        program(SPIN_2S, cpu=LAST_CPU) as victim,
    ):
        name, half = ("cpu.shares", 512) if (b / "cpu.shares").exists() else ("cpu.weight", 50)
        (b / name).write_text(str(half))
        ids = {hog_a: a.stat().st_ino, hog_b: b.stat().st_ino}
        source.follow([victim.pid])
        victim.go()
        victim.finish()
        recorder.drain()

    shares, total = shares_by_runner(recorder, victim.pid)
    assert total > 500 * MS
    # The CPU was never idle and nobody else wants it for long: the two hogs account for the wait
    assert shares[hog_a] + shares[hog_b] > 0.97 * total
    assert shares[hog_a] > 0.2 * total
    assert shares[hog_b] > 0.1 * total
    assert shares.get(-1, 0) < 0.001 * total
    slices, cycles = recorder.table("slices"), recorder.cycles(victim.pid)
    for runner in np.concatenate((slices["runner"], cycles["runner"])):
        if int(runner["tgid"]) in ids:
            assert int(runner["cgroup_id"]) == ids[int(runner["tgid"])]


def test_a_wait_that_moves_between_cpus_is_split_and_stays_whole(source: BpfSource, recorder: Recorder) -> None:
    # GIVEN a victim stuck behind a real-time thread on the last CPU
    body = "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\nprint('up', flush=True)\n"
    body += "until = time.monotonic() + 0.05\nwhile time.monotonic() < until: pass"
    moved = 0
    with program("while True: pass", cpu=LAST_CPU) as victim:
        source.follow([victim.pid])
        victim.go()
        for _ in range(5):
            os.sched_setaffinity(victim.pid, {LAST_CPU})
            with program(body, cpu=LAST_CPU) as taker:
                taker.go()
                assert taker.line() == "up"
                # WHEN it is sent to another CPU while it waits
                os.sched_setaffinity(victim.pid, {0})
                taker.finish()
            moved += 1
    recorder.drain()

    # THEN each wait was closed on the old CPU, naming who had it, and went on without a seam on the new one
    cycles = recorder.cycles(victim.pid)
    assert not seams(cycles).any()
    left = np.flatnonzero((cycles["flags"] & CycleFlags.MOVED != 0) & (cycles["wait_cpu"] == LAST_CPU))
    assert len(left) >= moved
    following = cycles[left[left + 1 < len(cycles)] + 1]
    goes_on_waiting = following["ready_mono_ns"] == following["run_mono_ns"]
    assert (goes_on_waiting | (following["short_count"] > 0)).all()  # a short rest of the wait is folded in
    slices = recorder.table("slices")
    assert (slices["flags"] & SliceFlags.UNFINISHED != 0).sum() >= 1


def test_the_thread_that_ended_the_wait_is_named(source: BpfSource, recorder: Recorder) -> None:
    body = """
    lock = threading.Lock(); lock.acquire()
    def hold():
        time.sleep(0.02); lock.release()
    holder = threading.Thread(target=hold); holder.start()
    print(holder.native_id, flush=True)
    lock.acquire(); holder.join()
    """
    with program(body) as worker:
        source.follow([worker.pid])
        worker.go()
        holder = int(worker.line())
        worker.finish()
    recorder.drain()

    cycles = recorder.cycles(worker.pid)
    longest = cycles[np.argmax(cycles["ready_mono_ns"] - cycles["off_mono_ns"])]
    waits = cycles[(cycles["syscall_nr"] == SYSCALLS.index("futex")) & (cycles["waker_tid"] == holder)]
    assert (waits["ready_mono_ns"] - waits["off_mono_ns"]).max() > 15 * MS, longest
    assert (waits["waker_tgid"] == worker.pid).all()


def test_threads_that_existed_are_adopted_and_later_ones_followed_from_birth(
    source: BpfSource, recorder: Recorder
) -> None:
    body = """
    def nap():
        time.sleep(0.01)
    for _ in range(5):
        thread = threading.Thread(target=nap); thread.start(); thread.join()
    pid = os.fork()
    if not pid:
        time.sleep(0.01); os.execv("/bin/sleep", ["sleep", "0.01"])
    os.waitpid(pid, 0); print(pid, flush=True)
    """
    setup = (
        "event = threading.Event()\nfor _ in range(3): threading.Thread(target=event.wait, daemon=True).start()\n"
    )
    setup += "print('up', flush=True); sys.stdin.readline()\n"
    with program(setup + "\n".join(line[4:] for line in body.split("\n"))) as worker:
        worker.go()
        assert worker.line() == "up"
        states = source.follow([worker.pid])
        worker.go()
        child = int(worker.line())
        worker.finish()
    recorder.drain()

    # main and three that waited already
    assert (states["tgid"] == worker.pid).sum() == 4
    events = recorder.table("thread_events")
    events = events[np.argsort(events["mono_ns"])]
    born = events[events["kind"] == ThreadEventKind.BORN]
    assert (born["tgid"] == worker.pid).sum() == 5
    assert (born["tgid"] == child).sum() == 1
    of_child = events[events["tid"] == child]
    assert of_child["kind"].tolist() == [ThreadEventKind.BORN, ThreadEventKind.EXEC, ThreadEventKind.EXIT]
    assert of_child["comm"].tolist()[1] == b"sleep"
    assert (events["kind"] == ThreadEventKind.EXIT).sum() == 4 + 5 + 1
    # and every one of the five naps was seen
    cycles = recorder.table("cycles")
    naps = cycles[np.isin(cycles["tid"], born["tid"]) & (cycles["syscall_nr"] == NANOSLEEP)]
    assert len(naps) == 5 + 1 + 1


def test_a_reused_tid_is_two_threads(source: BpfSource, recorder: Recorder) -> None:
    # GIVEN two threads that get the same tid, one after the other
    body = """
    tids = []
    for _ in range(2):
        while True:
            if tids:
                open("/proc/sys/kernel/ns_last_pid", "w").write(str(tids[0] - 1))
            thread = threading.Thread(target=time.sleep, args=(0.01,)); thread.start(); tid = thread.native_id
            thread.join()
            if not tids or tid == tids[0]:
                break
        tids.append(tid)
    print(*tids, flush=True)
    """
    with program(body) as worker:
        source.follow([worker.pid])
        worker.go()
        first, second = map(int, worker.line().split())
        worker.finish()
    recorder.drain()

    assert first == second
    events = recorder.table("thread_events")
    lives = events[events["tid"] == first]
    assert lives["kind"].tolist().count(ThreadEventKind.BORN) == 2
    naps = voluntary(recorder.cycles(first))
    naps = naps[naps["syscall_nr"] == NANOSLEEP]
    assert len(naps) == 2
    # the second life does not continue the first: it begins at its own birth
    births = np.sort(lives["mono_ns"][lives["kind"] == ThreadEventKind.BORN])
    assert naps["run_mono_ns"][1] >= births[1] > naps["on_mono_ns"][0]


def test_short_waits_are_folded_in_without_breaking_the_sums(open_source: Callable[..., BpfSource]) -> None:
    # GIVEN the same exchange recorded with every interval, and with those below 1 ms folded in
    body = """
    a, b = os.pipe(), os.pipe()
    def echo():
        for _ in range(1009): os.write(b[1], os.read(a[0], 1))
    thread = threading.Thread(target=echo); thread.start()
    for _ in range(1009):
        os.write(a[1], b"x"); os.read(b[0], 1)
    thread.join()
    print("over", flush=True)
    sys.stdin.readline()
    """
    for short_wait_ns in (0, MS):
        source = open_source(short_wait_ns=short_wait_ns)
        recorder = Recorder(source)
        with program(body, cpu=LAST_CPU) as worker:
            source.follow([worker.pid])
            worker.go()
            assert worker.line() == "over"
            eventually(lambda pid=worker.pid, source=source: _sleeping_alone(source, pid), "the exchange is over")
            recorder.drain()
            states = source.threads()
            worker.go()
            worker.finish()
        state = states[states["tid"] == worker.pid][0]
        cycles = recorder.cycles(worker.pid)

        # THEN records and the still open remainder add up to the kernel-side totals, exactly
        runq = (cycles["on_mono_ns"] - cycles["ready_mono_ns"]).sum() + cycles["short_runq_ns"].sum()
        assert runq + state["short_runq_ns"] == state["total_runq_ns"]
        blocked = (cycles["ready_mono_ns"] - cycles["off_mono_ns"]).sum() + cycles["short_blocked_ns"].sum()
        assert blocked + state["short_blocked_ns"] == state["total_blocked_ns"]
        assert len(cycles) + cycles["short_count"].sum() + state["short_count"] == state["total_waits"]
        if short_wait_ns:
            assert len(cycles) < 300
        else:
            assert cycles["short_count"].sum() == 0
        source.close()


def _sleeping_alone(source: BpfSource, pid: int) -> bool:
    states = source.threads()
    mine = states[states["tgid"] == pid]
    return len(mine) == 1 and mine[0]["syscall_nr"] == SYSCALLS.index("read") and mine[0]["off_mono_ns"] > 0


def test_an_interval_that_is_not_over_can_be_asked_for(source: BpfSource) -> None:
    with program("time.sleep(30)") as sleeper:
        sleeper.go()
        source.follow([sleeper.pid])
        eventually(lambda: _sleeps(source, sleeper.pid), "the thread sleeps")


def _sleeps(source: BpfSource, pid: int) -> bool:
    states = source.threads()
    return bool(((states["tid"] == pid) & (states["mode"] == 2)).any())


def test_a_full_ring_is_counted_and_leaves_a_seam(open_source: Callable[..., BpfSource]) -> None:
    # GIVEN a ring of one page, which nobody drains
    source = open_source(cycle_ring_bytes=4096, short_wait_ns=0)
    recorder = Recorder(source)
    with sleeping_on_order(LAST_CPU) as sleeper:
        source.follow([sleeper.pid])
        waited = sum(sleep_23_times(sleeper) for _ in range(5))
        recorder.drain()

    # THEN what was not written is counted: every wait is a record or a loss
    cycles = recorder.cycles(sleeper.pid)
    assert 0 < len(cycles) <= 4096 // 216
    lost = recorder.lost()
    assert lost > 0
    assert len(voluntary(cycles)) <= waited <= len(cycles) + lost

    # AND a thread that goes on afterwards does not join its last record: the seam is there to be seen
    body = "for i in range(60): time.sleep(0.0005)\nsys.stdin.readline()\ntime.sleep(0.001)"
    with program(body, cpu=LAST_CPU) as sleeper:
        source.follow([sleeper.pid])
        sleeper.go()
        eventually(lambda: _reads_again(source, sleeper.pid), "the ring has overflown")
        recorder.drain()
        sleeper.go()
        sleeper.finish()
    recorder.drain()
    cycles = recorder.cycles(sleeper.pid)
    assert seams(cycles).sum() == 1


def _reads_again(source: BpfSource, pid: int) -> bool:
    states = source.threads()
    mine = states[states["tid"] == pid]
    read_again = (mine["total_waits"] > 1) & (mine["syscall_nr"] == SYSCALLS.index("read"))
    return bool((read_again & (mine["mode"] == ThreadMode.BLOCKED)).any())


def test_threads_of_other_processes_are_not_recorded(source: BpfSource, recorder: Recorder) -> None:
    with program("for _ in range(23): time.sleep(0.001)") as stranger:
        stranger.go()
        stranger.finish()
    recorder.drain()

    assert not len(recorder.table("cycles"))
