from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailspan.export.otlp import files
from tailspan.export.otlp.record import HEADER_SIZE, MAGIC, MOST, Batch, Counts, encode
from tailspan.export.otlp.spool import Spool
from tailspan.wire.otlp import Origin

MIB = 1 << 20
SMALL = 1 << 19  # of eight segments


def _batch(number: int, size: int = 100, **more: object) -> Batch:
    given: dict[str, object] = {"items": 1 + number % 7, "origin": (Origin.OWN, Origin.FORWARDED)[number % 2]}
    return Batch(random.Random(number).randbytes(size), **{**given, **more})  # type: ignore[arg-type]


def _drain(spool: Spool) -> list[Batch]:
    drained = []
    while batch := spool.peek():
        drained.append(batch)
        spool.done()
    return drained


def _items(batches: list[Batch]) -> Counter[Origin]:
    items: Counter[Origin] = Counter()
    for batch in batches:
        items[batch.origin] += batch.items
    return items


def _dropped(spool: Spool, reason: str = "") -> Counter[Origin]:
    items: Counter[Origin] = Counter()
    for (origin, why), count in spool.state().dropped.items():
        if reason in ("", why):
            items[origin] += count
    return items


def _segments(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{files.SUFFIX}"))


@contextmanager
def _as_after_a_kill(spool_folder: Path) -> Iterator[Path]:
    """A copy of what the kernel has of a spool that is still open."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "spool"
        shutil.copytree(spool_folder, copy)
        yield copy


def test_batches_come_out_as_they_went_in_and_in_order(tmp_path: Path) -> None:
    batches = [_batch(n, size=n * 37, is_json=n % 3 == 0, verdicts=n) for n in range(23)]
    with closing(Spool(tmp_path / "spool", MIB)) as spool:
        for batch in batches:
            spool.put(batch)
        assert spool.state().waiting.batches == 23
        assert spool.state().waiting.verdicts == sum(range(23))
        assert spool.peek() == spool.peek() == batches[0]
        assert spool.state().oldest_unix_ns == batches[0].created_unix_ns
        assert _drain(spool) == batches
        state = spool.state()
        assert (state.size_bytes, state.waiting.batches, state.oldest_unix_ns) == (0, 0, 0)
        assert not state.dropped


def test_what_was_not_done_is_there_after_a_close_and_after_a_kill(tmp_path: Path) -> None:
    batches = [_batch(n, size=3000) for n in range(101)]
    with closing(Spool(tmp_path / "spool", SMALL)) as spool:
        for batch in batches:
            spool.put(batch)
        for _ in range(23):
            spool.peek()
            spool.done()
        spool.peek()
        with _as_after_a_kill(tmp_path / "spool") as copy, closing(Spool(copy, SMALL)) as killed:
            assert killed.state().waiting.batches == 78
            assert _drain(killed) == batches[23:]
            assert not killed.state().dropped

    last = _batch(101)
    with closing(Spool(tmp_path / "spool", SMALL)) as spool:
        spool.put(last)
        assert _drain(spool) == [*batches[23:], last]
        assert not spool.state().dropped


def test_files_are_for_the_group_and_go_when_they_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "otlp" / "traces"
    with closing(Spool(folder, SMALL)) as spool:
        for n in range(23):
            spool.put(_batch(n, size=10_000))
        assert len(_segments(folder)) == 4
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}
        assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent)} == {0o750}
        _drain(spool)
        assert len(_segments(folder)) == 1
    with closing(Spool(folder, SMALL)) as spool:
        assert spool.peek() is None
    assert not _segments(folder)


def test_nothing_is_made_before_something_is_put(tmp_path: Path) -> None:
    with closing(Spool(tmp_path / "spool", MIB)) as spool:
        assert spool.peek() is None
    assert not (tmp_path / "spool").exists()


def test_full_the_oldest_go_and_are_counted_by_origin(tmp_path: Path) -> None:
    # GIVEN a spool that is overrun while its first batch is being sent
    batches = [_batch(n, size=10_000, verdicts=1) for n in range(101)]
    with closing(Spool(tmp_path / "spool", SMALL)) as spool:
        spool.put(batches[0])
        assert spool.peek() == batches[0]
        for batch in batches[1:]:
            spool.put(batch)
            assert sum(path.stat().st_size for path in _segments(tmp_path / "spool")) <= SMALL

        # THEN the one on its way is neither lost nor counted as lost
        lost = _dropped(spool, "spool_full")
        assert spool.peek() == batches[0]
        assert spool.state().waiting.batches + sum(spool.state().dropped_verdicts.values()) == 101

        # AND of the others the newest are there, and all others are counted
        drained = _drain(spool)
        kept = drained[1:]
        assert kept == batches[-len(kept) :]
        assert len(kept) * 10_000 > SMALL / 2
        assert lost + _items(drained) == _items(batches)
        assert spool.state().dropped_verdicts == {"spool_full": 101 - len(drained)}


def test_what_is_on_its_way_when_its_file_goes_is_counted_after_a_kill(tmp_path: Path) -> None:
    batches = [_batch(n, size=10_000) for n in range(101)]
    with closing(Spool(tmp_path / "spool", SMALL)) as spool:
        spool.put(batches[0])
        spool.peek()
        for batch in batches[1:]:
            spool.put(batch)
        lost = _dropped(spool, "spool_full")
        with _as_after_a_kill(tmp_path / "spool") as copy, closing(Spool(copy, SMALL)) as killed:
            assert _dropped(killed, "killed") == _items(batches[:1])
            assert lost + _dropped(killed) + _items(_drain(killed)) == _items(batches)


def test_a_batch_larger_than_the_spool_is_counted(tmp_path: Path) -> None:
    with closing(Spool(tmp_path / "spool", SMALL)) as spool:
        spool.put(_batch(1, size=SMALL))
        spool.put(_batch(2, size=SMALL - HEADER_SIZE))
        assert spool.state().dropped == {(Origin.FORWARDED, "too_large"): 2}
        assert len(_drain(spool)) == 1


def test_what_comes_after_the_end_is_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", MIB)
    spool.close()
    spool.close()
    spool.put(_batch(1))
    assert spool.state().dropped == {(Origin.FORWARDED, "shutdown"): 2}
    assert spool.peek() is None


def test_without_a_disk_batches_wait_in_memory_within_its_bound(tmp_path: Path) -> None:
    # GIVEN a folder that cannot be made, and memory for ten batches
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "spool"
    batches = [_batch(n, size=1000, verdicts=1) for n in range(23)]
    with closing(Spool(folder, MIB, memory_bytes=10_000)) as spool:
        # WHEN 23 are put
        for batch in batches:
            spool.put(batch)

        # THEN the newest ten wait, in order, and the others are counted
        assert _dropped(spool, "enotdir") == _items(batches[:13])
        assert spool.state().size_bytes == 10_000
        assert spool.peek() == batches[13]
        spool.done()

        # AND what waits goes to the disk as soon as there is one, before what comes then
        (tmp_path / "file").unlink()
        spool.put(_batch(23, created_unix_ns=1))
        assert len(_segments(folder)) == 1
        assert _drain(spool) == [*batches[14:], _batch(23, created_unix_ns=1)]
        assert spool.state().dropped_verdicts == {"enotdir": 13}


def test_what_no_disk_takes_is_counted_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file" / "spool", MIB)
    for n in range(23):
        spool.put(_batch(n))
    spool.peek()
    spool.close()
    assert _dropped(spool, "enotdir") == _items([_batch(n) for n in range(23)])
    assert spool.state().waiting.batches == 0


def test_a_folder_that_another_process_uses_is_left_to_it(tmp_path: Path) -> None:
    with closing(Spool(tmp_path / "spool", MIB)) as first:
        first.put(_batch(1))
        with closing(Spool(tmp_path / "spool", MIB)) as second:
            second.put(_batch(2))
            assert second.peek() == second.peek() != first.peek()
        assert _dropped(second, "eagain") == _items([_batch(2)])
        assert first.state().waiting.batches == 1


def test_a_file_that_is_deleted_under_it_is_counted_and_a_new_one_begun(tmp_path: Path) -> None:
    with closing(Spool(tmp_path / "spool", MIB)) as spool:
        spool.put(_batch(1))
        for path in _segments(tmp_path / "spool"):
            path.unlink()
        last = _batch(2)
        spool.put(last)
        assert _drain(spool) == [last]
        assert spool.state().dropped == {(Origin.FORWARDED, "damaged"): 2}


def test_all_files_deleted_between_two_lives_are_counted(tmp_path: Path) -> None:
    with closing(Spool(tmp_path / "spool", MIB)) as spool:
        spool.put(_batch(1))
    for path in _segments(tmp_path / "spool"):
        path.unlink()
    with closing(Spool(tmp_path / "spool", MIB)) as spool:
        assert spool.peek() is None
        assert spool.state().dropped == {(Origin.FORWARDED, "damaged"): 2}
        assert spool.state().waiting.batches == 0


def test_without_its_mark_the_oldest_file_is_sent_again_and_nothing_is_missing(tmp_path: Path) -> None:
    batches = [_batch(n, size=3000) for n in range(101)]
    with closing(Spool(tmp_path / "spool", SMALL)) as spool:
        for batch in batches:
            spool.put(batch)
        for _ in range(53):
            spool.peek()
            spool.done()
    (tmp_path / "spool" / "mark").write_bytes(b"no mark")
    with closing(Spool(tmp_path / "spool", SMALL)) as spool:
        drained = _drain(spool)
        assert drained == batches[-len(drained) :]
        assert 48 <= len(drained) <= 48 + 65536 // 3000
        assert not spool.state().dropped


def test_a_batch_that_looks_like_records_is_only_a_batch(tmp_path: Path) -> None:
    with closing(Spool(tmp_path / "spool", MIB)) as spool:
        spool.put(_batch(1))
        inner = _segments(tmp_path / "spool")[0].read_bytes()
        outer = Batch(inner + MAGIC * 23, 1, Origin.FORWARDED)
        spool.put(outer)
        assert _drain(spool)[1:] == [outer]


def test_what_others_have_put_there_does_no_harm(tmp_path: Path) -> None:
    # GIVEN a spool with a record that tells of more than was ever put in, and with files and folders of odd names
    with closing(Spool(tmp_path / "spool", MIB)) as spool:
        spool.put(_batch(1))
    foreign = _batch(2)
    with _segments(tmp_path / "spool")[0].open("ab") as file:
        file.write(encode(foreign, Counts(2**64 - 1, 2**64 - 1, 0, 0)))
        file.write(encode(foreign, Counts(10**6, 10**6, 0, 0)))
    for name in ("9" * 40, "²³", "note"):
        (tmp_path / "spool" / f"{name}{files.SUFFIX}").write_bytes(b"odd")
    (tmp_path / "spool" / f"{7:020d}{files.SUFFIX}").mkdir()

    # THEN what it had comes out, and it goes on
    with closing(Spool(tmp_path / "spool", MIB)) as spool:
        assert spool.peek() == _batch(1, created_unix_ns=spool.state().oldest_unix_ns)
        spool.put(_batch(3))
        drained = _drain(spool)
        assert _batch(3, created_unix_ns=drained[-1].created_unix_ns) == drained[-1]


def test_threads_that_put_and_one_that_takes_lose_nothing(tmp_path: Path) -> None:
    # GIVEN four threads, each with 230 batches of its own numbers
    def put(first: int) -> None:
        for number in range(first, 920, 4):
            spool.put(Batch(b"%d" % number, 1, Origin.OWN))

    with closing(Spool(tmp_path / "spool", SMALL)) as spool:
        threads = [threading.Thread(target=put, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()

        # WHEN another one takes meanwhile
        taken: list[int] = []
        while len(taken) < 920 and (any(thread.is_alive() for thread in threads) or spool.peek()):
            taken += [int(batch.payload) for batch in _drain(spool)]
        for thread in threads:
            thread.join()

        # THEN each comes once, and those of one thread in their order
        assert sorted(taken) == list(range(920))
        for first in range(4):
            assert [number for number in taken if number % 4 == first] == list(range(first, 920, 4))
        assert not spool.state().dropped


Damage = tuple[str, int, int, bytes]  # what, which segment, where, with what

damages = st.lists(
    st.tuples(
        st.sampled_from(["overwrite", "truncate", "cut out", "insert", "repeat", "delete"]),
        st.integers(0, 9),
        st.integers(0, 70_000),
        st.binary(min_size=1, max_size=200) | st.just(MAGIC),
    ),
    max_size=5,
)


def _damage(folder: Path, damage: Damage) -> None:
    what, which, where, data = damage
    paths = _segments(folder)
    if not paths:
        return
    path = paths[which % len(paths)]
    old = path.read_bytes()
    where %= len(old) + 1
    match what:
        case "overwrite":
            new = old[:where] + data + old[where + len(data) :]
        case "truncate":
            new = old[:where]
        case "cut out":
            new = old[:where] + old[where + len(data) :]
        case "insert":
            new = old[:where] + data + old[where:]
        case "repeat":
            new = old + old[:where]
        case _:
            path.unlink()
            return
    path.write_bytes(new)


@settings(max_examples=150)
@given(st.integers(1, 60), st.integers(0, 60), damages, st.sampled_from([37, 900, 5000, 40_000]))
def test_whatever_happens_to_the_files_each_item_is_delivered_once_in_order_or_counted(
    count: int, done: int, damage: list[Damage], size: int
) -> None:
    # GIVEN a spool from which some was delivered, and whose files are damaged after its process was killed
    batches = [_batch(n, size=size + n, verdicts=n % 3) for n in range(count)]
    with tempfile.TemporaryDirectory() as folder, closing(Spool(Path(folder) / "a", 4 * MIB)) as spool:
        for batch in batches:
            spool.put(batch)
        for _ in range(min(done, count)):
            spool.peek()
            spool.done()
        copy = Path(folder) / "b"
        shutil.copytree(Path(folder) / "a", copy)
        for one in damage:
            _damage(copy, one)

        # WHEN the next process goes on, and more comes
        new = _batch(count, size=size)
        with closing(Spool(copy, 4 * MIB)) as after:
            after.put(new)
            drained = _drain(after)
            state = after.state()

    # THEN what comes out is a part of what went in, in its order, each once
    waiting = [*batches[done:], new]
    places = [waiting.index(batch) for batch in drained]
    assert places == sorted(set(places))
    assert drained[-1] == new

    # AND what does not is counted, to the item
    assert _items(drained) + _dropped(after, "damaged") == _items(waiting)
    told = sum(batch.verdicts for batch in drained)
    assert told + state.dropped_verdicts["damaged"] == sum(batch.verdicts for batch in waiting)
    assert {reason for _, reason in state.dropped} <= {"damaged"}
    assert (state.size_bytes, state.waiting.batches) == (0, 0)


@settings(max_examples=60)
@given(damages, st.binary(max_size=200))
def test_a_damaged_mark_too_raises_nothing_and_keeps_the_order(damage: list[Damage], mark: bytes) -> None:
    batches = [_batch(n, size=5000) for n in range(23)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spool"
        with closing(Spool(path, 4 * MIB)) as spool:
            for batch in batches:
                spool.put(batch)
        for one in damage:
            _damage(path, one)
        (path / "mark").write_bytes(mark)
        with closing(Spool(path, 4 * MIB)) as spool:
            places = [batches.index(batch) for batch in _drain(spool)]
    assert places == sorted(set(places))


@pytest.mark.parametrize(
    "counts",
    [
        {"passed": Counts(256, 1, 0, 0), "written": Counts(5, 5, 4, 4)},
        {"written": Counts(5, 5, 4, MOST)},
        {"loose": Counts(MOST, 0, 0, 0)},
    ],
)
def test_a_mark_that_cannot_be_costs_no_batch(tmp_path: Path, counts: dict[str, Counts]) -> None:
    # GIVEN a mark whose checksum is true, and that says what no spool can have written
    (tmp_path / "mark").write_bytes(files.Mark(**counts).encode())
    with closing(Spool(tmp_path, SMALL)) as spool:
        batch = _batch(1)
        spool.put(batch)
        assert _drain(spool) == [batch]
        assert not _dropped(spool)
