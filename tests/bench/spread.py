"""Statistics of repeated runs: how far they lie apart, and how sure a ratio of two kinds of them is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

Figures = dict[str, Any]

_RESAMPLES = 10_000


def spread(values: Sequence[float]) -> Figures:
    return {"min": min(values), "median": statistics.median(values), "max": max(values), "n": len(values)}


def ratio(with_agent: Sequence[float], without: Sequence[float]) -> Figures:
    """Median of the ratios of runs that were neighbours in time, with its 95 % bootstrap interval."""
    ratios = np.array(with_agent) / np.array(without)
    picks = np.random.default_rng(0).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), (2.5, 97.5))
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high), "n": len(ratios)}


def turns(kinds: Sequence[str], rounds: int) -> list[list[str]]:
    """Every kind once a round; each round begins with the next one, so that none always follows the same."""
    return [[*kinds[at:], *kinds[:at]] for at in (turn % len(kinds) for turn in range(rounds))]
