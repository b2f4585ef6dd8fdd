"""Waits followed back through several threads: who held it up in the end, by which chain, and the bounds."""

from tailspan.attribute.causes import Cause
from tailspan.attribute.judge import judge
from tailspan.attribute.ledger import MAX_HOPS, account, ledgers
from tailspan.attribute.verdict import Hop
from tailspan.wire.events import ObjectKind
from tests.timelines import MS, Timeline

NICE_10, NORMAL = 130, 120


def test_a_lock_holder_that_is_preempted_names_the_preempter_and_the_chain() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 10, 90, 90, waker=2, prio=NORMAL)
    timeline.waits(2, 15, 85, cpu=1, prio=NICE_10)
    timeline.slice(1, 15, 85, 771, "backup")

    verdict = judge(timeline.evidence())[0]

    assert verdict.cause is Cause.RUN_QUEUE
    assert verdict.culprit is not None and verdict.culprit.pid == 771
    assert verdict.chain == (
        Hop(1, "t1", 100, NORMAL, Cause.FUTEX),
        Hop(2, "t2", 100, NICE_10, Cause.RUN_QUEUE),
    )
    assert (
        "t2[2], which t1 thread 1 waited for, was ready to run while backup (pid 771) ran there"
        in verdict.sentence
    )
    assert "priority inversion" in verdict.sentence


def test_a_holder_of_the_same_priority_is_no_inversion() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 10, 90, 90, waker=2, prio=NORMAL)
    timeline.waits(2, 15, 85, cpu=1, prio=NORMAL)
    timeline.slice(1, 15, 85, 771, "backup")

    assert "inversion" not in judge(timeline.evidence())[0].sentence


def test_the_way_that_took_most_in_all_is_told_not_the_longest_piece() -> None:
    # GIVEN a holder that two hogs keep from its CPU by turns of 4 ms, and a longer wait of the request's own
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 10, 90, 90, waker=2, prio=NORMAL)
    timeline.waits(1, 90, 98, cpu=0, prio=NORMAL)
    timeline.slice(0, 90, 98, 600, "other")
    timeline.waits(2, 11, 89, cpu=1, prio=NICE_10)
    for at in range(11, 89, 4):
        timeline.slice(1, at, min(at + 4, 89), 771 + at % 8 // 4, "hog")

    # WHEN it is judged
    verdict = judge(timeline.evidence())[0]

    # THEN the holder waited while that hog ran, and nobody else
    assert verdict.cause is Cause.RUN_QUEUE
    assert verdict.culprit is not None and verdict.culprit.pid in (771, 772)
    assert [hop.tid for hop in verdict.chain] == [1, 2]
    assert f"t2[2], which t1 thread 1 waited for, was ready to run while hog (pid {verdict.culprit.pid}" in (
        verdict.sentence
    )
    assert "priority inversion" in verdict.sentence


def test_the_way_is_that_of_the_culprit_that_is_named() -> None:
    # GIVEN most run-queue time in the holder, half of it of a neighbour that takes more from the request itself
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 10, 50, 50, waker=2)
    timeline.waits(2, 11, 49, cpu=1)
    timeline.slice(1, 11, 31, 771, "first")
    timeline.slice(1, 31, 49, 772, "second")
    for at in (50, 65):
        timeline.waits(1, at, at + 12, cpu=0)
        timeline.slice(0, at, at + 12, 772, "second")

    verdict = judge(timeline.evidence())[0]

    assert verdict.culprit is not None and verdict.culprit.pid == 772
    assert verdict.chain == ()
    assert "t1 thread 1 was ready to run while second (pid 772) ran there for 42" in verdict.sentence


def test_two_hops_are_told_in_order() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 10, 90, 90, waker=2)
    timeline.blocks(2, 10, 88, 88, syscall="read", waker=3, object_kind=ObjectKind.PIPE)
    timeline.cycle(3, 10, 80, 80, state=2, syscall_nr=74, object_kind=ObjectKind.FILE)  # fsync

    verdict = judge(timeline.evidence())[0]

    assert verdict.cause is Cause.IO
    assert [(hop.tid, hop.cause) for hop in verdict.chain] == [(1, Cause.FUTEX), (2, Cause.PIPE), (3, Cause.IO)]
    assert "waited for through t2[2]" in verdict.sentence


def test_a_holder_that_sleeps_of_its_own_accord_is_itself_the_culprit() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 10, 90, 90, waker=2)
    timeline.blocks(2, 10, 89, 89, syscall="clock_nanosleep")

    verdict = judge(timeline.evidence())[0]

    assert verdict.cause is Cause.FUTEX
    assert verdict.culprit is not None and verdict.culprit.label == "t2[2]"


def test_threads_that_wait_for_each_other_end_after_a_bounded_number_of_hops() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 10, 90, 90, waker=2)
    timeline.blocks(2, 10, 90, 90, waker=1)
    evidence = timeline.evidence()

    found = account(evidence)

    assert ledgers(found, 1)[0].sum() == 100 * MS
    assert len(found.chain) <= MAX_HOPS
    verdict = judge(evidence)[0]
    assert verdict.cause is Cause.FUTEX
    # The other one had nothing to do but wait for this one: it is whom this one waited for.
    assert verdict.culprit is not None and verdict.culprit.label == "t2[2]"


def test_a_circle_of_three_ends_after_a_bounded_number_of_hops() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 10, 90, 90, waker=2)
    timeline.blocks(2, 10, 90, 90, waker=3)
    timeline.blocks(3, 10, 90, 90, waker=2)
    evidence = timeline.evidence()

    found = account(evidence)

    assert ledgers(found, 1)[0].sum() == 100 * MS
    assert 1 <= len(found.chain) <= MAX_HOPS
    assert judge(evidence)[0].cause is Cause.FUTEX


def test_what_took_a_part_of_a_stretch_names_its_thread_too() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.waits(1, 100, 101, irq_ns=60 * MS)

    verdict = judge(timeline.evidence())[0]

    assert verdict.cause is Cause.IRQ
    assert "interrupts ran on the CPU of t1 thread 1" in verdict.sentence
