"""How many steps of :data:`tailspan.attribute.shedding.STEPS` are shed: readings in, a level out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tailspan.attribute.shedding import CPU, MEMORY, STEPS
from tailspan.config import Budget

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Pace:
    """The CPU share that is fed is an average over ``above_s``: so a step shows its effect before the next one."""

    above_s: float = 10.0  #: so long it must be above the budget, and so long ago the last change must be
    below_s: float = 30.0  #: so long it must be below the low marks before one step is taken back
    low_cpu: float = 0.7  #: low marks, as shares of the budget
    low_rss: float = 0.9  #: nearer: what is resident hardly ever goes down by much


class Ladder:
    """Not thread-safe. A budget of 0 is none: without any nothing is shed."""

    def __init__(self, budget: Budget, pace: Pace | None = None) -> None:
        self.level = 0  #: steps that are shed
        self._budget, self._pace = budget, pace or Pace()
        self._why: list[str] = []  # of each step that is shed
        self._above_since_s: float | None = None
        self._below_since_s: float | None = None
        self._changed_s = float("-inf")

    def change(self, budget: Budget) -> None:
        """Another budget is another question: nothing is shed, until it is found to be needed."""
        if budget != self._budget:
            self._budget = budget
            self._why.clear()
            self.level = 0
            self._above_since_s = self._below_since_s = None

    def shed(self) -> dict[str, str]:
        """Step -> which budget it was shed for."""
        return {step.name: why for step, why in zip(STEPS, self._why, strict=False)}

    def feed(self, now_s: float, cpu: float, rss: int, idle: Collection[str] = ()) -> int:
        """``cpu``: of one CPU, over the last ``above_s``; ``rss``: bytes. ``idle``: steps that save nothing now,
        which are passed together with the next one.
        """
        above = self._above(cpu, rss)
        low = self._is_low(cpu, rss)
        self._above_since_s = (self._above_since_s or now_s) if above else None
        self._below_since_s = (self._below_since_s or now_s) if low else None
        settled = now_s - self._changed_s >= self._pace.above_s
        if self._lasts(self._above_since_s, now_s, self._pace.above_s) and settled and self.level < len(STEPS):
            self._why.append(above)
            while len(self._why) < len(STEPS) and STEPS[len(self._why) - 1].name in idle:
                self._why.append(above)
            self._changed(now_s)
        elif self._lasts(self._below_since_s, now_s, self._pace.below_s) and self.level:
            self._why.pop()
            while self._why and STEPS[len(self._why) - 1].name in idle:
                self._why.pop()
            self._changed(now_s)
        return self.level

    def _changed(self, now_s: float) -> None:
        self.level, self._changed_s = len(self._why), now_s
        self._above_since_s = self._below_since_s = None

    def _above(self, cpu: float, rss: int) -> str:
        budget = self._budget
        if budget.cpu and cpu > budget.cpu:
            return CPU
        return MEMORY if budget.rss_mib and rss > budget.rss_mib * _MIB else ""

    def _is_low(self, cpu: float, rss: int) -> bool:
        budget, pace = self._budget, self._pace
        cpu_low = not budget.cpu or cpu < pace.low_cpu * budget.cpu
        return cpu_low and (not budget.rss_mib or rss < pace.low_rss * budget.rss_mib * _MIB)

    @staticmethod
    def _lasts(since_s: float | None, now_s: float, long_s: float) -> bool:
        return since_s is not None and now_s - since_s >= long_s
