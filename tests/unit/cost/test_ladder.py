"""What is shed, and when: the ladder alone, on a clock of its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tailspan.attribute.shedding import STEPS
from tailspan.config import Budget
from tailspan.cost.ladder import Ladder, Pace

MIB = 1 << 20
NAMES = [step.name for step in STEPS]


class Clock:
    """Feeds a ladder a second at a time."""

    def __init__(self, budget: Budget, pace: Pace | None = None) -> None:
        self.ladder = Ladder(budget, pace)
        self.now_s = 1000.0

    def run(self, seconds: int, cpu: float, rss: int = 0, idle: tuple[str, ...] = ()) -> list[int]:
        levels = []
        for _ in range(seconds):
            self.now_s += 1
            levels.append(self.ladder.feed(self.now_s, cpu, rss, idle))
        return levels


def test_above_the_budget_a_step_is_shed_each_ten_seconds_in_the_order_of_the_table() -> None:
    clock = Clock(Budget(cpu=0.25))
    levels = clock.run(100, cpu=0.3)

    assert levels[:10] == [0] * 10
    assert levels[10] == 1
    assert sorted(levels) == levels
    assert levels[-1] == len(STEPS)
    assert [levels.count(level) for level in range(1, len(STEPS))] == [11] * (len(STEPS) - 1)
    assert list(clock.ladder.shed()) == NAMES
    assert set(clock.ladder.shed().values()) == {"cpu"}


def test_a_short_peak_sheds_nothing() -> None:
    clock = Clock(Budget(cpu=0.25))
    for _ in range(7):
        assert set(clock.run(9, cpu=2.0)) == {0}
        assert set(clock.run(1, cpu=0.2)) == {0}


def test_below_the_low_mark_one_step_is_taken_back_each_thirty_seconds() -> None:
    clock = Clock(Budget(cpu=0.1, rss_mib=0))
    clock.run(31, cpu=0.2)
    assert list(clock.ladder.shed()) == NAMES[:2]
    # between the marks it stays
    assert set(clock.run(120, cpu=0.08)) == {2}
    levels = clock.run(70, cpu=0.06)
    assert [levels.count(level) for level in (2, 1)] == [30, 31]
    assert levels[-1] == 0


def test_memory_has_a_budget_of_its_own_and_says_so() -> None:
    clock = Clock(Budget(cpu=0.25, rss_mib=100))
    clock.run(11, cpu=0.0, rss=101 * MIB)
    assert clock.ladder.shed() == {NAMES[0]: "memory"}
    # what is resident hardly shrinks: 90 % is low
    assert clock.run(40, cpu=0.0, rss=95 * MIB)[-1] == 1
    assert clock.run(40, cpu=0.0, rss=89 * MIB)[-1] == 0


def test_a_step_that_saves_nothing_now_goes_together_with_the_next() -> None:
    clock = Clock(Budget(cpu=0.1))
    assert clock.run(11, cpu=0.2, idle=("syscalls", "gpu_calls"))[-1] == 3
    assert list(clock.ladder.shed()) == ["syscalls", "gpu_calls", "slices"]
    assert clock.run(31, cpu=0.01, idle=("syscalls", "gpu_calls"))[-1] == 0


def test_no_budget_sheds_nothing_and_another_one_begins_anew() -> None:
    clock = Clock(Budget(cpu=0, rss_mib=0))
    assert set(clock.run(50, cpu=8.0, rss=1 << 40)) == {0}
    clock.ladder.change(Budget(cpu=0.001))
    assert clock.run(22, cpu=0.2)[-1] == 2
    clock.ladder.change(Budget(cpu=0.001))  # the same is no other
    assert clock.ladder.level == 2
    clock.ladder.change(Budget(cpu=0.5))
    assert (clock.ladder.level, clock.ladder.shed()) == (0, {})


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 512)), max_size=200))
def test_it_never_leaves_its_bounds_nor_takes_two_steps_at_once(readings: list[tuple[float, int]]) -> None:
    ladder = Ladder(Budget())
    before = 0
    for second, (cpu, mib) in enumerate(readings):
        level = ladder.feed(float(second), cpu, mib * MIB)
        assert 0 <= level <= len(STEPS)
        assert abs(level - before) <= 1
        assert len(ladder.shed()) == level
        before = level
