"""The one operation that attribution is made of: tile intervals by other intervals of the same key.

Who held the CPU during a wait, which batch a thread worked for while a request queued, what a thread did during a
stretch of the critical path: each asks for the parts of an interval that lie inside given disjoint intervals, and
for the parts that lie in none. The parts tile the interval exactly, so sums are conserved whatever the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Tiles:
    """Parts in order of their parent, then of time. ``cover`` is -1 where no cover lies."""

    parent: Ints
    start: Ints
    end: Ints
    cover: Ints


def tile(key: Ints, start: Ints, end: Ints, cover_key: Ints, cover_start: Ints, cover_end: Ints) -> Tiles:
    """Tile each interval ``[start, end)`` by the covers of its key.

    Keys are small non-negative integers. Covers must be sorted by (key, start) and disjoint within a key
    (see :func:`disjoint`). Empty intervals give no parts. O((n + m) log m + parts).
    """
    if not len(start):
        nothing = np.empty(0, np.int64)
        return Tiles(nothing, nothing, nothing, nothing)
    # One sortable number for (key, time): times are taken from the earliest, cut to the intervals' range.
    origin, last = int(start.min()), int(end.max())
    span = last - origin + 2
    from_ = np.clip(cover_start, origin, last + 1)
    to = np.clip(cover_end, origin, last + 1)
    base, cover_base = key.astype(np.int64) * span - origin, cover_key.astype(np.int64) * span - origin
    first = np.searchsorted(cover_base + to, base + start, side="right")
    past = np.searchsorted(cover_base + from_, base + end, side="left")
    count = np.maximum(past - first, 0)

    # Each interval has its covers and a gap before, between and behind them: 2 * count + 1 candidates.
    width = 2 * count + 1
    parent = np.repeat(np.arange(len(start)), width)
    position = np.arange(len(parent)) - np.repeat(np.cumsum(width) - width, width)
    nth = first[parent] + position // 2  # the cover itself, or the one behind the gap
    is_cover = position % 2 == 1
    low, high = start[parent], end[parent]
    leads = position == 0
    trails = position == width[parent] - 1
    pad_end = np.append(cover_end, 0)
    pad_start = np.append(cover_start, 0)
    part_start = np.where(is_cover, pad_start[nth], np.where(leads, low, pad_end[nth - 1]))
    part_end = np.where(is_cover, pad_end[nth], np.where(trails, high, pad_start[nth]))
    part_start = np.clip(part_start, low, high)
    part_end = np.clip(part_end, low, high)
    keep = part_end > part_start
    return Tiles(parent[keep], part_start[keep], part_end[keep], np.where(is_cover, nth, -1)[keep])


def tile_by_thread(rows: tuple[Ints, Ints, Ints], covers: tuple[Ints, Ints, Ints]) -> Tiles:
    """Tile (tid, start, end) by covers of the same columns, sorted by (tid, start), that may overlap."""
    tid, start, end = rows
    cover_tid, cover_start, cover_end = covers
    _, key = np.unique(np.concatenate((tid, cover_tid)), return_inverse=True)
    key, cover_key = key[: len(tid)].astype(np.int64), key[len(tid) :].astype(np.int64)
    return tile(key, start, end, cover_key, *disjoint(cover_key, cover_start, cover_end))


def disjoint(key: Ints, start: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Cut intervals sorted by (key, start) so that none overlaps an earlier one of its key.

    Overlap should not happen; after a lost record it can, and time must not be counted twice. An interval that
    lies wholly inside earlier ones becomes empty.
    """
    if not len(start):
        return start, end
    origin = int(start.min())
    span = int(end.max()) - origin + 1
    reach = np.maximum.accumulate(key * span + (end - origin))  # keys ascend, so each begins above the last
    before = np.concatenate(([0], reach[:-1])) - key * span + origin
    cut_start = np.maximum(start, before)
    return cut_start, np.maximum(end, cut_start)
