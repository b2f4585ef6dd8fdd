"""Which receive began which request."""

import numpy as np

from tailspan.timeline.arrivals import BY_THREAD_NS, COARSE_NS, MAX_TAKEN, Receives, Taken, began, find_arrivals
from tailspan.wire.events import SocketFlags
from tests.timelines import MS, Timeline

MESSAGE = SocketFlags.ACCEPTED | SocketFlags.MESSAGE


def _arrivals(timeline: Timeline, taken: Taken | None = None) -> list[float]:
    evidence = timeline.evidence()
    find_arrivals(evidence.requests, Receives(evidence.sockets, taken or Taken()))
    return [float(ns) / MS for ns in evidence.requests["arrived_mono_ns"]]


def test_the_last_receive_of_its_own_thread_before_it() -> None:
    timeline = Timeline()
    timeline.request(50, 100, tid=1)
    timeline.socket(7, 0, 20, tid=1, arrived_at=10, flags=MESSAGE)
    timeline.socket(7, 30, 49, tid=1, arrived_at=40, flags=MESSAGE)
    timeline.socket(8, 30, 49.5, tid=2, arrived_at=45, flags=MESSAGE)
    timeline.socket(7, 50, 60, tid=1, arrived_at=55, flags=MESSAGE)  # the next request's

    assert _arrivals(timeline) == [40]


def test_the_port_that_the_worker_names_comes_before_the_thread() -> None:
    timeline = Timeline()
    timeline.request(50, 100, tid=1, peer_port=4002)
    timeline.socket(7, 0, 49, tid=1, arrived_at=48, flags=MESSAGE, remote_port=4001)
    timeline.socket(8, 0, 40, tid=2, arrived_at=30, flags=MESSAGE, remote_port=4002)

    assert _arrivals(timeline) == [30]


def test_a_receive_begins_one_request_only() -> None:
    timeline = Timeline()
    timeline.request(50, 60, tid=1)
    timeline.request(70, 80, tid=1)
    timeline.socket(7, 0, 49, tid=1, arrived_at=40, flags=MESSAGE)

    assert _arrivals(timeline) == [40, 0]


def test_what_is_no_message_on_an_accepted_connection_begins_nothing() -> None:
    timeline = Timeline()
    timeline.request(50, 60, tid=1)
    timeline.socket(7, 0, 49, tid=1, arrived_at=40, flags=SocketFlags.ACCEPTED)  # the rest of a body
    timeline.socket(8, 0, 49, tid=1, arrived_at=40, flags=SocketFlags.MESSAGE)  # an upstream's answer
    timeline.socket(9, 0, 49, tid=1, flags=MESSAGE)  # nobody saw it arrive

    assert _arrivals(timeline) == [0]


def test_a_receive_too_long_ago_was_for_something_else() -> None:
    reach = BY_THREAD_NS / MS
    timeline = Timeline()
    timeline.request(500, 600, tid=1)
    timeline.socket(7, 0, 499 - reach, tid=1, arrived_at=10, flags=MESSAGE)

    assert _arrivals(timeline) == [0]


def test_an_arrival_after_the_start_changes_nothing() -> None:
    timeline = Timeline()
    timeline.request(50, 60, tid=1, arrived_mono_ns=55 * MS)

    assert np.array_equal(began(timeline.evidence().requests), [50 * MS])


def test_what_began_a_request_that_was_judged_before_begins_no_other() -> None:
    timeline = Timeline()
    timeline.request(50, 60, tid=1)
    timeline.socket(7, 0, 49, tid=1, arrived_at=40, flags=MESSAGE)
    taken = Taken()

    assert _arrivals(timeline, taken) == [40]
    assert _arrivals(timeline, taken) == [0]
    # UNTIL that is too long ago for any request that may still come
    taken.evict(50 * MS)
    assert _arrivals(timeline, taken) == [40]


def test_what_is_remembered_as_taken_is_bounded() -> None:
    taken = Taken()
    for at in range(MAX_TAKEN + 23):
        taken.add((at, 1))

    assert (22, 1) not in taken
    assert (23, 1) in taken


def test_a_request_of_no_thread_is_found_by_its_port() -> None:
    timeline = Timeline()
    timeline.request(50, 100, tid=0, peer_port=4002)
    timeline.socket(7, 0, 49, tid=1, arrived_at=48, flags=MESSAGE, remote_port=4001)
    timeline.socket(8, 0, 40, tid=2, arrived_at=30, flags=MESSAGE, remote_port=4002)

    assert _arrivals(timeline) == [30]


def test_a_tracer_that_cuts_times_off_may_tell_a_start_before_the_read() -> None:
    slack = COARSE_NS / MS
    timeline = Timeline()
    for port, end in ((4001, 60), (4002, 60), (4003, 50 + slack / 4)):
        timeline.request(50, end, tid=0, peer_port=port)
    timeline.socket(7, 0, 50 + slack / 2, tid=1, arrived_at=47, flags=MESSAGE, remote_port=4001)
    timeline.socket(8, 0, 50 + slack * 2, tid=1, arrived_at=48, flags=MESSAGE, remote_port=4002)
    timeline.socket(9, 0, 50 + slack / 2, tid=1, arrived_at=49, flags=MESSAGE, remote_port=4003)  # it had ended

    assert _arrivals(timeline) == [47, 0, 0]


def test_a_request_of_neither_thread_nor_port_is_left_for_others_to_find() -> None:
    timeline = Timeline()
    timeline.request(50, 60, tid=0)
    timeline.socket(7, 0, 49, tid=1, arrived_at=40, flags=MESSAGE)

    assert _arrivals(timeline) == [0]
