from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan.export.tally import MAX_KEY_BYTES, SLOTS, Tally


def test_counters_are_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tally"
    with closing(Tally(path)) as tally:
        tally.add("a")
        tally.add("a", 22)
        tally.set("b", 2**64 - 1)
        tally.add("gone")
        tally.remove("gone")
        tally.remove("never there")

    with closing(Tally(path)) as tally:
        assert {key: tally.get(key) for key in tally.keys("")} == {"a": 23, "b": 2**64 - 1}
        assert tally.get("gone") == tally.get("never there") == 0
    assert path.stat().st_mode & 0o777 == 0o640


def test_keys_are_found_by_their_prefix(tmp_path: Path) -> None:
    with closing(Tally(tmp_path / "tally")) as tally:
        for key in ("sent.1", "sent.22", "other"):
            tally.add(key)
        assert sorted(tally.keys("sent.")) == ["sent.1", "sent.22"]


def test_every_change_survives_a_kill(tmp_path: Path) -> None:
    # GIVEN a process that counts and says each time that it has
    path = tmp_path / "tally"
    code = (
        "import sys; from pathlib import Path; from tailspan.export.tally import Tally\n"
        "tally = Tally(Path(sys.argv[1]))\n"
        "for count in range(1, 10**9): tally.add('n'); print(count, flush=True)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None

    # WHEN it is killed after it has said 230
    try:
        said = 0
        while said < 230:
            said = int(child.stdout.readline())
    finally:
        child.send_signal(signal.SIGKILL)
        said += len([line for line in child.stdout.read().split("\n")[:-1] if line])
        child.wait()
        child.stdout.close()

    # THEN nothing that it has said is missing, and at most one more is there
    with closing(Tally(path)) as tally:
        assert said <= tally.get("n") <= said + 1


def test_slots_are_bounded_and_those_of_removed_keys_are_used_again(tmp_path: Path) -> None:
    with closing(Tally(tmp_path / "tally")) as tally:
        for number in range(SLOTS):
            tally.add(f"{number}")
        tally.add("too much")
        assert tally.get("too much") == 0

        tally.remove("23")
        tally.add("fits", 23)
        assert tally.get("fits") == 23
        assert len(tally.keys()) == SLOTS
    assert (tmp_path / "tally").stat().st_size < 64 << 10


@pytest.mark.parametrize("key", ["", "k" * (MAX_KEY_BYTES + 1), "ä" * 20])
def test_a_key_that_does_not_fit_is_an_error(tmp_path: Path, key: str) -> None:
    with closing(Tally(tmp_path / "tally")) as tally, pytest.raises(ValueError, match="1 to 39 bytes"):
        tally.add(key)


def test_counters_stay_in_their_range(tmp_path: Path) -> None:
    with closing(Tally(tmp_path / "tally")) as tally:
        tally.set("most", 2**64 - 1)
        tally.add("most")
        tally.add("least", -1)
        assert (tally.get("most"), tally.get("least")) == (2**64 - 1, 0)


def test_without_a_file_it_counts_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with closing(Tally(tmp_path / "file" / "tally")) as tally:
        tally.add("n", 23)
        assert tally.get("n") == 23
    assert "cannot be used" in caplog.text


def test_a_second_process_with_the_same_file_keeps_out_of_it(tmp_path: Path) -> None:
    path = tmp_path / "tally"
    with closing(Tally(path)) as first, closing(Tally(path)) as second:
        first.add("n", 23)
        second.add("n")
        assert second.get("n") == 1
    with closing(Tally(path)) as again:
        assert again.get("n") == 23


@given(st.binary(max_size=400), st.integers(0, SLOTS * 48 + 8))
def test_whatever_the_file_holds_it_opens_and_counts(garbage: bytes, at: int) -> None:
    path = Path(f"/tmp/tailspan-tally-{os.getpid()}")
    try:
        with closing(Tally(path)) as tally:
            tally.set("n", 23)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(garbage)
        with closing(Tally(path)) as tally:
            before = tally.get("m")
            tally.add("m")
            assert tally.get("m") == min(before + 1, 2**64 - 1)
        with closing(Tally(path)) as tally:
            assert tally.get("m") == min(before + 1, 2**64 - 1)
    finally:
        path.unlink(missing_ok=True)
