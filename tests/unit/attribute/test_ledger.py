"""What a request's time is booked to, on timelines whose answer is plain."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailspan.attribute.causes import Cause
from tailspan.attribute.judge import judge
from tailspan.attribute.ledger import account, ledgers
from tailspan.timeline.arrivals import began
from tailspan.timeline.evidence import Evidence
from tailspan.wire.events import CycleFlags, ObjectKind, SocketFlags
from tailspan.wire.spans import SpanKind
from tests.timelines import MS, Timeline

WORKER, EXECUTOR, POOL = 1, 2, 3


def ledger(evidence: Evidence, request: int = 0) -> dict[Cause, float]:
    """Milliseconds by cause, zero ones left out; asserts conservation."""
    row = ledgers(account(evidence), len(evidence.requests))[request]
    wall = evidence.requests[request]["end_mono_ns"] - evidence.requests[request]["start_mono_ns"]
    assert row.sum() == wall
    return {Cause(i): float(ns) / MS for i, ns in enumerate(row) if ns}


def test_a_thread_that_never_left_the_cpu_worked() -> None:
    t = Timeline()
    t.request(10, 30, WORKER)
    t.runs(WORKER)

    assert ledger(t.evidence()) == {Cause.ON_CPU: 20}


def test_a_thread_that_was_not_followed_is_unknown_not_zero() -> None:
    t = Timeline()
    t.request(10, 30, WORKER)

    assert ledger(t.evidence()) == {Cause.UNKNOWN: 20}


def test_preemption_is_run_queue_and_a_sleep_is_not() -> None:
    t = Timeline()
    t.request(10, 60, WORKER)
    t.waits(WORKER, 12, 20)
    t.blocks(WORKER, 30, 45, 46, syscall="recvfrom")

    assert ledger(t.evidence()) == {Cause.ON_CPU: 26, Cause.RUN_QUEUE: 9, Cause.SOCKET: 15}


def test_waits_are_cut_to_the_request() -> None:
    t = Timeline()
    t.request(10, 30, WORKER)
    t.waits(WORKER, 5, 12)
    t.blocks(WORKER, 28, 40, 41, syscall="futex")

    assert ledger(t.evidence()) == {Cause.RUN_QUEUE: 2, Cause.ON_CPU: 16, Cause.FUTEX: 2}


def test_a_lost_record_is_unknown_for_exactly_its_stretch() -> None:
    # GIVEN a thread whose turns are known to 15 ms and again from 25 ms
    t = Timeline()
    t.request(10, 30, WORKER)
    t.waits(WORKER, 11, 15)
    t.lose_cycle(WORKER, on=25)
    t.waits(WORKER, 28, 35)

    assert ledger(t.evidence()) == {
        Cause.ON_CPU: 1 + 3,
        Cause.RUN_QUEUE: 4 + 2,
        Cause.UNKNOWN: 10,
    }


def test_interrupts_of_a_turn_that_is_not_over_are_shared_out_too() -> None:
    t = Timeline()
    t.request(10, 30, WORKER)
    t.runs(WORKER)
    evidence = t.evidence()
    evidence.open_threads["taken_mono_ns"] = 40 * MS  # of its 40 ms so far 4 went to interrupts
    evidence.open_threads["irq_ns"] = 4 * MS

    assert ledger(evidence) == {Cause.ON_CPU: 18, Cause.IRQ: 2}


def test_a_thread_of_which_nothing_more_is_heard_is_unknown_not_running() -> None:
    # GIVEN a thread whose last record ends at 15 ms; the ring was full from then on
    t = Timeline()
    t.request(10, 30, WORKER)
    t.waits(WORKER, 11, 15)
    t.falls_silent(WORKER)

    assert ledger(t.evidence()) == {Cause.ON_CPU: 1, Cause.RUN_QUEUE: 4, Cause.UNKNOWN: 15}


def test_own_quota_comes_before_any_neighbour() -> None:
    t = Timeline()
    t.request(0, 20, WORKER)
    t.waits(WORKER, 5, 15, cpu=0, flags=CycleFlags.THROTTLED, throttled_ns=7 * MS)
    t.slice(0, 5, 15, tgid=9001, comm="neighbour")

    t.waits(WORKER, 16, 18, cpu=0, flags=CycleFlags.THROTTLED)
    # Once there is quota again, the neighbour is who has the CPU.
    assert ledger(t.evidence()) == {Cause.ON_CPU: 8, Cause.THROTTLED: 9, Cause.RUN_QUEUE: 3}


def test_interrupts_and_short_waits_come_out_of_the_turn_they_rode_on() -> None:
    # GIVEN a turn of 20 ms on the CPU, half of it inside the request, with 2 ms of interrupts and 1 + 1 of waits
    t = Timeline()
    t.request(10, 30, WORKER)
    shorts = {"irq_ns": 2 * MS, "short_blocked_ns": MS, "short_runq_ns": MS}
    t.cycle(WORKER, 20, 20, 20, flags=CycleFlags.PREEMPTED, **shorts)

    assert ledger(t.evidence()) == {
        Cause.ON_CPU: 18,
        Cause.IRQ: 1,
        Cause.OTHER: 0.5,
        Cause.RUN_QUEUE: 0.5,
    }


def test_an_interval_that_is_still_open_counts() -> None:
    t = Timeline()
    t.request(10, 30, WORKER)
    t.span(0, "run", 15, 30, EXECUTOR)
    t.runs(WORKER)
    t.open(EXECUTOR, off=20, syscall="epoll_wait")

    assert ledger(t.evidence()) == {Cause.ON_CPU: 10, Cause.POLL: 10}


def test_the_innermost_span_decides_which_thread_counts() -> None:
    # GIVEN a handler that sleeps while the executor runs its batch and is preempted
    t = Timeline()
    t.request(0, 50, WORKER)
    t.span(0, "run", 10, 40, EXECUTOR)
    t.blocks(WORKER, 5, 41, 42)
    t.waits(EXECUTOR, 15, 30)

    assert ledger(t.evidence()) == {
        Cause.ON_CPU: 5 + 15 + 8,
        Cause.FUTEX: 5 + 1,
        Cause.RUN_QUEUE: 15 + 1,
    }


def test_queued_time_inherits_what_held_up_the_batch_before() -> None:
    # GIVEN a request queued from 10 to 60 behind a batch whose thread waited for a CPU from 20 to 50
    t = Timeline()
    t.request(0, 100, WORKER)
    t.span(0, "queue", 10, 60, EXECUTOR, SpanKind.QUEUED)
    t.span(0, "run", 60, 100, EXECUTOR)
    t.batch(7, 5, 58, EXECUTOR)
    t.runs(WORKER)
    t.waits(EXECUTOR, 20, 50)

    assert ledger(t.evidence()) == {
        Cause.ON_CPU: 10 + 40,
        Cause.QUEUED: 10 + 8,
        Cause.RUN_QUEUE: 30,
        Cause.BATCHING: 2,
    }


def test_waiting_for_the_batch_to_fill_is_batching_even_while_its_thread_sleeps() -> None:
    t = Timeline()
    t.request(0, 20, WORKER)
    t.span(0, "queue", 5, 15, EXECUTOR, SpanKind.QUEUED)
    t.runs(WORKER)
    t.blocks(EXECUTOR, 2, 14, 15)

    # 14..15: the executor was awake and had no CPU
    assert ledger(t.evidence()) == {Cause.ON_CPU: 10, Cause.BATCHING: 9, Cause.RUN_QUEUE: 1}


def test_a_suspended_request_waits_for_the_request_that_blocks_the_loop() -> None:
    # GIVEN one loop thread; request 0 is suspended from 10 to 60 while the loop works for request 1 from 20 to 50
    t = Timeline()
    t.request(0, 70, WORKER, asynchronous=1)
    t.request(0, 70, WORKER, asynchronous=1)
    t.step(0, 0, 10, WORKER)
    t.step(1, 20, 50, WORKER)
    t.step(0, 60, 70, WORKER)
    t.waits(WORKER, 30, 35)

    assert ledger(t.evidence(), 0) == {
        Cause.ON_CPU: 20,
        Cause.QUEUED: 25,
        Cause.RUN_QUEUE: 5,
        Cause.AWAIT: 20,
    }
    assert ledger(t.evidence(), 1)[Cause.ON_CPU] == 25


def test_a_wait_for_a_pool_thread_becomes_what_held_that_thread_up() -> None:
    # GIVEN an executor asleep from 10 to 40, woken by a pool thread that had no CPU from 12 to 35
    t = Timeline()
    t.request(0, 50, EXECUTOR)
    t.blocks(EXECUTOR, 10, 40, 40.5, waker=POOL)
    t.waits(POOL, 12, 35)

    assert ledger(t.evidence()) == {
        Cause.ON_CPU: 10 + 9.5,
        Cause.FUTEX: 2 + 5,
        Cause.RUN_QUEUE: 23 + 0.5,
    }


def test_a_chain_of_wakers_is_followed_to_its_end() -> None:
    t = Timeline()
    t.request(0, 50, 1)
    t.blocks(1, 10, 40, 40, waker=2)
    t.blocks(2, 5, 38, 38, waker=3)
    t.blocks(3, 0, 30, 30, syscall="fsync")

    # 10..30 thread 3 in fsync; 30..38 thread 3 worked; 38..40 thread 2 worked
    assert ledger(t.evidence()) == {Cause.ON_CPU: 20, Cause.IO: 20, Cause.FUTEX: 10}


def test_a_wait_in_slices_is_one_wait_for_whoever_ended_the_last() -> None:
    # GIVEN a handler that waits for a lock 5 ms at a time, and a holder that had no CPU from 12 to 26
    t = Timeline()
    t.request(0, 40, WORKER)
    t.blocks(WORKER, 10, 15, 15)
    t.blocks(WORKER, 15.01, 20.01, 22)  # had to queue before it could look again
    t.blocks(WORKER, 22.02, 27, 27, waker=EXECUTOR)
    t.waits(EXECUTOR, 12, 26)

    # THEN the lock's share is what its holder worked meanwhile
    found = ledger(t.evidence())
    assert found[Cause.RUN_QUEUE] == pytest.approx((15 - 12) + (22 - 15.01) + (26 - 22.02))
    assert found[Cause.FUTEX] == pytest.approx(2 + 1)


def test_a_wait_that_timed_out_and_was_followed_by_work_is_its_own() -> None:
    t = Timeline()
    t.request(0, 40, WORKER)
    t.blocks(WORKER, 10, 15, 15)
    t.blocks(WORKER, 20, 30, 30, waker=EXECUTOR)
    t.waits(EXECUTOR, 5, 29)

    assert ledger(t.evidence()) == {Cause.ON_CPU: 25, Cause.FUTEX: 5 + 1, Cause.RUN_QUEUE: 9}


def test_threads_that_woke_each_other_do_not_loop() -> None:
    t = Timeline()
    t.request(0, 50, 1)
    t.blocks(2, 0, 10, 10, waker=1)
    t.blocks(1, 20, 40, 40, waker=2)
    t.blocks(2, 15, 30, 30, waker=1)

    assert ledger(t.evidence())[Cause.FUTEX] == 20


def test_a_pool_thread_without_a_cpu_holds_up_the_thread_that_woke_it_even_if_that_spins() -> None:
    # GIVEN an executor on its CPU all along, and a pool thread it woke at 10 that got no CPU from 10 to 35
    t = Timeline()
    t.request(0, 50, EXECUTOR)
    t.runs(EXECUTOR)
    t.blocks(POOL, 5, 10, 35, waker=EXECUTOR)
    t.blocks(POOL, 40, 60, 60, waker=EXECUTOR)

    assert ledger(t.evidence()) == {Cause.ON_CPU: 25, Cause.RUN_QUEUE: 25}


def test_a_thread_that_serves_requests_of_its_own_is_no_pool_thread() -> None:
    # GIVEN another handler, woken by this one (it took the lock it released), that got no CPU
    t = Timeline()
    t.request(0, 50, EXECUTOR)
    t.request(0, 50, POOL)
    t.runs(EXECUTOR)
    t.blocks(POOL, 5, 10, 35, waker=EXECUTOR)

    assert ledger(t.evidence(), 0) == {Cause.ON_CPU: 50}


def test_a_queue_whose_thread_the_worker_did_not_name_is_still_queueing() -> None:
    t = Timeline()
    t.request(0, 20, WORKER)
    t.span(0, "queue", 5, 15, 0, SpanKind.QUEUED)
    t.runs(WORKER)

    assert ledger(t.evidence()) == {Cause.ON_CPU: 10, Cause.QUEUED: 10}


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Anything goes: overlapping spans, gaps, wakers that do not exist, slices that overlap, open intervals."""
    t = Timeline()
    time = st.floats(0, 100, allow_nan=False)
    tid = st.integers(1, 4)
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted((draw(time), draw(time)))
        came = draw(st.one_of(st.just(0), st.integers(1, max(round(start * MS), 1))))
        row = t.request(start, end + 0.001, draw(tid), asynchronous=draw(st.integers(0, 1)), arrived_mono_ns=came)
        if came:
            read = draw(time)
            flags = SocketFlags.ACCEPTED | SocketFlags.MESSAGE | draw(st.sampled_from((0, SocketFlags.UNACCEPTED)))
            t.socket(9, 0, read, draw(tid), arrived_at=came / MS, flags=flags)
        for _ in range(draw(st.integers(0, 4))):
            a, b = sorted((draw(time), draw(time)))
            t.span(row, "s", a, b, draw(st.integers(0, 5)), draw(st.sampled_from(SpanKind)))
    for thread in (1, 2, 3):
        at = 0.0
        for _ in range(draw(st.integers(0, 6))):
            steps = [draw(st.floats(0, 15, allow_nan=False)) for _ in range(3)]
            off, ready, on = (at + sum(steps[: n + 1]) for n in range(3))
            kind = draw(st.integers(0, 3))
            if kind == 0:
                t.lose_cycle(thread, on)
            elif kind == 1:
                t.waits(thread, off, on, cpu=draw(st.integers(0, 1)), irq_ns=draw(st.integers(0, 30 * MS)))
            else:
                extra = {
                    "short_runq_ns": draw(st.integers(0, 9 * MS)),
                    "reclaim_ns": draw(st.integers(0, 9 * MS)),
                    "flags": draw(st.integers(0, 4095)),
                    "object_kind": draw(st.sampled_from(ObjectKind)),
                    "object": draw(st.integers(1, 2)),
                    "syscall": draw(st.sampled_from(("futex", "read", "wait4", "nanosleep"))),
                }
                t.blocks(thread, off, ready, on, waker=draw(st.integers(0, 4)), **extra)
            at = on
        if draw(st.booleans()):
            t.open(thread, at + draw(st.floats(0, 30, allow_nan=False)))
    for _ in range(draw(st.integers(0, 6))):
        start, end = sorted((draw(time), draw(time)))
        t.slice(draw(st.integers(0, 1)), start, end, tgid=draw(st.integers(0, 3)), comm="x")
        t.batch(draw(st.integers(1, 3)), start, end, draw(tid))
        t.step(draw(st.integers(-1, 3)), start, end, draw(tid))
        t.pause(start, end, draw(tid))
        t.sample(start, end, draw(st.integers(0, 1)), busy=draw(time), steal=draw(time))
        t.socket(draw(st.integers(1, 2)), start, end, draw(tid), arrived_at=draw(time), acked_at=draw(time))
    t.meta.runtime_locks = {"100": [[1, 2]]}
    return t


@settings(max_examples=300, deadline=None)
@given(timelines())
def test_every_ledger_sums_to_the_wall_time_and_its_stretches_tile_it(timeline: Timeline) -> None:
    evidence = timeline.evidence()

    found = account(evidence)
    table = ledgers(found, len(evidence.requests))

    begins = began(evidence.requests)
    walls = evidence.requests["end_mono_ns"] - begins
    assert np.array_equal(table.sum(axis=1), walls)
    assert (table >= 0).all()
    for index, request in enumerate(evidence.requests):
        rows = found.rows[found.rows["request"] == index]
        assert rows["start"][0] == begins[index]
        assert rows["end"][-1] == request["end_mono_ns"]
        assert np.array_equal(rows["start"][1:], rows["end"][:-1])
    judge(evidence)  # words can be made of whatever the evidence is
