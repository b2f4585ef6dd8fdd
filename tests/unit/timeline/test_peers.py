"""Which processes are followed because they end the waits of others."""

import os

import pytest

from tailspan.timeline.peers import Peers
from tailspan.wire.events import CycleFlags, ObjectKind
from tests.timelines import Timeline


def _woken_by(tgid: int, ms: float = 5, kind: ObjectKind = ObjectKind.UNIX, flags: int = 0) -> Timeline:
    timeline = Timeline(tgid=100)
    timeline.blocks(1, 10, 10 + ms, 10 + ms, waker=tgid, waker_tgid=tgid, object_kind=kind, flags=flags)
    return timeline


def _new(peers: Peers, timeline: Timeline, live: range = range(100)) -> list[int]:
    return peers.new(timeline.evidence().cycles, lambda: live)


def test_who_ends_a_wait_is_followed_once() -> None:
    peers = Peers(limit=4)
    assert _new(peers, _woken_by(7)) == [7]
    assert _new(peers, _woken_by(7)) == []


@pytest.mark.parametrize(
    "timeline",
    [
        _woken_by(7, ms=0.5),
        _woken_by(7, kind=ObjectKind.TCP),
        _woken_by(7, flags=CycleFlags.WAKER_SOFTIRQ),
        _woken_by(7, flags=CycleFlags.WAKER_IRQ),
        _woken_by(100),
        _woken_by(os.getpid()),
        _woken_by(0),
    ],
    ids=["short", "tcp", "softirq", "irq", "itself", "the agent", "nobody"],
)
def test_who_is_not(timeline: Timeline) -> None:
    assert _new(Peers(limit=4), timeline) == []


def test_there_is_a_limit() -> None:
    peers = Peers(limit=2)
    assert [_new(peers, _woken_by(tgid)) for tgid in (7, 8, 9)] == [[7], [8], []]
    assert peers.refused == 1
    assert _new(Peers(limit=0), _woken_by(7)) == []


def test_those_that_have_ended_make_room() -> None:
    peers = Peers(limit=2)
    assert [_new(peers, _woken_by(tgid)) for tgid in (7, 8)] == [[7], [8]]

    assert _new(peers, _woken_by(9), live=range(8, 10)) == [9]
    assert _new(peers, _woken_by(10), live=range(8, 10)) == []
