"""The arithmetic of the scorecard, and that every file under ``faults/`` is one."""

from __future__ import annotations

import pytest

from tailspan.attribute.causes import Cause
from tests.scorecard.fault import blame, discover
from tests.scorecard.load import Asked
from tests.scorecard.score import AFTER_NS, Stretch, When, percentile, when
from tests.scorecard.truth import union_ns

S = 1_000_000_000
STRETCH = Stretch(10 * S, 11 * S, 13 * S, 14 * S, blame(Cause.IO, None))


@pytest.mark.parametrize(
    ("sent", "answered", "phase"),
    [
        (8 * S, 10 * S, When.HEALTHY),
        (8 * S, 10 * S + 1, When.NEITHER),
        (10 * S, 11 * S, When.NEITHER),
        (10 * S, 11 * S + 1, When.FAULTED),
        (9 * S, 20 * S, When.FAULTED),
        (13 * S - 1, 14 * S, When.FAULTED),
        (13 * S, 14 * S, When.NEITHER),
        (14 * S + AFTER_NS - 1, 16 * S, When.NEITHER),
        (14 * S + AFTER_NS, 16 * S, When.HEALTHY),
    ],
)
def test_a_request_is_faulted_if_it_overlaps_the_fault_and_healthy_if_it_is_clear_of_it(
    sent: int, answered: int, phase: When
) -> None:
    found, stretch = when(Asked("1", "plain", sent, answered, 200, 1, -1), [STRETCH])

    assert found is phase
    assert (stretch is STRETCH) == (phase is When.FAULTED)


def test_time_that_is_told_twice_counts_once_and_only_inside_the_window() -> None:
    assert union_ns([(5, 10), (7, 12), (20, 30), (1, 3)], 2, 25) == 1 + 7 + 5
    assert union_ns([(0, 100)], 10, 20) == 10
    assert union_ns([], 0, 10) == 0


def test_percentiles_are_values_that_occur() -> None:
    assert percentile([3, 1, 2], 50) == 2
    assert percentile(list(range(1, 101)), 99) == 99
    assert percentile([], 50) == 0


def test_every_fault_says_what_it_is_and_some_are_short() -> None:
    faults = discover()

    assert len(faults) >= 22
    assert all(fault.what and fault.what[-1] != "." for fault in faults.values())
    assert 5 <= sum(fault.short for fault in faults.values()) <= 8
