import numpy as np

from tailspan.timeline.tables import LOSS_WINDOW
from tailspan.timeline.window import Strings, Window
from tailspan.wire.events import THREAD_CYCLE

SECOND = 1_000_000_000


def cycles(*spans: tuple[int, int]) -> np.ndarray:
    rows = np.zeros(len(spans), THREAD_CYCLE)
    for row, (run, on) in zip(rows, spans, strict=True):
        row["run_mono_ns"], row["on_mono_ns"] = run, on
    return rows


def test_a_cut_gives_what_touches_the_time() -> None:
    window = Window()
    window.cycles.append(cycles((0, 10), (10, 20), (20, 30)))
    window.cycles.append(cycles((30, 40)))

    assert window.sorted_cycles(12, 18)["run_mono_ns"].tolist() == [10]
    assert window.sorted_cycles(20, 35)["run_mono_ns"].tolist() == [10, 20, 30]


def test_a_cut_finds_what_came_early_and_lasted() -> None:
    window = Window()
    window.cycles.append(cycles((0, 10)))
    window.cycles.append(cycles((5, 100)))
    window.cycles.append(cycles((20, 30)))

    assert window.cycles.cut(50, 60)["run_mono_ns"].tolist() == [5]
    assert window.cycles.cut(8, 25)["run_mono_ns"].tolist() == [0, 5, 20]


def test_what_is_older_than_the_window_goes_without_being_a_loss() -> None:
    window = Window(seconds=1)
    window.cycles.append(cycles((0, 10)))
    window.cycles.append(cycles((SECOND, 2 * SECOND)))

    assert not len(window.evict(2 * SECOND + 5))
    assert window.cycles.rows == 1


def test_what_goes_because_there_is_too_much_is_a_loss_in_its_time() -> None:
    window = Window(seconds=10, max_rows=1000)
    for second in range(3):
        window.cycles.append(cycles(*[(second * SECOND + i, second * SECOND + i + 1) for i in range(600)]))

    (loss,) = window.evict(3 * SECOND)

    assert (int(loss["count"]), int(loss["klass"])) == (1200, LOSS_WINDOW)
    assert int(loss["end_mono_ns"]) == SECOND + 600
    assert window.cycles.rows == 600
    assert len(window.losses.cut(0, 10)) == 1
    assert not len(window.losses.cut(2 * SECOND, 3 * SECOND))


def test_strings_beyond_the_limit_are_other_and_counted() -> None:
    strings = Strings(limit=4)

    found = [strings.all[strings.index(text)] for text in ("a", "b", "c", "d", "a")]

    assert found == ["a", "b", "(other)", "(other)", "a"]
    assert strings.overflowed == 2
