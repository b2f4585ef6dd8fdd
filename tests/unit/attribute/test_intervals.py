from collections import Counter
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tailspan.attribute import intervals as module
from tailspan.attribute.intervals import Tiles, disjoint, tile, tile_summed


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_an_interval_without_covers_is_one_gap() -> None:
    tiles = tile(ints(0), ints(10), ints(20), ints(), ints(), ints())

    assert (tiles.start.tolist(), tiles.end.tolist(), tiles.cover.tolist()) == ([10], [20], [-1])


def test_covers_are_cut_to_the_interval_and_gaps_fill_the_rest() -> None:
    tiles = tile(ints(3), ints(10), ints(20), ints(2, 3, 3, 4), ints(0, 5, 15, 11), ints(99, 12, 17, 12))

    assert tiles.start.tolist() == [10, 12, 15, 17]
    assert tiles.end.tolist() == [12, 15, 17, 20]
    assert tiles.cover.tolist() == [1, -1, 2, -1]


def test_an_empty_interval_has_no_parts() -> None:
    assert not len(tile(ints(0), ints(10), ints(10), ints(0), ints(0), ints(99)).start)


def test_a_cover_that_lies_inside_an_earlier_one_becomes_empty() -> None:
    start, end = disjoint(ints(0, 0, 0, 1), ints(0, 2, 8, 0), ints(10, 5, 12, 3))

    assert list(zip(start.tolist(), end.tolist(), strict=True)) == [(0, 10), (10, 10), (10, 12), (0, 3)]


intervals = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 30)), max_size=12)


@given(intervals, intervals)
def test_parts_tile_every_interval_and_each_lies_in_its_cover(
    asked: list[tuple[int, int, int]], covers: list[tuple[int, int, int]]
) -> None:
    # GIVEN intervals and covers that overlap in every way
    covers.sort()
    key, start, length = (ints(*column) for column in zip(*asked, strict=True)) if asked else (ints(),) * 3
    cover_key, cover_start, cover_length = (
        (ints(*column) for column in zip(*covers, strict=True)) if covers else (ints(),) * 3
    )
    cover_start, cover_end = disjoint(cover_key, cover_start, cover_start + cover_length)

    # WHEN they are tiled
    tiles = tile(key, start, start + length, cover_key, cover_start, cover_end)

    # THEN the parts of each join without a seam from its start to its end
    for index in range(len(key)):
        mine = tiles.parent == index
        edges = [int(start[index]), *tiles.end[mine].tolist()]
        assert tiles.start[mine].tolist() == edges[:-1]
        assert edges[-1] == start[index] + length[index]
    # AND a part lies in its cover, and every instant that some cover holds is in one
    for parent, part_start, part_end, cover in zip(tiles.parent, tiles.start, tiles.end, tiles.cover, strict=True):
        if cover >= 0:
            assert cover_key[cover] == key[parent]
            assert cover_start[cover] <= part_start < part_end <= cover_end[cover]
        else:
            same = cover_key == key[parent]
            assert not ((cover_start[same] < part_end) & (cover_end[same] > part_start)).any()


def held(tiles: Tiles, owner: np.ndarray) -> Counter[tuple[int, int]]:
    """(interval, owner) -> for how long; -1 is nobody."""
    found: Counter[tuple[int, int]] = Counter()
    for parent, start, end, cover in zip(tiles.parent, tiles.start, tiles.end, tiles.cover, strict=True):
        found[int(parent), int(owner[cover]) if cover >= 0 else -1] += int(end - start)
    return found


@given(intervals, intervals, st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_summed_parts_tile_every_interval_and_give_each_owner_what_it_had(
    asked: list[tuple[int, int, int]], covers: list[tuple[int, int, int]], owners: list[int]
) -> None:
    covers.sort()
    key, start, length = (ints(*column) for column in zip(*asked, strict=True)) if asked else (ints(),) * 3
    cover_key, cover_start, cover_length = (
        (ints(*column) for column in zip(*covers, strict=True)) if covers else (ints(),) * 3
    )
    of = (cover_key, *disjoint(cover_key, cover_start, cover_start + cover_length))
    owner = ints(*owners[: len(covers)])

    exact = tile(key, start, start + length, *of)
    with mock.patch.object(module, "MANY_COVERS", 2), mock.patch.object(module, "STRETCHES", 2):
        summed = tile_summed(key, start, start + length, *of, owner)

    assert held(summed, owner) == held(exact, owner)
    assert (np.diff(summed.parent) >= 0).all()
    for index in range(len(key)):
        mine = summed.parent == index
        edges = [int(start[index]), *summed.end[mine].tolist()]
        assert summed.start[mine].tolist() == edges[:-1]
        assert edges[-1] == start[index] + length[index]


def test_an_interval_of_few_covers_is_told_exactly() -> None:
    of = ints(*[0] * 50), np.arange(50) * 10, np.arange(50) * 10 + 7
    exact, summed = (
        f(ints(0), ints(3), ints(480), *of, *more) for f, more in ((tile, ()), (tile_summed, (of[0],)))
    )
    for name in ("parent", "start", "end", "cover"):
        assert getattr(summed, name).tolist() == getattr(exact, name).tolist()


def test_the_parts_of_an_interval_are_bounded_and_near_their_time() -> None:
    # GIVEN two that hand a CPU to each other 100,000 times, each for as long as the next, and nobody in between
    n = 100_000
    begins = np.arange(n) * 10
    of = np.zeros(n, np.int64), begins, begins + np.where(np.arange(n) % 2, 3, 6)
    owner = np.arange(n) % 2
    tiles = tile_summed(ints(0), ints(0), ints(10 * n), *of, owner)
    # THEN each has one part in each stretch, in which it had the CPU as long
    assert len(tiles.parent) == module.STRETCHES * 3
    stretch = 10 * n / module.STRETCHES
    for number, share in ((0, 0.6), (1, 0.3)):
        mine = tiles.cover >= 0
        mine[mine] = owner[tiles.cover[mine]] == number
        assert (abs((tiles.end - tiles.start)[mine] - share / 2 * stretch) <= 10).all()
        assert (tiles.start[mine] // stretch == np.arange(module.STRETCHES)).all()
