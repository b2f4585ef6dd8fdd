"""Statistics of repeated runs: how far they lie apart, and how sure a ratio of two kinds of them is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Figures = dict[str, Any]
Table = npt.NDArray[np.float64]

_RESAMPLES = 10_000


def spread(values: Sequence[float]) -> Figures:
    """Lowest, median and highest, and the median's 95 % bootstrap interval."""
    return {"min": min(values), "max": max(values), **estimate(values)}


def estimate(values: Sequence[float]) -> Figures:
    """The median, with its 95 % bootstrap interval."""
    return _sure(np.array(values)[:, None], lambda medians: medians[..., 0])


def ratio(with_agent: Sequence[float], without: Sequence[float]) -> Figures:
    """Median of the ratios of runs that were neighbours in time, with its 95 % bootstrap interval."""
    return estimate((np.array(with_agent) / np.array(without)).tolist())


def quotient_of_costs(ours: Sequence[float], theirs: Sequence[float], absent: Sequence[float]) -> Figures:
    """What part of the throughput without either ours costs, divided by the part that theirs costs.

    The quotient of two medians, with its 95 % bootstrap interval over rounds: in a single round it would be that
    of two small differences.
    """
    costs = 1 - np.array([ours, theirs]).T / np.array(absent)[:, None]
    return _sure(costs, lambda medians: medians[..., 0] / medians[..., 1])


def _sure(rounds: Table, figure: Callable[[Table], Table]) -> Figures:
    """``figure`` of the medians over rounds (rows) of each column, and of as many resamples of the rounds."""
    picks = np.random.default_rng(0).integers(0, len(rounds), (_RESAMPLES, len(rounds)))
    low, high = np.percentile(figure(np.median(rounds[picks], axis=1)), (2.5, 97.5))
    median = float(figure(np.median(rounds, axis=0)))
    return {"median": median, "low": float(low), "high": float(high), "n": len(rounds)}


def turns(kinds: Sequence[str], rounds: int) -> list[list[str]]:
    """Every kind once a round; each round begins with the next one, so that none always follows the same."""
    return [[*kinds[at:], *kinds[:at]] for at in (turn % len(kinds) for turn in range(rounds))]
