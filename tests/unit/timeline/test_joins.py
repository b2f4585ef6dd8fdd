"""Which thread served a request whose worker did not say."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tailspan.timeline.activity import Activity
from tailspan.timeline.arrivals import Receives, Taken, find_arrivals
from tailspan.timeline.evidence import Evidence
from tailspan.timeline.joins import MAX_READ, MAX_READERS, Readers, join_threads
from tailspan.timeline.tables import Join
from tailspan.wire.events import SocketFlags
from tailspan.wire.spans import SpanKind
from tests.timelines import MS, Timeline

MESSAGE = SocketFlags.ACCEPTED | SocketFlags.MESSAGE


def joined(t: Timeline, taken: Taken | None = None, readers: Readers | None = None) -> Evidence:
    evidence = t.evidence()
    receives = Receives(evidence.sockets, taken or Taken())
    found = find_arrivals(evidence.requests, receives)
    activity = Activity(t.tgid, evidence.cycles, evidence.open_threads, evidence.threads)
    join_threads(evidence.requests, evidence.spans, receives, found, {t.tgid: activity}, readers or Readers())
    return evidence


def who(evidence: Evidence) -> list[tuple[int, Join, float]]:
    """(tid, how it is known, when it arrived in ms) of each request."""
    return [(int(r["tid"]), Join(r["join"]), float(r["arrived_mono_ns"] / MS)) for r in evidence.requests]


def reads(t: Timeline, tid: int, socket: int, at: float, port: int = 0) -> None:
    t.socket(socket, at - 2, at, tid=tid, arrived_at=at - 1, flags=MESSAGE, remote_port=port or 4000 + socket)


def serves(t: Timeline, tid: int, start: float, end: float) -> None:
    """The thread sleeps before and after, and once in between."""
    middle = (start + end) / 2
    t.blocks(tid, 1, start - 2, start - 1.5)
    t.blocks(tid, middle, middle + 1, middle + 1)
    t.open(tid, off=end + 1)


def test_the_thread_that_read_it_from_the_connection_that_the_request_names() -> None:
    t = Timeline()
    t.request(50, 100, tid=0, peer_port=4007)
    serves(t, 1, 50, 100)
    serves(t, 2, 50, 100)
    reads(t, 1, socket=7, at=49)
    reads(t, 2, socket=8, at=49.5)

    assert who(joined(t)) == [(1, Join.SOCKET, 48)]


def test_a_thread_that_handed_it_to_another_did_not_serve_it() -> None:
    # GIVEN a reader that went back to sleep, and another thread that was busy from start to end
    t = Timeline()
    t.request(50, 100, tid=0, peer_port=4007)
    t.blocks(1, 1, 48, 48.5)
    t.open(1, off=49.2)
    reads(t, 1, socket=7, at=49)
    serves(t, 2, 50, 100)

    assert who(joined(t)) == [(2, Join.PROCESS, 48)]


def of_a_reader(t: Timeline, awake: int, asleep: int, port: int) -> None:
    """Requests that thread 1 read: at both ends of so many it was on a CPU, of the others it slept then."""
    for number in range(awake + asleep):
        at = 50 + 20 * number
        reads(t, 1, socket=7, at=at - 0.5)
        if number >= awake:
            t.blocks(1, at - 0.2, at + 15, at + 15)
        t.request(at, at + 10, tid=0, peer_port=port)
    t.runs(1)


@pytest.mark.parametrize("port", [4007, 0])
def test_a_thread_that_reads_for_others_serves_not_even_what_it_can_have(port: int) -> None:
    # GIVEN a reader that by chance was on a CPU at both ends of one request in four
    t = Timeline()
    of_a_reader(t, awake=1, asleep=3, port=port)
    readers = Readers()

    assert joined(t, readers=readers).requests["tid"].tolist() == [0] * 4
    # AND that is remembered
    later = Timeline()
    of_a_reader(later, awake=1, asleep=0, port=port)
    assert joined(later).requests["tid"].tolist() == [1]
    assert joined(later, readers=readers).requests["tid"].tolist() == [0]


def test_a_thread_that_seldom_slept_through_what_it_read_serves_the_rest() -> None:
    t = Timeline()
    of_a_reader(t, awake=30, asleep=2, port=4007)

    assert joined(t).requests["tid"].tolist() == [1] * 30 + [0, 0]


def test_what_a_reader_did_long_ago_counts_for_less_and_readers_are_bounded() -> None:
    readers = Readers()
    readers.note(100, 1, served=0, read=10 * MAX_READ)
    for _ in range(50):
        readers.note(100, 1, served=MAX_READ, read=MAX_READ)
    assert readers.handed_on(100, 1) < 0.01

    for tid in range(2, MAX_READERS + 2):
        readers.note(100, tid, served=0, read=1)
    assert readers.handed_on(100, 1) == 0
    assert readers.handed_on(100, 2) == 1


def test_without_a_port_the_only_receive_that_can_have_begun_it() -> None:
    t = Timeline()
    t.request(50, 100, tid=0)
    serves(t, 1, 50, 100)
    reads(t, 1, socket=7, at=49)
    # NOT one too long ago, one that was answered already, one of a thread that sleeps since, one of an upstream
    serves(t, 2, 50, 100)
    reads(t, 2, socket=8, at=47)
    reads(t, 2, socket=8, at=70)
    t.open(3, off=45)
    reads(t, 3, socket=9, at=44)
    serves(t, 4, 50, 100)
    t.socket(10, 40, 49, tid=4, arrived_at=48, flags=SocketFlags.MESSAGE)

    assert who(joined(t)) == [(1, Join.SOCKET, 48)]


def test_requests_that_overlap_are_told_apart_where_each_has_one_receive_left() -> None:
    t = Timeline()
    t.request(50, 100, tid=0)
    t.request(60, 100, tid=0)
    for tid, start in ((1, 50), (2, 60)):
        serves(t, tid, start, 100)
        reads(t, tid, socket=tid, at=start - 1)

    # the second could have been read by either, the first by one only
    assert who(joined(t)) == [(1, Join.SOCKET, 48), (2, Join.SOCKET, 58)]


def test_where_two_requests_may_have_begun_with_either_receive_nobody_is_named() -> None:
    t = Timeline()
    t.request(50, 100, tid=0)
    t.request(50.01, 100.01, tid=0)
    for tid in (1, 2):
        serves(t, tid, 50, 100)
        reads(t, tid, socket=tid, at=49)

    assert who(joined(t)) == [(0, Join.NONE, 0)] * 2


def test_two_requests_that_may_have_begun_with_one_receive_have_neither() -> None:
    t = Timeline()
    t.request(50, 100, tid=0)
    t.request(51, 100, tid=0)
    for tid in (1, 2):
        serves(t, tid, 50, 100)
    reads(t, 1, socket=1, at=49)

    assert who(joined(t)) == [(0, Join.NONE, 0)] * 2


def test_a_receive_is_known_to_be_anothers_in_later_turns_too() -> None:
    # GIVEN a request that was judged, and read by the thread that sleeps no more
    t = Timeline()
    t.request(50, 60, tid=1)
    t.runs(1)
    reads(t, 1, socket=7, at=49)
    taken = Taken()
    joined(t, taken)

    later = Timeline()
    later.request(70, 100, tid=0)
    later.runs(1)
    reads(later, 1, socket=7, at=49)
    serves(later, 2, 70, 100)
    reads(later, 2, socket=8, at=69)

    assert who(joined(later, taken)) == [(2, Join.SOCKET, 68)]


def test_a_loop_that_reads_everything_is_the_thread_although_the_receives_cannot_be_told_apart() -> None:
    t = Timeline()
    for start in (50, 55, 60):
        t.request(start, 100, tid=0)
    t.runs(1)
    for socket in (7, 8, 9):
        reads(t, 1, socket, at=44 + socket / 2)
    t.open(2, off=10)

    evidence = joined(t)
    assert who(evidence) == [(1, Join.SOCKET, 0)] * 3
    # AND each had two others meanwhile
    assert evidence.requests["others"].tolist() == [2, 2, 2]


def test_other_requests_that_the_thread_read_meanwhile_are_counted_but_not_its_own() -> None:
    t = Timeline()
    t.request(50, 100, tid=0, peer_port=4007)
    t.runs(1)
    reads(t, 1, socket=7, at=50.5)  # its own, by a clock that cuts off
    reads(t, 1, socket=8, at=60)
    reads(t, 1, socket=9, at=99)
    reads(t, 1, socket=8, at=101)

    evidence = joined(t)
    assert who(evidence) == [(1, Join.SOCKET, 49.5)]
    assert evidence.requests["others"].tolist() == [2]


def test_with_no_receive_the_only_thread_that_can_have_served_it() -> None:
    t = Timeline()
    t.request(50, 100, tid=0)
    serves(t, 1, 50, 100)
    t.open(2, off=10)  # a pool thread with nothing to do
    t.blocks(3, 2, 80, 81)  # woke up in the middle
    t.open(3, off=110)

    assert who(joined(t)) == [(1, Join.PROCESS, 0)]


def test_of_two_that_can_have_served_it_the_one_that_did_by_far_the_most() -> None:
    t = Timeline()
    t.request(50, 100, tid=0)
    serves(t, 1, 50, 100)
    t.lose_cycle(2, 90)  # what it did before is lost, so it is not known to have slept
    t.runs(2)

    assert who(joined(t)) == [(1, Join.PROCESS, 0)]


def test_of_two_that_did_about_as_much_nobody_is_named() -> None:
    t = Timeline()
    t.request(50, 100, tid=0)
    for tid in (1, 2):
        serves(t, tid, 50, 100)

    assert who(joined(t)) == [(0, Join.NONE, 0)]


def test_a_thread_of_which_less_than_half_is_known_is_not_named() -> None:
    t = Timeline()
    t.request(50, 100, tid=0)
    t.lose_cycle(1, 80)
    t.runs(1)

    assert who(joined(t)) == [(0, Join.NONE, 0)]


def test_a_clock_that_cuts_milliseconds_off_finds_the_thread_that_woke_up_within_one() -> None:
    # GIVEN a thread that was woken at 50.6 by the request that is said to have begun at 50
    t = Timeline()
    t.request(50, 100, tid=0, peer_port=4007)
    t.blocks(1, 1, 50.6, 50.6)
    t.open(1, off=100.4)
    reads(t, 1, socket=7, at=50.7)
    t.open(2, off=10)

    assert who(joined(t)) == [(1, Join.SOCKET, 49.7)]


def test_a_process_of_which_nothing_is_known_names_nobody() -> None:
    t = Timeline()
    t.request(50, 100, tid=0)

    assert who(joined(t)) == [(0, Join.NONE, 0)]


def test_what_the_worker_said_stays() -> None:
    t = Timeline()
    t.request(50, 100, tid=5, peer_port=4007)
    serves(t, 1, 50, 100)
    reads(t, 1, socket=7, at=49)

    evidence = joined(t)
    assert who(evidence) == [(5, Join.SAID, 48)]
    assert evidence.requests["others"].tolist() == [0]


def test_spans_without_a_thread_get_the_requests_unless_they_waited_in_a_queue() -> None:
    t = Timeline()
    inferred, said = t.request(50, 100, tid=0), t.request(150, 200, tid=5)
    for request in (inferred, said):
        t.span(request, "work", 50, 60, tid=0)
        t.span(request, "await", 60, 70, tid=0, kind=SpanKind.AWAIT)
        t.span(request, "queue", 70, 80, tid=0, kind=SpanKind.QUEUED)
        t.span(request, "run", 80, 90, tid=7)
    serves(t, 1, 50, 100)

    assert joined(t).spans["tid"].tolist() == [1, 1, 0, 7, 0, 0, 0, 7]


@pytest.mark.parametrize("seed", range(5))
def test_of_a_busy_server_every_thread_that_is_named_is_the_right_one(seed: int) -> None:
    # GIVEN nine threads with a connection each, that sleep, read, begin a request soon after, and end it
    rng = random.Random(seed)
    t = Timeline()
    true_tids, requests = [], []
    for tid in range(1, 10):
        now = 10.0
        while now < 400:
            woken = now + rng.uniform(0.5, 30)
            t.blocks(tid, now, woken, woken + rng.uniform(0, 1))
            read = woken + 1 + rng.uniform(0, 0.2)
            start = read + rng.choice((0.03, 0.3, 3))
            end = start + rng.uniform(1, 40)
            if end - start > 10:
                t.blocks(tid, start + 2, start + 4, start + 5)
            reads(t, tid, socket=tid, at=read)
            requests.append((start, end))
            true_tids.append(tid)
            now = end + 0.05
        t.open(tid, off=now)
    for start, end in requests:
        t.request(start, end, tid=0)

    found = who(joined(t))
    # THEN none is wrong, and some are known
    assert all(tid in (0, true) for (tid, _, _), true in zip(found, true_tids, strict=True))
    assert sum(tid != 0 for tid, _, _ in found) > len(found) / 3
    arrivals = np.array([arrived for _, _, arrived in found])
    assert (arrivals > 0).any()
