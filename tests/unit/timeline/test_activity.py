"""Who can have been at work at an instant, and how much was done meanwhile."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tailspan.timeline.activity import Activity
from tailspan.timeline.evidence import Evidence
from tailspan.wire.events import CycleFlags
from tests.timelines import MS, Timeline

TID, OTHER = 1, 2


def activity(evidence: Evidence) -> Activity:
    return Activity(100, evidence.cycles, evidence.open_threads, evidence.threads)


def at(*ms: float) -> np.ndarray:
    return np.array([round(each * MS) for each in ms])


def can_have_run(found: Activity, ms: float, within: float = 0.1, tid: int = TID) -> bool:
    return bool(found.can_have_run(tid, at(ms), round(within * MS))[0])


def done(found: Activity, start: float, end: float, tid: int = TID) -> float:
    return float(found.done_ns(tid, at(start), at(end))[0] / MS)


def test_a_thread_that_slept_or_waited_for_a_cpu_was_not_on_one() -> None:
    t = Timeline()
    t.blocks(TID, 10, 20, 30)
    found = activity(t.evidence())

    assert can_have_run(found, 9)
    assert not can_have_run(found, 15)
    assert not can_have_run(found, 25)
    assert can_have_run(found, 31)
    # AND near the edges it cannot be told
    assert can_have_run(found, 10.05)
    assert can_have_run(found, 29.95)
    assert not can_have_run(found, 10.05, within=0.01)


def test_the_turn_that_is_not_over_counts() -> None:
    t = Timeline()
    t.blocks(TID, 10, 20, 30)
    t.open(TID, off=40)
    found = activity(t.evidence())

    assert can_have_run(found, 35)
    assert not can_have_run(found, 50)
    assert done(found, 35, 60) == 5


def test_a_turn_that_ended_after_the_look_is_known_by_its_record() -> None:
    t = Timeline()
    t.blocks(TID, 10, 20, 30)
    t.open(TID, off=40)
    evidence = t.evidence()
    t.blocks(TID, 40, 50, 60)
    evidence.cycles = t.evidence().cycles
    found = activity(evidence)

    assert not can_have_run(found, 45)
    assert can_have_run(found, 70)
    assert done(found, 0, 60) == 60


def test_a_look_that_is_older_than_lost_records_hides_nothing() -> None:
    t = Timeline()
    t.blocks(TID, 10, 20, 30)
    t.open(TID, off=40)
    evidence = t.evidence()
    t.lose_cycle(TID, 60)
    t.blocks(TID, 70, 80, 90)
    evidence.cycles = t.evidence().cycles
    found = activity(evidence)

    assert can_have_run(found, 45)  # nobody knows
    assert not can_have_run(found, 75)


def test_a_thread_that_is_gone_or_not_yet_born_runs_nowhere() -> None:
    t = Timeline()
    t.cycle(TID, 0, 0, 30, flags=CycleFlags.BORN)
    evidence = t.evidence()
    evidence.cycles["run_mono_ns"][0] = evidence.cycles["off_mono_ns"][0] = evidence.cycles["ready_mono_ns"][0] = (
        20 * MS
    )
    evidence.threads["gone_mono_ns"], evidence.threads["last_run_mono_ns"] = 50 * MS, 30 * MS
    found = activity(evidence)

    assert [can_have_run(found, ms) for ms in (10, 25, 40, 60)] == [False, False, True, False]


def test_a_thread_of_which_nothing_is_known_can_have_run() -> None:
    assert can_have_run(activity(Timeline().evidence()), 10)


def test_threads_of_other_processes_are_left_out() -> None:
    t = Timeline()
    t.blocks(TID, 10, 20, 30)
    evidence = t.evidence()

    assert activity(evidence).tids == [TID]
    assert Activity(101, evidence.cycles, evidence.open_threads, evidence.threads).tids == []


def test_a_wait_counts_as_done_only_where_it_ended() -> None:
    t = Timeline()
    t.blocks(TID, 10, 20, 30)
    t.blocks(TID, 40, 90, 95)
    found = activity(t.evidence())

    assert done(found, 0, 10) == 10
    assert done(found, 12, 25) == 13
    assert done(found, 12, 18) == 0  # slept all the time, and went on sleeping
    assert done(found, 22, 28) == 6  # ready, and waited for a CPU
    assert done(found, 15, 60) == 25
    assert done(found, 15, 93) == 78


TURNS = st.lists(st.tuples(*(st.integers(1, 20) for _ in range(3))), min_size=1, max_size=12)


@given(TURNS, st.integers(0, 400), st.integers(1, 400))
def test_what_was_done_is_what_a_look_at_each_millisecond_finds(
    turns: list[tuple[int, int, int]], start: int, length: int
) -> None:
    # GIVEN turns of so many ms on a CPU, asleep, and waiting for a CPU
    t = Timeline()
    now, kinds = 0, []
    for ran, slept, waited in turns:
        t.blocks(TID, now + ran, now + ran + slept, now + ran + slept + waited)
        wait = (now + ran, now + ran + slept)
        kinds += ran * [None] + slept * [wait[1]] + waited * [None]
        now += ran + slept + waited
    kinds += (800 - len(kinds)) * [None]  # then it runs on

    # THEN each millisecond counts, but those of a sleep that ended later
    end = start + length
    counted = sum(1 for until in kinds[start:end] if until is None or until <= end)
    assert done(activity(t.evidence()), start, end) == counted
