from __future__ import annotations

import pytest

from tailspan.views.table import bar, clip, duration, grid, pieces, plain, stretch, utc, wrap


@pytest.mark.parametrize(
    ("ns", "shown"),
    [
        (0, "0 ns"),
        (450, "450 ns"),
        (12_345, "12 µs"),
        (412_300_000, "412.3 ms"),
        (23_000_000_000, "23.00 s"),
        (100_000, "0.1 ms"),
    ],
)
def test_duration_is_in_the_unit_that_fits(ns: int, shown: str) -> None:
    assert duration(ns) == shown


def test_bar_is_as_long_as_its_share_to_an_eighth_of_a_cell() -> None:
    assert bar(1, 2, 10) == "█████"
    assert bar(1, 80, 10) == "▏"
    assert bar(0, 5, 10) == ""
    assert bar(1, 0, 10) == ""
    assert bar(7, 5, 10) == "█" * 10


def test_stretch_stands_at_its_place_and_is_never_invisible() -> None:
    assert stretch(50, 100, 100, 10) == "     █████"
    assert stretch(99.9, 100, 100, 10) == "         █"
    assert stretch(100, 100, 100, 10) == "         █"
    assert stretch(0, 0.1, 100, 10) == "█"


def test_terminal_escapes_in_names_are_made_harmless() -> None:
    assert plain("evil\x1b[2J\n\t\x9b") == "evil?[2J???"
    assert plain("µ ✓") == "µ ✓"


def test_clip_says_that_there_was_more() -> None:
    assert clip("stress-ng", 9) == "stress-ng"
    assert clip("stress-ng", 8) == "stress-…"


def test_pieces_are_never_broken() -> None:
    assert pieces(["aaa", "", "bbb", "cccc"], 8) == ["aaa  bbb", "cccc"]


def test_wrap_keeps_hyphenated_names_whole() -> None:
    assert wrap("behind stress-ng", 12) == ["behind", "stress-ng"]


def test_utc_has_milliseconds() -> None:
    assert utc(1_763_000_000_023_000_000) == "2025-11-13 02:13:20.023"


def test_grid_aligns_and_takes_from_the_elastic_column() -> None:
    rows = [("a", "name", "1"), ("bb", "a rather long name", "23")]
    assert grid(rows, 80, right=(2,)) == ["a   name                 1", "bb  a rather long name  23"]
    assert grid(rows, 17, right=(2,), elastic=1) == ["a   name        1", "bb  a rather…  23"]


def test_grid_without_rows_is_empty() -> None:
    assert grid([], 80) == []
