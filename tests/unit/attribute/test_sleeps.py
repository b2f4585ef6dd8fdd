"""Why a thread slept, from what the kernel said of its sleep; who is named for it."""

import pytest

from tailspan.attribute.causes import Cause
from tailspan.attribute.judge import judge
from tailspan.attribute.verdict import Culprit, CulpritKind, Verdict
from tailspan.wire.events import CycleFlags, IncidentKind, ObjectKind, SocketFlags, SocketOp
from tests.timelines import MS, Timeline

TCP, INODE = ObjectKind.TCP, 4711


def _verdict(timeline: Timeline) -> Verdict:
    return judge(timeline.evidence())[0]


def _ms(verdict: Verdict) -> dict[Cause, float]:
    return {part.cause: part.ns / MS for part in verdict.ledger}


def _culprit(verdict: Verdict, cause: Cause) -> Culprit:
    return next(part.culprits[0] for part in verdict.ledger if part.cause is cause)


@pytest.mark.parametrize(
    ("syscall", "fields", "cause"),
    [
        ("read", {"object_kind": ObjectKind.FILE}, Cause.IO),
        ("read", {"object_kind": ObjectKind.PIPE}, Cause.PIPE),
        ("read", {"object_kind": ObjectKind.UNIX}, Cause.UNIX),
        ("write", {"object_kind": ObjectKind.TCP}, Cause.SOCKET),
        ("poll", {"object_kind": ObjectKind.TCP}, Cause.SOCKET),
        ("poll", {"object_kind": ObjectKind.NONE}, Cause.POLL),
        ("epoll_wait", {"object_kind": ObjectKind.OTHER}, Cause.POLL),
        ("recvfrom", {"object_kind": ObjectKind.SOCKET}, Cause.SOCKET),
        ("wait4", {}, Cause.PROCESS),
        ("execve", {}, Cause.PROCESS),
        ("clock_nanosleep", {}, Cause.SLEEP),
        ("ptrace", {}, Cause.OTHER),
        ("ptrace", {"flags": CycleFlags.KERNEL_LOCK}, Cause.KERNEL_LOCK),
        ("mmap", {}, Cause.KERNEL_LOCK),
        ("mmap", {"flags": CycleFlags.IOWAIT}, Cause.IO),
        ("mmap", {"flags": CycleFlags.IOWAIT | CycleFlags.MEMSTALL}, Cause.RECLAIM),
        ("futex", {"flags": CycleFlags.IOWAIT}, Cause.IO),
        ("futex", {"state": 0x4}, Cause.STOPPED),  # __TASK_STOPPED
        ("futex", {"state": 0x8}, Cause.STOPPED),  # __TASK_TRACED
        ("futex", {"state": 0x8000}, Cause.STOPPED),  # TASK_FROZEN
    ],
)
def test_the_reason_of_a_sleep(syscall: str, fields: dict[str, int], cause: Cause) -> None:
    timeline = Timeline()
    timeline.request(0, 10, tid=1)
    timeline.cycle(1, 2, 9, 9, **{"state": 1, "syscall_nr": _number(syscall), "object": INODE, **fields})

    assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 3, cause: 7}


def _number(syscall: str) -> int:
    from tailspan.wire.syscalls import SYSCALLS

    return SYSCALLS.index(syscall)


@pytest.mark.parametrize(("more", "cause"), [(0, Cause.PAGE_IN), (CycleFlags.MEMSTALL, Cause.RECLAIM)])
def test_io_wait_in_no_system_call_is_a_page_in_unless_memory_was_short(more: int, cause: Cause) -> None:
    timeline = Timeline()
    timeline.request(0, 10, tid=1)
    timeline.cycle(1, 2, 9, 9, state=2, syscall_nr=-1, flags=CycleFlags.IOWAIT | more)

    assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 3, cause: 7}


def test_a_futex_in_the_interpreters_data_is_its_lock_and_another_is_not() -> None:
    timeline = Timeline()
    timeline.meta.runtime_locks = {"100": [[0x5000, 0x6000]]}
    timeline.request(0, 20, tid=1)
    timeline.blocks(1, 2, 15, 15, waker=2, object=0x5008, object_kind=ObjectKind.FUTEX)
    timeline.blocks(1, 16, 19, 19, waker=2, object=0x6000, object_kind=ObjectKind.FUTEX)
    timeline.runs(2)

    verdict = _verdict(timeline)

    assert _ms(verdict) == {Cause.ON_CPU: 4, Cause.GIL: 13, Cause.FUTEX: 3}
    assert _culprit(verdict, Cause.GIL).label == "t2[2]"
    assert "interpreter lock, which t2[2] had" in verdict.sentence


def test_slices_of_a_wait_for_the_interpreters_lock_lead_to_who_let_it_go() -> None:
    timeline = Timeline()
    timeline.meta.runtime_locks = {"100": [[0x5000, 0x6000]]}
    timeline.request(0, 20, tid=1)
    word = {"object_kind": ObjectKind.FUTEX}
    timeline.blocks(1, 1, 6, 6, object=0x5008, **word)  # timed out; the condition's other word next
    timeline.blocks(1, 6, 11, 11, object=0x5010, **word)
    timeline.blocks(1, 11, 15, 15, waker=2, object=0x5008, **word)
    timeline.runs(2)

    assert _culprit(_verdict(timeline), Cause.GIL) == Culprit(
        CulpritKind.WAKER, 14 * MS, "t2[2]", tid=2, comm="t2"
    )


def test_a_wait_for_the_interpreters_lock_is_each_holders_for_as_long_as_it_ran() -> None:
    """Three hands, and nobody but the last is seen to let it go."""
    timeline = Timeline()
    timeline.meta.runtime_locks = {"100": [[0x5000, 0x6000]]}
    timeline.request(0, 100, tid=1)
    word = {"object": 0x5008, "object_kind": ObjectKind.FUTEX}
    timeline.blocks(1, 10, 90, 90, waker=4, **word)
    timeline.blocks(2, 5, 10, 10, **word)
    timeline.blocks(2, 60, 95, 95, waker=4, **word)
    timeline.blocks(3, 1, 60, 60, waker=2, **word)
    timeline.blocks(3, 80, 96, 96, waker=4, **word)
    timeline.blocks(4, 1, 88, 88, waker=3, **word)

    verdict = _verdict(timeline)

    gil = next(part for part in verdict.ledger if part.cause is Cause.GIL)
    assert [(c.label, c.ns / MS) for c in gil.culprits] == [("t2[2]", 50), ("t3[3]", 20), ("t4[4]", 10)]


def test_who_has_the_interpreters_lock_does_not_sleep_in_a_system_call() -> None:
    """What the holder waited for before it had the lock is not why others wait for the lock."""
    timeline = Timeline()
    timeline.meta.runtime_locks = {"100": [[0x5000, 0x6000]]}
    timeline.request(0, 20, tid=1)
    timeline.blocks(1, 2, 12, 12, waker=2, object=0x5008, object_kind=ObjectKind.FUTEX)
    timeline.cycle(2, 3, 8, 8, state=2, syscall_nr=_number("fsync"), flags=CycleFlags.IOWAIT)

    assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 10, Cause.GIL: 10}


def test_a_slow_answer_is_the_peers_and_what_was_sent_again_is_the_networks() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 10, 80, 81, syscall="recvfrom", object=INODE, object_kind=TCP)
    timeline.socket(INODE, 10, 81, tid=1, retransmit_at=30, arrived_at=80, retransmits=2)

    verdict = _verdict(timeline)

    assert _ms(verdict) == {Cause.ON_CPU: 29, Cause.NETWORK: 20, Cause.UPSTREAM: 50, Cause.RUN_QUEUE: 1}
    assert _culprit(verdict, Cause.UPSTREAM) == Culprit(
        CulpritKind.PEER, 50 * MS, "10.0.0.7:8080", owner="10.0.0.7:8080"
    )
    assert "waited for the answer of 10.0.0.7:8080" in verdict.sentence
    assert any("2 retransmits" in fact and "called 10.0.0.7:8080" in fact for fact in verdict.facts)


@pytest.mark.parametrize(
    ("op", "fields", "cause"),
    [
        (SocketOp.RECEIVE, {"acked_at": 60}, Cause.NETWORK),
        (SocketOp.RECEIVE, {"out_of_order": 1}, Cause.NETWORK),
        (SocketOp.RECEIVE, {"flags": SocketFlags.BULK}, Cause.NETWORK),
        (SocketOp.RECEIVE, {}, Cause.UPSTREAM),
        (SocketOp.SEND, {}, Cause.NETWORK),
        (SocketOp.SEND, {"flags": SocketFlags.ZERO_WINDOW}, Cause.UPSTREAM),
        (SocketOp.CONNECT, {}, Cause.NETWORK),
    ],
)
def test_whose_a_wait_on_a_connection_was(op: SocketOp, fields: dict[str, int], cause: Cause) -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 10, 60, 60, syscall="recvfrom", object=INODE, object_kind=TCP)
    timeline.socket(INODE, 10, 60, tid=1, op=op, **fields)

    assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 50, cause: 50}


def test_a_suspended_request_waits_for_the_answer_to_what_its_own_step_has_sent() -> None:
    timeline = Timeline()
    loop = 1
    first = timeline.request(0, 100, tid=loop, asynchronous=1)
    second = timeline.request(0, 100, tid=loop, asynchronous=1)
    timeline.step(first, 0, 10, loop)
    timeline.step(second, 10, 12, loop)
    timeline.step(first, 81, 100, loop)
    timeline.blocks(loop, 12, 80, 80, syscall="epoll_wait")
    timeline.socket(INODE, 9, 81, tid=loop, arrived_at=80)

    asked, did_not = judge(timeline.evidence())

    assert _ms(asked) == {Cause.ON_CPU: 29, Cause.UPSTREAM: 68, Cause.QUEUED: 2, Cause.AWAIT: 1}
    assert _culprit(asked, Cause.UPSTREAM).label == "10.0.0.7:8080"
    assert Cause.UPSTREAM not in _ms(did_not)


def test_another_connections_record_says_nothing() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 10, 60, 60, syscall="recvfrom", object=INODE, object_kind=TCP)
    timeline.socket(INODE + 1, 10, 60, tid=1)

    assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 50, Cause.SOCKET: 50}


@pytest.mark.parametrize(("theirs", "culprit"), [(30, "dd[9]"), (3, "7")])
def test_a_disk_is_blamed_unless_another_process_kept_it_busier(theirs: float, culprit: str) -> None:
    timeline = Timeline()
    timeline.meta.devices = {"7": "7"}
    timeline.request(0, 100, tid=1)
    timeline.cycle(1, 10, 60, 60, state=2, syscall_nr=_number("pread64"), flags=CycleFlags.IOWAIT)
    timeline.block_request(50, 60, tid=1, tgid=100, comm="t1")
    timeline.block_request(20, 20 + theirs, tid=9, tgid=9, comm="dd")
    timeline.block_request(20, 60, tid=8, tgid=8, comm="kworker/1", kthread=True)
    timeline.block_request(0, 99, tid=7, tgid=7, comm="elsewhere", dev=3)

    verdict = _verdict(timeline)

    assert _culprit(verdict, Cause.IO).label == culprit
    assert _ms(verdict)[Cause.IO] == 50


def test_a_stop_is_the_senders_even_of_one_sent_before_the_request() -> None:
    timeline = Timeline()
    timeline.request(20, 70, tid=1)
    timeline.cycle(1, 15, 60, 60, state=4, syscall_nr=_number("futex"))
    timeline.incident(14, IncidentKind.SIGNAL, actor=55, target=100, signal=19)
    timeline.incident(14.5, IncidentKind.SIGNAL, actor=56, target=101, signal=19)  # to somebody else
    timeline.incident(60, IncidentKind.SIGNAL, actor=57, target=100, signal=18)

    verdict = _verdict(timeline)

    assert _culprit(verdict, Cause.STOPPED) == Culprit(CulpritKind.PROCESS, 40 * MS, "p55[55]", pid=55, comm="p55")
    assert "was stopped by p55 (pid 55)" in verdict.sentence
    assert verdict.facts == ("at +40.0 ms p57[57] sent SIGCONT to p100[100]",)


def test_an_out_of_memory_kill_is_told() -> None:
    timeline = Timeline()
    timeline.request(20, 100, tid=1)
    timeline.runs(1)
    timeline.incident(50, IncidentKind.OOM_KILL, actor=55, target=66, signal=9)

    assert _verdict(timeline).facts == (
        "at +30.0 ms the kernel killed p66[66]: out of memory, when p55[55] wanted some",
    )


def test_who_ends_a_wait_by_dying_of_memory_is_said_to() -> None:
    timeline = Timeline()
    timeline.request(20, 100, tid=1)
    timeline.blocks(
        1, 25, 95, 95, syscall="read", waker=66, waker_tgid=66, object=INODE, object_kind=ObjectKind.UNIX
    )
    timeline.incident(90, IncidentKind.OOM_KILL, actor=66, target=66, signal=9)

    verdict = _verdict(timeline)

    assert "waited for t66 (pid 66, killed: out of memory)" in verdict.sentence


def test_reclaim_on_the_cpu_is_a_share_of_the_turn_and_of_its_own_cgroups_limit() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 100, 101, 101, reclaim_ns=40 * MS, flags=CycleFlags.MEMCG)

    verdict = _verdict(timeline)

    assert _ms(verdict) == {Cause.ON_CPU: 60, Cause.RECLAIM: 40}
    assert _culprit(verdict, Cause.RECLAIM).kind is CulpritKind.CGROUP


def test_collecting_garbage_is_no_work_and_holds_up_who_waits_for_the_lock() -> None:
    timeline = Timeline()
    timeline.meta.runtime_locks = {"100": [[0x5000, 0x6000]]}
    timeline.request(0, 100, tid=1)
    timeline.request(0, 100, tid=2)
    timeline.blocks(2, 10, 60, 60, waker=1, object=0x5008, object_kind=ObjectKind.FUTEX)
    timeline.runs(1)
    timeline.pause(20, 50, tid=1)

    collecting, waiting = judge(timeline.evidence())

    assert _ms(collecting) == {Cause.ON_CPU: 70, Cause.GC: 30}
    assert _ms(waiting) == {Cause.ON_CPU: 50, Cause.GC: 30, Cause.GIL: 20}
    assert _culprit(waiting, Cause.GC).label == "t1[1]"


def test_stolen_time_is_spread_over_the_busy_time_of_its_cpu() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 100, 101, 101, run_cpu=1)
    timeline.sample(0, 200, cpu=1, busy=75, steal=25)
    timeline.sample(0, 200, cpu=0, busy=0, steal=200)

    verdict = _verdict(timeline)

    assert _ms(verdict) == {Cause.ON_CPU: 75, Cause.STEAL: 25}
    assert _culprit(verdict, Cause.STEAL).label == "the hypervisor"


def test_ksoftirqd_is_softirq_time() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.waits(1, 10, 60)
    timeline.slice(0, 10, 40, 12, "ksoftirqd/0", kthread=True)
    timeline.slice(0, 40, 60, 9, "hog")

    assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 50, Cause.IRQ: 30, Cause.RUN_QUEUE: 20}


@pytest.mark.parametrize(("flags", "cause"), [(0, Cause.UNREAD), (SocketFlags.UNACCEPTED, Cause.ACCEPT)])
def test_a_request_begins_when_its_first_byte_arrives(flags: int, cause: Cause) -> None:
    timeline = Timeline()
    timeline.request(50, 100, tid=1, arrived_mono_ns=10 * MS)
    timeline.blocks(1, 0, 10, 10, syscall="recvfrom")
    timeline.socket(
        INODE, 0, 40, tid=1, arrived_at=10, flags=SocketFlags.ACCEPTED | SocketFlags.MESSAGE | flags, messages=3
    )

    verdict = _verdict(timeline)

    assert _ms(verdict) == {cause: 30, Cause.ON_CPU: 60}
    assert (verdict.request.wall_ns, verdict.request.before_ns) == (90 * MS, 40 * MS)
    assert (verdict.waterfall[0].start_ns, verdict.waterfall[-1].end_ns) == (0, 90 * MS)
    assert _culprit(verdict, cause).kind is CulpritKind.OWN
    assert "came from 10.0.0.7:8080, message 3 of the connection" in verdict.facts


def test_bytes_lie_unread_while_their_reader_waits_for_a_cpu() -> None:
    timeline = Timeline()
    timeline.request(50, 100, tid=1, arrived_mono_ns=10 * MS)
    timeline.blocks(1, 0, 10, 45, syscall="recvfrom")
    timeline.slice(0, 10, 45, 9, "hog")
    timeline.socket(INODE, 0, 46, tid=1, arrived_at=10, flags=SocketFlags.ACCEPTED | SocketFlags.MESSAGE)

    verdict = _verdict(timeline)

    assert _ms(verdict) == {Cause.RUN_QUEUE: 35, Cause.UNREAD: 1, Cause.ON_CPU: 54}
    assert _culprit(verdict, Cause.RUN_QUEUE).label == "hog[9]"
