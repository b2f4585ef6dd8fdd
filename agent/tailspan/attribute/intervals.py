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

#: An interval with more covers is told in at most so many stretches, see :func:`tile_summed`.
MANY_COVERS, STRETCHES = 1024, 64


@dataclass(slots=True)
class Tiles:
    """Parts in order of their parent, then of time. ``cover`` is -1 where no cover lies."""

    parent: Ints
    start: Ints
    end: Ints
    cover: Ints


_NOTHING = Tiles(*(np.empty(0, np.int64) for _ in range(4)))


def tile(key: Ints, start: Ints, end: Ints, cover_key: Ints, cover_start: Ints, cover_end: Ints) -> Tiles:
    """Tile each interval ``[start, end)`` by the covers of its key.

    Keys are small non-negative integers. Covers must be sorted by (key, start) and disjoint within a key
    (see :func:`disjoint`). Empty intervals give no parts. O((n + m) log m + parts).
    """
    if not len(start):
        return _NOTHING
    first, past = _covers_of(key, start, end, cover_key, cover_start, cover_end)
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


def tile_summed(
    key: Ints, start: Ints, end: Ints, cover_key: Ints, cover_start: Ints, cover_end: Ints, owner: Ints
) -> Tiles:
    """As :func:`tile`, but of many covers an ``owner`` has :data:`STRETCHES` parts of an interval at the most.

    Beyond :data:`MANY_COVERS` its covers are dealt to so many stretches, in each of which all of an owner are one
    part, of its first cover there. How long each owner has covered the interval stays exact; when, is known to a
    stretch.
    """
    if not len(start):
        return _NOTHING
    first, past = _covers_of(key, start, end, cover_key, cover_start, cover_end)
    many = past - first > MANY_COVERS
    few = np.flatnonzero(~many)
    tiles = tile(key[few], start[few], end[few], cover_key, cover_start, cover_end)
    parts = [Tiles(few[tiles.parent], tiles.start, tiles.end, tiles.cover)]
    for one in np.flatnonzero(many).tolist():
        of = slice(int(first[one]), int(past[one]))
        low, high = (np.clip(times[of], start[one], end[one]) for times in (cover_start, cover_end))
        part_start, part_end, cover = _summed(low, high, owner[of])
        parts.append(_with_gaps(one, int(start[one]), int(end[one]), part_start, part_end, cover + of.start))
    if len(parts) == 1:
        return parts[0]
    joined = Tiles(*(np.concatenate(column) for column in zip(*map(_columns, parts), strict=True)))
    order = np.argsort(joined.parent, kind="stable")
    return Tiles(*(column[order] for column in _columns(joined)))


def _summed(start: Ints, end: Ints, owner: Ints) -> tuple[Ints, Ints, Ints]:
    """Disjoint intervals in order -> (start, end, the first of them) of a part an owner and stretch, in order."""
    stretch = np.arange(len(start)) * STRETCHES // len(start)
    owners, of = np.unique(owner, return_inverse=True)
    found, first, which = np.unique(stretch * len(owners) + of, return_index=True, return_inverse=True)
    length = np.zeros(len(found), np.int64)
    np.add.at(length, which, end - start)
    order = np.lexsort((first, found // len(owners)))
    in_, first, length = (found // len(owners))[order], first[order], length[order]
    # Side by side from where their stretch begins; what is left of it at its end belongs to nobody.
    before = np.cumsum(length) - length
    at = start[np.searchsorted(stretch, in_)] + before - before[np.searchsorted(in_, in_)]
    return at, at + length, first


def _with_gaps(parent: int, low: int, high: int, start: Ints, end: Ints, cover: Ints) -> Tiles:
    """These disjoint parts of ``[low, high)`` in order, and what lies between them."""
    all_starts = np.concatenate(([low], end, start))
    all_ends = np.concatenate((start, [high], end))
    covers = np.concatenate((np.full(len(end) + 1, -1), cover))
    keep = np.flatnonzero(all_ends > all_starts)
    order = keep[np.argsort(all_starts[keep], kind="stable")]
    return Tiles(np.full(len(order), parent), all_starts[order], all_ends[order], covers[order])


def _covers_of(
    key: Ints, start: Ints, end: Ints, cover_key: Ints, cover_start: Ints, cover_end: Ints
) -> tuple[Ints, Ints]:
    """[first, past) of the covers that overlap each interval."""
    # One sortable number for (key, time): times are taken from the earliest, cut to the intervals' range.
    origin, last = int(start.min()), int(end.max())
    span = last - origin + 2
    from_ = np.clip(cover_start, origin, last + 1)
    to = np.clip(cover_end, origin, last + 1)
    base, cover_base = key.astype(np.int64) * span - origin, cover_key.astype(np.int64) * span - origin
    first = np.searchsorted(cover_base + to, base + start, side="right")
    past = np.searchsorted(cover_base + from_, base + end, side="left")
    return first, past


def _columns(tiles: Tiles) -> tuple[Ints, Ints, Ints, Ints]:
    return tiles.parent, tiles.start, tiles.end, tiles.cover


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
