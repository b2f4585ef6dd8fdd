"""What has nothing to do with the requests goes, and no verdict changes by it."""

from __future__ import annotations

import numpy as np

from tailspan.attribute.judge import judge
from tailspan.timeline.cut import narrow
from tailspan.timeline.evidence import TABLES
from tailspan.timeline.related import related
from tailspan.wire.events import CycleFlags
from tests.bench.second import Shape, evidence
from tests.timelines import MS, Timeline

SHAPE = Shape(
    handlers=32, executors=8, sleepers=160, processes=4, cpus=64, request_ns=40_000_000, turn_ns=2_000_000
)


def test_a_busy_host_is_mostly_left_out_and_its_verdicts_stay() -> None:
    # GIVEN two slow requests of one process, of a host with four
    whole = narrow(evidence(96, SHAPE), np.array([3, 4]))

    small = related(whole)

    assert judge(small) == judge(whole)
    assert len(small.cycles) < len(whole.cycles) / 2
    assert len(small.open_threads) < len(whole.open_threads) / 3


def test_a_chain_of_wakers_is_kept_from_end_to_end() -> None:
    t = Timeline()
    t.request(0, 100, 1)
    t.blocks(1, 10, 90, 90, waker=2)
    t.blocks(2, 5, 80, 80, waker=3)
    t.waits(3, 20, 70)
    t.blocks(4, 20, 60, 60, waker=5)
    whole = t.evidence()

    small = related(whole)

    assert set(small.cycles["tid"].tolist()) == {1, 2, 3}
    assert judge(small) == judge(whole)


def test_who_had_a_cpu_is_kept_where_only_the_turn_of_a_stranger_says_it() -> None:
    runner = np.zeros((), TABLES["cycles"]["runner"])
    runner["tid"], runner["tgid"], runner["comm"] = 900, 900, b"hog"
    t = Timeline()
    t.request(0, 100, 1)
    t.waits(1, 10, 90, cpu=0)
    t.waits(2, 20, 80, cpu=0, flags=CycleFlags.RUNNER, runner=runner, runner_since_mono_ns=20 * MS)
    t.waits(3, 92, 95, cpu=0, flags=CycleFlags.RUNNER, runner=runner, runner_since_mono_ns=92 * MS)
    whole = t.evidence()

    small = related(whole)

    assert set(small.cycles["tid"].tolist()) == {1, 2}
    (verdict,) = judge(small)
    assert verdict.culprit is not None and verdict.culprit.label == "hog[900]"
    assert [verdict] == judge(whole)


def test_a_native_thread_that_a_request_has_woken_is_kept() -> None:
    t = Timeline()
    t.request(0, 100, 1)
    t.blocks(9, 5, 10, 60, waker=1)
    whole = t.evidence()
    whole.threads["named"][whole.threads["tid"] == 9] = 0

    small = related(whole)

    assert 9 in small.cycles["tid"].tolist()
    assert judge(small) == judge(whole)
