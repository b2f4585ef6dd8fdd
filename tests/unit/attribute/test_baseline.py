"""What is normal, learned request by request; a millisecond is the unit of these requests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from tailspan.attribute.baseline import MEMORY_OF_PARTS, MIN_LIKE, Baseline, SlowRule, _Last, is_slow
from tailspan.attribute.causes import N_CAUSES, Cause
from tailspan.timeline.evidence import LikeRow, Table
from tailspan.timeline.tables import REQUEST

MS = 1_000_000
STRINGS = ("", "GET /a", "GET /b", *(f"GET /{number}" for number in range(100)))


def requests(*walls_ms: int, name: int = 1, batch: int = 0) -> Table:
    rows = np.zeros(len(walls_ms), REQUEST)
    rows["start_mono_ns"] = 1_000 * MS
    rows["end_mono_ns"] = rows["start_mono_ns"] + np.array(walls_ms, np.int64) * MS
    rows["name"], rows["batch_size"] = name, batch
    return rows


def learn(baseline: Baseline, rows: Table, on_cpu_ms: int = 0) -> npt.NDArray[np.bool_]:
    """As the pipeline does: which are slow is asked before they are learned from."""
    slow = is_slow(rows, baseline.likes(rows, STRINGS))
    parts = np.zeros((len(rows), N_CAUSES), np.int64)
    parts[:, Cause.ON_CPU] = on_cpu_ms * MS
    baseline.learn(rows, STRINGS, slow, np.arange(len(rows)), parts)
    return slow


def like(baseline: Baseline, **of: int) -> LikeRow:
    (found,) = baseline.likes(requests(1, **of), STRINGS)
    return found


def test_without_enough_like_requests_only_an_objective_makes_one_slow() -> None:
    baseline = Baseline(SlowRule(slo_ns=200 * MS))
    learn(baseline, requests(*[10] * (MIN_LIKE - 1)))
    assert is_slow(requests(199, 201), baseline.likes(requests(199, 201), STRINGS)).tolist() == [False, True]
    assert not is_slow(requests(10**6), Baseline().likes(requests(10**6), STRINGS)).any()


def test_slow_is_above_each_of_percentile_factor_excess_and_objective() -> None:
    walls = [10] * 90 + [40] * 10
    for rule, threshold_ms in (
        (SlowRule(), 40),  # the 95th percentile
        (SlowRule(factor=5.0), 50),
        (SlowRule(min_excess_ns=47 * MS), 57),
        (SlowRule(slo_ns=100 * MS), 100),
    ):
        baseline = Baseline(rule)
        baseline.learn(
            requests(*walls),
            STRINGS,
            np.zeros(100, bool),
            np.empty(0, np.int64),
            np.empty((0, N_CAUSES), np.int64),
        )
        found = like(baseline)
        assert (found.n, found.p50_ns, found.p95_ns) == (100, 10 * MS, 40 * MS)
        assert found.threshold_ns == threshold_ms * MS


def test_what_was_slow_is_no_part_of_the_norm_until_all_is_slow() -> None:
    baseline = Baseline(memory=50)
    learn(baseline, requests(*[10] * 50))
    # A fault of less than a memory's length stays slow to its end ...
    for _ in range(40):
        assert learn(baseline, requests(100)).all()
    assert like(baseline).p50_ns == 10 * MS
    # ... one that lasts becomes the norm
    for _ in range(40):
        learn(baseline, requests(100))
    assert like(baseline).p50_ns == 100 * MS
    assert not learn(baseline, requests(100)).any()


def test_the_norm_of_each_part_is_its_median() -> None:
    baseline = Baseline()
    learn(baseline, requests(*[10] * 30), on_cpu_ms=3)
    learn(baseline, requests(*[10] * 10), on_cpu_ms=9)
    assert like(baseline).parts_ns[Cause.ON_CPU] == 3 * MS
    for _ in range(MEMORY_OF_PARTS):
        learn(baseline, requests(10), on_cpu_ms=9)
    assert like(baseline).parts_ns[Cause.ON_CPU] == 9 * MS


def test_a_rare_batch_size_is_compared_with_all_sizes() -> None:
    baseline = Baseline()
    learn(baseline, requests(*[10] * MIN_LIKE, batch=1))
    learn(baseline, requests(*[15] * 2 * MIN_LIKE, batch=8))
    assert like(baseline, batch=1).p50_ns == 10 * MS
    assert like(baseline, batch=15).p50_ns == 15 * MS  # 8 to 15 are one bucket
    assert like(baseline, batch=64).p50_ns == 15 * MS
    assert like(baseline, batch=64).n == 3 * MIN_LIKE


def test_norms_are_bounded_and_the_one_that_was_not_used_for_longest_goes() -> None:
    baseline = Baseline(groups=6)  # three names: each with its size, and of all sizes
    for name in (1, 2, 3):
        learn(baseline, requests(*[10] * MIN_LIKE, name=name))
    learn(baseline, requests(10, name=1))
    learn(baseline, requests(10, name=4))
    assert [like(baseline, name=name).n for name in (1, 2, 3, 4)] == [MIN_LIKE + 1, 0, MIN_LIKE, 1]


@given(st.integers(1, 100), st.lists(st.lists(st.integers(0, 9), max_size=60), max_size=20))
def test_the_last_rows_are_the_last_rows_in_no_more_room_than_they_need(
    memory: int, added: list[list[int]]
) -> None:
    last = _Last(memory)
    for rows in added:
        last.add(np.array(rows, np.int64))
    flat = [row for rows in added for row in rows]
    assert sorted(last.rows.tolist()) == sorted(flat[-memory:])
    assert last.full == (len(flat) >= memory)
    assert len(last._rows) <= min(memory, max(16, 2 * len(flat)))
