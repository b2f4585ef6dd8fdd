"""What the loop says of itself: alive, ready, and why not."""

from __future__ import annotations

import pytest

from tailspan.attribute.health import Grade, HostHealth, State, WorkerHealth
from tailspan.export import pulse
from tailspan.export.pulse import Pulse

WELL = HostHealth(Grade(State.HEALTHY, 100.0), (WorkerHealth("web", Grade(State.HEALTHY, 100.0)),))


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def beating(clock: Clock) -> Pulse:
    return Pulse(clock)


def turn(beating: Pulse, records: int = 1000, lost: int = 0, not_stored: int = 0, missing: str = "") -> str:
    beating.drained(records, lost)
    beating.turn(WELL, {"enospc": not_stored} if not_stored else {}, missing)
    return beating.unready()


def test_it_is_ready_once_the_loop_has_come_round(beating: Pulse) -> None:
    assert (beating.dead(), beating.unready(), beating.health()) == ("", "starting", HostHealth())
    assert turn(beating) == ""
    assert beating.health() == WELL


def test_a_loop_that_does_not_come_round_is_stuck_and_knows_nothing_any_more(beating: Pulse, clock: Clock) -> None:
    turn(beating)
    clock.now_s += pulse.STUCK_S
    assert beating.dead() == ""
    clock.now_s += 2
    assert beating.dead() == beating.unready() == "the agent is stuck for 12 s"
    assert beating.health() == HostHealth(Grade(State.UNKNOWN, None, (), "the agent is stuck for 12 s"))
    beating.beat()
    assert (beating.dead(), beating.unready(), beating.health()) == ("", "", WELL)


def test_it_is_not_ready_while_most_records_are_lost(beating: Pulse) -> None:
    assert turn(beating, records=500, lost=400) == ""
    assert turn(beating, records=0, lost=600) == "67% of the kernel's records are lost"
    # AND is again when enough of them come, or those lost are long ago
    assert turn(beating, records=2000) == ""
    for _ in range(pulse.TURNS):
        turn(beating, records=0)
    assert turn(beating, records=0, lost=0) == ""


def test_it_is_not_ready_while_evidence_cannot_be_stored(beating: Pulse) -> None:
    assert turn(beating, not_stored=1) == "evidence cannot be stored: enospc"
    waits = [turn(beating, not_stored=1) for _ in range(pulse.TURNS)]
    assert waits == ["evidence cannot be stored: enospc"] * (pulse.TURNS - 1) + [""]
    assert turn(beating, not_stored=2) == "evidence cannot be stored: enospc"


def test_evidence_that_is_too_large_is_that_requests_own_fault(beating: Pulse) -> None:
    beating.turn(WELL, {"too_large": 23, "unencodable": 1}, "")
    assert beating.unready() == ""


def test_what_is_missing_is_said_first(beating: Pulse) -> None:
    why = "/run/tailspan/worker.sock is gone"
    assert turn(beating, lost=9000, missing=why) == why
    assert turn(beating, records=100_000) == ""


def test_it_is_not_ready_when_it_ends(beating: Pulse) -> None:
    turn(beating)
    beating.stopping()
    assert turn(beating) == "stopping"
    assert beating.dead() == ""


def test_who_is_not_among_the_workers_is_none_only_after_a_while(beating: Pulse, clock: Clock) -> None:
    for _ in range(pulse.TURNS):
        assert not beating.knows()
        turn(beating)
    assert beating.knows()
    clock.now_s += pulse.STUCK_S + 1
    assert not beating.knows()


def test_the_control_socket_is_told_all_of_it(beating: Pulse) -> None:
    answer = beating.answer()
    assert (answer["ok"], answer["unready"], answer["workers"]) == (True, "starting", [])
    assert answer["shed"] == []
    beating.shed(["slices"])
    assert beating.answer()["shed"] == ["slices"]
    turn(beating)
    assert [worker["service"] for worker in beating.answer()["workers"]] == ["web"]
