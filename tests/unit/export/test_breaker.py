from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan.export.otlp.breaker import MOST_ASKED_S, MOST_S, Breaker, State


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_it_opens_on_a_failure_and_tries_again_when_its_time_has_passed() -> None:
    clock = Clock()
    breaker = Breaker(clock, lambda: 1.0)
    assert (breaker.state, breaker.wait_s()) == (State.CLOSED, 0)

    breaker.failed()
    assert (breaker.state, breaker.wait_s()) == (State.OPEN, 1.0)
    clock.now_s += 1.0
    assert (breaker.wait_s(), breaker.state) == (0, State.HALF_OPEN)

    breaker.succeeded()
    assert (breaker.state, breaker.wait_s()) == (State.CLOSED, 0)


def test_waits_double_up_to_a_minute_and_a_success_begins_anew() -> None:
    clock = Clock()
    breaker = Breaker(clock, lambda: 1.0)
    waits = []
    for _ in range(9):
        breaker.failed()
        waits.append(breaker.wait_s())
        clock.now_s += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, MOST_S, MOST_S, MOST_S]

    breaker.succeeded()
    breaker.failed()
    assert breaker.wait_s() == 1


def test_the_wait_is_random_down_to_nothing() -> None:
    for share in (0.0, 0.23, 1.0):
        breaker = Breaker(Clock(), lambda share=share: share)  # type: ignore[misc]
        breaker.failed()
        breaker.failed()
        assert breaker.wait_s() == pytest.approx(2 * share)


@pytest.mark.parametrize(("asked_s", "wait_s"), [(0.5, 1.0), (23.0, 23.0), (86_400.0, MOST_ASKED_S)])
def test_a_backend_is_left_alone_as_long_as_it_asks_within_reason(asked_s: float, wait_s: float) -> None:
    breaker = Breaker(Clock(), lambda: 1.0)
    breaker.failed(asked_s)
    assert breaker.wait_s() == wait_s


@given(st.integers(0, 2**32), st.floats(0, 60))
def test_ten_minutes_without_a_backend_cost_few_attempts_and_its_return_is_seen_within_a_minute(
    seed: int, down_more_s: float
) -> None:
    # GIVEN a backend that is away for ten minutes and a little
    clock = Clock()
    breaker = Breaker(clock, random.Random(seed).random)
    back_s = clock.now_s + 600 + down_more_s

    # WHEN it is tried whenever the breaker allows it
    attempts = 0
    while True:
        clock.now_s += breaker.wait_s()
        attempts += 1
        if clock.now_s >= back_s:
            breaker.succeeded()
            break
        breaker.failed()
        clock.now_s += 0.01  # what a refused connection takes

    # THEN it was not besieged, and what waited goes out a minute later at most
    assert attempts < 100
    assert clock.now_s - back_s <= MOST_S
    assert breaker.state is State.CLOSED
