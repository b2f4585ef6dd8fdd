"""When to try a backend again that has failed. Pure: the clock and the dice are given."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import StrEnum

#: The first wait is at most this long, each further one at most twice as long as the one before.
FIRST_S = 1.0
MOST_S = 60.0
#: A backend that asks for more patience than this is asked again nevertheless.
MOST_ASKED_S = 600.0


class State(StrEnum):
    CLOSED = "closed"  #: the backend takes what it is sent
    OPEN = "open"  #: it is left alone for a while
    HALF_OPEN = "half_open"  #: it is tried, with one batch


class Breaker:
    """Opens on any failure, for a random time below a bound that doubles (full jitter): agents that have lost the
    same backend at the same moment do not come back to it together. For one thread; ``state`` may be read by all.
    """

    def __init__(
        self, now_s: Callable[[], float] = time.monotonic, dice: Callable[[], float] = random.random
    ) -> None:
        self.state = State.CLOSED
        self._now_s = now_s
        self._dice = dice  # 0 to 1
        self._failures = 0  # one after the other
        self._until_s = 0.0

    def wait_s(self) -> float:
        """For how long the backend must be left alone; 0: it may be tried now."""
        if self.state is not State.OPEN:
            return 0.0
        left_s = self._until_s - self._now_s()
        if left_s > 0:
            return left_s
        self.state = State.HALF_OPEN
        return 0.0

    def succeeded(self) -> None:
        self.state = State.CLOSED
        self._failures = 0

    def failed(self, after_s: float | None = None) -> None:
        """``after_s``: for how long the backend has asked to be left alone, if it has."""
        bound_s = min(MOST_S, FIRST_S * 2.0 ** min(self._failures, 32))
        asked_s = min(after_s or 0.0, MOST_ASKED_S)
        self._failures += 1
        self._until_s = self._now_s() + max(asked_s, self._dice() * bound_s)
        self.state = State.OPEN
