import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tailspan.attribute.intervals import disjoint, tile


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
