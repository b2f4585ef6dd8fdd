"""How requests with probes on differ from requests with probes off, and how sure that is.

Turns of the two come in pairs, each pair close in time: the load may change from pair to pair. So the pair is what
is resampled for the intervals, never the single request: requests of one turn are alike for reasons of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2000
#: Without so many pairs, and so many requests of each kind, nothing is said; and nothing of the 99th percentile
#: without so many.
MIN_PAIRS, MIN_REQUESTS, MIN_FOR_P99 = 4, 50, 300


@dataclass(frozen=True, slots=True)
class Turn:
    """One stretch of time with probes on, or off."""

    walls_s: Floats  #: of requests that lie wholly in it, or a random part of those
    served: int  #: requests that ended in it
    cpu_s: float  #: CPU time of the processes that served them, in it


@dataclass(frozen=True, slots=True)
class Difference:
    """On less off, in seconds. Lower and upper: of the 95 % interval."""

    on_s: float
    off_s: float
    lower_s: float
    upper_s: float
    ratio_lower: float
    ratio_upper: float

    @property
    def estimate_s(self) -> float:
        return self.on_s - self.off_s

    @property
    def ratio(self) -> float:
        return self.on_s / self.off_s if self.off_s else math.nan

    @property
    def told_apart(self) -> bool:
        return not self.lower_s <= 0 <= self.upper_s


def compare(pairs: Sequence[tuple[Turn, Turn]], seed: int = 0) -> dict[str, Difference]:
    """``pairs``: (on, off). p50, p99 and mean of the wall time, and cpu, the CPU time a request; what cannot be
    told is not there. Empty where there are too few pairs or requests.
    """
    pairs = [(on, off) for on, off in pairs if len(on.walls_s) and len(off.walls_s)]
    counts = [sum(len(pair[side].walls_s) for pair in pairs) for side in (0, 1)]
    if len(pairs) < MIN_PAIRS or min(counts) < MIN_REQUESTS:
        return {}
    times = np.random.default_rng(seed).multinomial(len(pairs), [1 / len(pairs)] * len(pairs), RESAMPLES)
    weights = np.vstack([np.ones(len(pairs), np.int64), times])  # the first is the sample itself
    sides = [_Side([pair[side] for pair in pairs]) for side in (0, 1)]
    asked: dict[str, Callable[[_Side], Floats]] = {"p50": lambda side: side.quantile(0.5, weights)}
    if min(counts) >= MIN_FOR_P99:
        asked["p99"] = lambda side: side.quantile(0.99, weights)
    asked["mean"] = lambda side: side.mean(weights)
    if all(turn.served for side in sides for turn in side.turns):
        asked["cpu"] = lambda side: side.cpu(weights)
    return {name: _difference(of(sides[0]), of(sides[1]), len(pairs)) for name, of in asked.items()}


class _Side:
    """All turns of one kind, in the order of their pairs."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.turns = turns
        walls = np.concatenate([turn.walls_s for turn in turns])
        order = np.argsort(walls)
        self._walls = walls[order]
        self._of = np.repeat(np.arange(len(turns)), [len(turn.walls_s) for turn in turns])[order]

    def quantile(self, share: float, weights: npt.NDArray[np.int64]) -> Floats:
        found = np.empty(len(weights))
        for at, weight in enumerate(weights):
            below = np.cumsum(weight[self._of])
            # Between the two that are next to it, as numpy's own quantile.
            rank = share * (below[-1] - 1)
            low, high = np.searchsorted(below, (math.floor(rank) + 1, math.ceil(rank) + 1))
            part = rank - math.floor(rank)
            found[at] = (1 - part) * self._walls[low] + part * self._walls[high]
        return found

    def mean(self, weights: npt.NDArray[np.int64]) -> Floats:
        sums = np.array([turn.walls_s.sum() for turn in self.turns])
        counts = np.array([len(turn.walls_s) for turn in self.turns])
        mean: Floats = (weights @ sums) / (weights @ counts)
        return mean

    def cpu(self, weights: npt.NDArray[np.int64]) -> Floats:
        spent = np.array([turn.cpu_s for turn in self.turns])
        served = np.array([turn.served for turn in self.turns])
        cpu: Floats = (weights @ spent) / (weights @ served)
        return cpu


def _difference(on: Floats, off: Floats, pairs: int) -> Difference:
    tail = _tail(pairs)
    lower, upper = np.quantile((on - off)[1:], (tail, 1 - tail))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_lower, ratio_upper = np.quantile((on / off)[1:], (tail, 1 - tail))
    return Difference(
        *(float(on[0]), float(off[0]), float(lower), float(upper), float(ratio_lower), float(ratio_upper))
    )


def _tail(pairs: int) -> float:
    """Share of the resamples beyond either bound.

    Few pairs vary less among their own resamples than in truth: the bounds are those of Student's t instead
    (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015: the expanded percentile interval).
    """
    return NormalDist().cdf(-math.sqrt(pairs / (pairs - 1)) * _student_t((1 + LEVEL) / 2, pairs - 1))


def _student_t(share: float, freedom: int) -> float:
    """Quantile of Student's t, by its expansion around the normal one (Abramowitz and Stegun, 26.7.5)."""
    x = NormalDist().inv_cdf(share)
    return (
        x
        + (x**3 + x) / (4 * freedom)
        + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * freedom**2)
        + (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / (384 * freedom**3)
    )
