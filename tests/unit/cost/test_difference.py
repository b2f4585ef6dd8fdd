"""A difference that is there is found; one that is not is not claimed."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from tailspan.cost.difference import MIN_PAIRS, Turn, compare


def pairs(count: int, added_s: float, seed: int, requests: int = 200) -> list[tuple[Turn, Turn]]:
    """Each pair is of a load of its own: slower or faster than the others by some 10 %."""
    random = np.random.default_rng(seed)

    def turn(load: float, added_s: float) -> Turn:
        walls = load * random.lognormal(0, 0.2, requests) + added_s
        return Turn(walls, requests, requests * (0.004 * random.normal(1, 0.01) + added_s))

    return [(turn(load, added_s), turn(load, 0.0)) for load in 0.01 * random.lognormal(0, 0.1, count)]


def test_a_known_difference_is_recovered() -> None:
    found = compare(pairs(20, 0.001, seed=23, requests=500))
    assert set(found) == {"p50", "p99", "mean", "cpu"}
    for name, difference in found.items():
        assert difference.lower_s <= difference.estimate_s <= difference.upper_s
        assert difference.lower_s < 0.001 < difference.upper_s, name
        assert difference.ratio_lower <= difference.ratio <= difference.ratio_upper
    for name in ("p50", "mean", "cpu"):
        assert found[name].told_apart, name
        assert found[name].estimate_s == pytest.approx(0.001, rel=0.3)


@pytest.mark.parametrize("count", [5, 10])
def test_no_difference_is_hardly_ever_claimed(count: int) -> None:
    claimed: Counter[str] = Counter()
    for seed in range(24):
        found = compare(pairs(count, 0.0, seed, requests=60), seed)
        claimed.update(name for name, difference in found.items() if difference.told_apart)
    # of 24 intervals at 95 %, 1 or 2 by chance
    assert all(times <= 5 for times in claimed.values()), claimed


def test_the_whole_of_the_sample_is_what_is_estimated() -> None:
    given = pairs(7, 0.002, seed=29)
    on, off = (np.concatenate([pair[side].walls_s for pair in given]) for side in (0, 1))
    found = compare(given)
    assert found["p50"].on_s == pytest.approx(np.quantile(on, 0.5))
    assert found["p99"].off_s == pytest.approx(np.quantile(off, 0.99))
    assert found["mean"].estimate_s == pytest.approx(on.mean() - off.mean())


def test_requests_of_one_turn_that_are_slow_together_are_no_evidence() -> None:
    """One turn of all has a neighbour: by the single request that were a sure difference."""
    given = [(Turn(np.full(1000, 0.010), 1000, 1.0), Turn(np.full(1000, 0.010), 1000, 1.0)) for _ in range(11)]
    given[3] = (Turn(np.full(1000, 0.015), 1000, 1.0), given[3][1])
    assert not compare(given)["mean"].told_apart


def test_too_little_says_nothing() -> None:
    assert compare([]) == {}
    assert compare(pairs(MIN_PAIRS - 1, 0.0, seed=1)) == {}
    assert compare(pairs(MIN_PAIRS, 0.0, seed=1, requests=11)) == {}
    none = Turn(np.empty(0), 0, 0.1)
    assert compare([(none, off) for _, off in pairs(11, 0.0, seed=1)]) == {}
    assert "p99" not in compare(pairs(MIN_PAIRS, 0.0, seed=1, requests=50))
    # nobody to share the CPU time of a turn
    walls = pairs(MIN_PAIRS, 0.0, seed=1)
    assert "cpu" not in compare([(Turn(on.walls_s, 0, 1.0), off) for on, off in walls])


def test_equal_turns_without_time_are_no_division_by_zero() -> None:
    still = Turn(np.zeros(100), 100, 0.0)
    found = compare([(still, still)] * MIN_PAIRS)
    assert not found["p50"].told_apart
    assert math.isnan(found["p50"].ratio)
