"""What a thread slept on: the object behind its system call, page-ins, reclaim, kernel locks, stops."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tailspan.attribute import sleeps
from tailspan.attribute.causes import Cause
from tailspan.collect.bpf.source import BpfSource
from tailspan.timeline.evidence import Meta
from tailspan.wire.events import CycleFlags, IncidentKind, ObjectKind
from tests.conftest import eventually
from tests.kernel.conftest import Recorder
from tests.workloads import program

pytestmark = [pytest.mark.kernel, pytest.mark.both_loaders]

MS = 1_000_000
#: The memory controller and what limits a group of its: cgroup v1, else v2.
MEMORY, LIMIT = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
if not (MEMORY / LIMIT).exists():
    MEMORY, LIMIT = Path("/sys/fs/cgroup"), "memory.max"


def _require_memory_controller() -> None:
    controllers = MEMORY / "cgroup.subtree_control"
    if not (MEMORY / LIMIT).exists() and not (controllers.exists() and "memory" in controllers.read_text()):
        pytest.skip("no memory controller")


def _sleeps(recorder: Recorder, tid: int, kind: ObjectKind) -> np.ndarray:
    """Sleeps of at least a millisecond on such an object."""
    cycles = recorder.cycles(tid)
    long = cycles["ready_mono_ns"] - cycles["off_mono_ns"] >= MS
    return cycles[long & (cycles["object_kind"] == kind)]


WAITS = {
    ObjectKind.PIPE: """
        r, w = os.pipe()
        print(os.fstat(r).st_ino, flush=True)
        def feed():
            for _ in range(7): asked.acquire(); time.sleep(0.01); os.write(w, b"x")
        asked = threading.Semaphore(0); threading.Thread(target=feed).start()
        for _ in range(7): asked.release(); os.read(r, 1)
    """,
    ObjectKind.UNIX: """
        import socket
        here, there = socket.socketpair()
        print(os.fstat(here.fileno()).st_ino, flush=True)
        def feed():
            for _ in range(7): asked.acquire(); time.sleep(0.01); there.send(b"x")
        asked = threading.Semaphore(0); threading.Thread(target=feed).start()
        for _ in range(7): asked.release(); here.recv(1)
    """,
    ObjectKind.TCP: """
        import socket, select
        listener = socket.create_server(("127.0.0.1", 0))
        here = socket.create_connection(listener.getsockname()); there, _ = listener.accept()
        print(os.fstat(here.fileno()).st_ino, flush=True)
        def feed():
            for _ in range(7): asked.acquire(); time.sleep(0.01); there.send(b"x")
        asked = threading.Semaphore(0); threading.Thread(target=feed).start()
        one = select.poll(); one.register(here, select.POLLIN)
        for i in range(7):
            asked.release()
            if i % 2: one.poll()  # a single descriptor: as good as receiving from it
            here.recv(1)
    """,
}


@pytest.mark.parametrize("kind", WAITS)
def test_seven_waits_on_one_descriptor_name_its_inode(
    source: BpfSource, recorder: Recorder, kind: ObjectKind
) -> None:
    with program(WAITS[kind]) as waiter:
        source.follow([waiter.pid])
        waiter.go()
        inode = int(waiter.line())
        waiter.finish()
    recorder.drain()

    waits = _sleeps(recorder, waiter.pid, kind)
    assert len(waits) == 7
    assert set(waits["object"].tolist()) == {inode}


@pytest.mark.parametrize("others", [0, 1, 5])
def test_a_poll_whose_first_descriptor_is_a_driver_s_names_that_device(
    source: BpfSource, recorder: Recorder, others: int
) -> None:
    """A pseudo-terminal stands for the driver's device: any character device is read the same way."""
    body = """
        import select, pty
        leader, line = pty.openpty()
        print(os.major(os.fstat(line).st_rdev), flush=True)
        polled = select.poll()
        for file in [line, *(os.pipe()[0] for _ in range(int(sys.argv[1])))]: polled.register(file, select.POLLIN)
        for _ in range(7): polled.poll(10)
    """
    with program(body, others) as waiter:
        source.follow([waiter.pid])
        waiter.go()
        major = int(waiter.line())
        waiter.finish()
    recorder.drain()

    waits = _sleeps(recorder, waiter.pid, ObjectKind.CHAR_DEVICE)
    assert len(waits) == 7
    assert set((waits["object_dev"] >> 20).tolist()) == {major}
    assert set(sleeps.causes(waits, Meta(gpu_majors=[major])).tolist()) == {Cause.GPU}
    assert set(sleeps.causes(waits, Meta()).tolist()) == {Cause.POLL}


def test_a_lock_is_a_futex_word_and_two_locks_are_two(source: BpfSource, recorder: Recorder) -> None:
    body = """
        def hold(lock, held):
            with lock: held.set(); time.sleep(0.1)
        for _ in range(2):
            lock, held = threading.Lock(), threading.Event()
            threading.Thread(target=hold, args=(lock, held)).start(); held.wait()
            with lock: print(threading.get_native_id(), flush=True)
            keep = lock
    """
    with program(body) as waiter:
        source.follow([waiter.pid])
        waiter.go()
        waiter.finish()
    recorder.drain()

    waits = _sleeps(recorder, waiter.pid, ObjectKind.FUTEX)
    waits = waits[waits["ready_mono_ns"] - waits["off_mono_ns"] > 50 * MS]
    assert len(waits) == 2
    assert (waits["object"] != 0).all()


def test_pages_of_a_dropped_mapping_are_page_ins(open_source: Callable[..., BpfSource], tmp_path: Path) -> None:
    source = open_source(short_wait_ns=0)  # a disk that is memory elsewhere answers in microseconds
    recorder = Recorder(source)
    table = tmp_path / "table"
    table.write_bytes(os.urandom(1 << 20))
    body = """
        import mmap, resource
        file = os.open(sys.argv[1], os.O_RDONLY)
        os.fsync(file)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        for _ in range(11):
            pages = mmap.mmap(file, 0, prot=mmap.PROT_READ)
            pages.madvise(mmap.MADV_RANDOM); pages.madvise(mmap.MADV_DONTNEED)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            pages[4096 * 17]
            pages.close()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before
        time.sleep(0.001)  # the record of a sleep counts the faults before it
        print(faults)
    """
    # A page that is there before its reader gets to sleep is not slept for: for a while a disk may be as fast as
    # that. The kernel may keep a page that it was told to drop. And the program's own imports may fault.
    for _ in range(50):
        with program(body, table) as reader:
            source.follow([reader.pid])
            reader.go()
            faults = int(reader.finish()[0])
        recorder.drain()
        cycles = recorder.cycles(reader.pid)
        slept = cycles[cycles["ready_mono_ns"] > cycles["off_mono_ns"]]
        page_ins = slept[sleeps.causes(slept, Meta()) == Cause.PAGE_IN]
        assert len(page_ins) <= faults + 2
        assert faults <= int(cycles["major_faults"].sum()) <= faults + 2
        if len(page_ins) >= 7:
            break
    else:
        pytest.fail("none of the readers slept for its pages")
    blocks = recorder.table("blocks")
    reads = blocks[(blocks["tid"] == reader.pid) & (blocks["op"] == 0)]
    for page_in in page_ins:
        inside = (reads["queued_mono_ns"] >= page_in["run_mono_ns"]) & (
            reads["completed_mono_ns"] <= page_in["ready_mono_ns"]
        )
        assert inside.any(), "each page-in waited for a block request of its own"


def test_reclaim_within_the_own_cgroup_is_time_of_the_turn(source: BpfSource, recorder: Recorder) -> None:
    _require_memory_controller()
    group = MEMORY / f"tailspan-test-{os.getpid()}"
    group.mkdir()
    body = """
        held = []
        for _ in range(3):
            with open(sys.argv[1], "rb") as file:
                while file.read(1 << 20): pass
    """
    try:
        (group / LIMIT).write_text(str(24 << 20))
        file = Path("/var/tmp") / group.name
        file.write_bytes(os.urandom(64 << 20))
        with file.open("rb") as written:  # or its pages would stay charged to who wrote them
            os.fsync(written.fileno())
            os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            with program(body, file) as reader:
                (group / "cgroup.procs").write_text(str(reader.pid))
                source.follow([reader.pid])
                reader.go()
                reader.finish()
        finally:
            file.unlink()
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()
    recorder.drain()

    cycles = recorder.cycles(reader.pid)
    reclaimed = cycles[cycles["reclaim_ns"] > 0]
    assert len(reclaimed) > 0
    assert (reclaimed["flags"] & CycleFlags.MEMCG != 0).all()
    assert (reclaimed["reclaim_ns"] <= reclaimed["off_mono_ns"] - reclaimed["run_mono_ns"]).all()


def test_a_stopped_process_and_who_stopped_it(source: BpfSource, recorder: Recorder) -> None:
    with program(
        "time.sleep(0.15)\nwhile time.monotonic_ns() < int(sys.argv[1]): pass", time.monotonic_ns() + 400 * MS
    ) as victim:
        source.follow([victim.pid])
        victim.go()
        for _ in range(3):
            subprocess.run(["kill", "-STOP", str(victim.pid)], check=True)
            eventually(lambda: _state(victim.pid) == "T", "stopped")
            os.kill(victim.pid, signal.SIGCONT)
            eventually(lambda: _state(victim.pid) != "T", "goes on")
        victim.finish()
    recorder.drain()

    cycles = recorder.cycles(victim.pid)
    slept = cycles[cycles["ready_mono_ns"] > cycles["off_mono_ns"]]
    stops = slept[sleeps.causes(slept, Meta()) == Cause.STOPPED]
    assert len(stops) == 3
    assert set(stops["waker_tgid"].tolist()) == {os.getpid()}
    incidents = np.sort(recorder.table("incidents"), order="mono_ns")
    sent = incidents[(incidents["kind"] == IncidentKind.SIGNAL) & (incidents["target_tgid"] == victim.pid)]
    assert sent["signal"].tolist() == [signal.SIGSTOP, signal.SIGCONT] * 3
    assert sent["actor_comm"][0::2].tolist() == [b"kill"] * 3


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_an_out_of_memory_kill_names_victim_and_who_wanted_memory(source: BpfSource, recorder: Recorder) -> None:
    _require_memory_controller()
    group = MEMORY / f"tailspan-oom-{os.getpid()}"
    group.mkdir()
    try:
        (group / LIMIT).write_text(str(16 << 20))
        command = ["sh", "-c", f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -c 'bytearray(1 << 28)'"]
        victim = subprocess.Popen(command)
        source.follow([victim.pid])
        assert victim.wait(timeout=60) == -signal.SIGKILL
    finally:
        group.rmdir()
    recorder.drain()

    incidents = recorder.table("incidents")
    kills = incidents[incidents["kind"] == IncidentKind.OOM_KILL]
    mine = kills[kills["target_tgid"] == victim.pid]
    assert len(mine) == 1
    assert (mine["target_comm"][0], mine["actor_tgid"][0]) == (Path(sys.executable).name.encode()[:15], victim.pid)


def test_a_wait_for_the_address_spaces_lock_is_a_kernel_lock(source: BpfSource, recorder: Recorder) -> None:
    body = """
        import mmap
        big = 1 << 28
        def populate():  # holds mmap_lock for reading while it makes 65,536 pages
            for _ in range(5): mmap.mmap(-1, big, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x8000).close()
        thread = threading.Thread(target=populate); thread.start()
        while thread.is_alive():
            mmap.mmap(-1, 4096).close()  # wants it for writing
    """
    with program(body) as mapper:
        source.follow([mapper.pid])
        mapper.go()
        mapper.finish()
    recorder.drain()

    cycles = recorder.table("cycles")
    slept = cycles[(cycles["tgid"] == mapper.pid) & (cycles["ready_mono_ns"] > cycles["off_mono_ns"])]
    locked = slept[sleeps.causes(slept, Meta()) == Cause.KERNEL_LOCK]
    assert len(locked) > 0
    assert np.isin(locked["waker_tgid"], [mapper.pid]).all(), "woken by who had it"
