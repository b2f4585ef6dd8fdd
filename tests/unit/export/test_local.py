from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailspan.errors import CannotError, NotFoundError, SegmentError, UsageError
from tailspan.export import local, scan, segment
from tailspan.export.local import SegmentReader, SegmentWriter, write_evidence_file
from tailspan.export.segment import BLOCK_HEADER_SIZE, FILE_HEADER_SIZE, IndexRow
from tailspan.timeline.evidence import Evidence
from tailspan.timeline.tables import SCHEMA_VERSION
from tests.builders import (
    MS,
    SPAN_ID,
    START_MONO_NS,
    TRACE_ID,
    UNIX_OFFSET_NS,
    sample_evidence,
    sample_verdict,
    table,
)

ROW = IndexRow.of(sample_verdict())
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes user or mounts a file system: needs root")


def _writer(directory: Path, **changes: Any) -> SegmentWriter:
    options: dict[str, Any] = {"max_segment_bytes": 1 << 20, "max_total_bytes": 8 << 20, "max_age_s": 3600.0}
    return SegmentWriter(directory, host="node-1", **(options | changes))


def _row(number: int) -> IndexRow:
    return replace(ROW, request_id=f"req-{number:02}")  # of one length, so that all blocks are


def _fill(directory: Path, count: int, **changes: Any) -> SegmentWriter:
    writer = _writer(directory, **changes)
    for number in range(count):
        assert writer.append(sample_evidence(), [_row(number)])
    writer.close()
    return writer


def _ids(reader: SegmentReader, **options: int) -> list[str]:
    return [entry.row.request_id for entry in reader.rows(**options)]


def _only_file(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


def _noise_evidence(rows: int = 2000) -> Evidence:
    """Does not compress: some 110 kB on disk."""
    noise = table("slices", rows)
    noise["start_mono_ns"] = [int.from_bytes(os.urandom(7)) for _ in range(rows)]
    return sample_evidence(slices=noise)


BLOCK_SIZE = len(segment.encode_block(sample_evidence(), [_row(1)]))


def test_stored_evidence_is_found_by_its_row_and_comes_back_as_it_was(tmp_path: Path) -> None:
    _fill(tmp_path / "segments", 1)

    reader = SegmentReader(tmp_path / "segments")
    (entry,) = reader.rows()
    evidence = reader.load(entry)

    assert (entry.row.trace_id, entry.row.span_id) == (TRACE_ID, SPAN_ID)
    assert (entry.row.cause, entry.row.culprit, entry.row.cause_ns) == ("run_queue", "stress-ng[9001]", 361 * MS)
    assert evidence.cycles.tobytes() == sample_evidence().cycles.tobytes()
    assert evidence.meta == sample_evidence().meta
    assert not reader.corrupt


def test_rows_come_newest_first_across_segments(tmp_path: Path) -> None:
    _fill(tmp_path, 23, max_segment_bytes=FILE_HEADER_SIZE + 5 * BLOCK_SIZE)

    assert len(list(tmp_path.iterdir())) == 5
    assert _ids(SegmentReader(tmp_path)) == [f"req-{number:02}" for number in reversed(range(23))]


def test_listing_reads_no_payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(tmp_path, 3)
    monkeypatch.delattr(segment, "decode_payload")
    assert len(_ids(SegmentReader(tmp_path))) == 3


def test_rows_since_a_time_leave_out_blocks_that_ended_before(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    for number in range(5):
        start = START_MONO_NS + number * 1000 * MS
        requests = table("requests", start_mono_ns=start, end_mono_ns=start + MS)
        writer.append(Evidence(requests=requests, strings=[""], meta=sample_evidence().meta), [_row(number)])
    writer.close()

    since = START_MONO_NS + UNIX_OFFSET_NS + 3000 * MS

    assert _ids(SegmentReader(tmp_path), since_unix_ns=since) == ["req-04", "req-03"]


def test_replay_goes_through_all_evidence_oldest_first_even_without_index_rows(tmp_path: Path) -> None:
    blocks = [(sample_evidence(strings=[*sample_evidence().strings, str(i)]), []) for i in range(3)]
    write_evidence_file(tmp_path / "capture", blocks, host="node-1")
    assert (tmp_path / "capture").stat().st_mode & 0o777 == 0o640

    assert [evidence.strings[-1] for evidence in SegmentReader(tmp_path / "capture").evidence()] == ["0", "1", "2"]


def test_directory_and_files_are_for_owner_and_group_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        _fill(tmp_path / "a" / "segments", 1)
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "segments").stat().st_mode & 0o777 == 0o750
    assert _only_file(tmp_path / "a" / "segments").stat().st_mode & 0o777 == 0o640


def test_each_block_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: (sizes.append(len(data)), write(fd, data))[1])

    _fill(tmp_path, 2)

    assert sizes == [FILE_HEADER_SIZE, BLOCK_SIZE, BLOCK_SIZE]


def test_what_is_being_written_can_be_read_before_the_segment_is_closed(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    writer.append(sample_evidence(), [_row(0)])
    reader = SegmentReader(tmp_path)
    assert _ids(reader) == ["req-00"]
    writer.append(sample_evidence(), [_row(1)])
    assert _ids(reader) == ["req-01", "req-00"]
    writer.close()


# --- bounds -----------------------------------------------------------------------------------------------------


def test_total_size_stays_within_its_bound_and_the_oldest_go_first(tmp_path: Path) -> None:
    per_segment = FILE_HEADER_SIZE + 3 * BLOCK_SIZE
    writer = _writer(tmp_path, max_segment_bytes=per_segment, max_total_bytes=3 * per_segment)

    for number in range(23):
        assert writer.append(sample_evidence(), [_row(number)])
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * per_segment
    writer.close()

    assert _ids(SegmentReader(tmp_path)) == [f"req-{number:02}" for number in range(22, 14, -1)]
    assert writer.deleted_segments == 5
    assert writer.deleted_bytes == 5 * per_segment
    assert writer.appended == 23


def test_segments_past_their_age_are_deleted(tmp_path: Path) -> None:
    _fill(tmp_path, 2)
    os.utime(_only_file(tmp_path), (0, 0))
    writer = _writer(tmp_path)

    writer.expire()

    assert not list(tmp_path.iterdir())
    assert writer.deleted_segments == 1


def test_an_old_segment_is_closed_even_without_new_blocks(tmp_path: Path) -> None:
    writer = _writer(tmp_path, max_age_s=0.0)
    writer.append(sample_evidence(), [ROW])
    os.utime(_only_file(tmp_path), (0, 0))
    writer.expire()
    assert not list(tmp_path.iterdir())


def test_the_segment_being_written_is_spared(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    writer.append(sample_evidence(), [_row(0)])
    os.utime(_only_file(tmp_path), (0, 0))
    writer.expire()
    writer.append(sample_evidence(), [_row(1)])
    writer.close()
    assert _ids(SegmentReader(tmp_path)) == ["req-01", "req-00"]


def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / "notes.tspan", tmp_path / "123.txt"]
    for other in others:
        other.write_bytes(b"x" * 1000)
        os.utime(other, (0, 0))
    _fill(tmp_path, 1)
    assert all(other.exists() for other in others)
    assert _ids(SegmentReader(tmp_path)) == ["req-00"]


def test_names_stay_in_order_when_the_wall_clock_steps_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(tmp_path, 1)
    monkeypatch.setattr(local.time, "time_ns", lambda: 1)
    writer = _writer(tmp_path)
    writer.append(sample_evidence(), [_row(1)])
    writer.close()
    assert _ids(SegmentReader(tmp_path)) == ["req-01", "req-00"]


def test_bounds_that_cannot_hold_a_segment_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not fit"):
        _writer(tmp_path, max_segment_bytes=2, max_total_bytes=1)


# --- a writer in trouble ----------------------------------------------------------------------------------------


def test_evidence_larger_than_a_segment_is_a_counted_drop(tmp_path: Path) -> None:
    writer = _writer(tmp_path, max_segment_bytes=50_000)
    assert not writer.append(_noise_evidence(20_000), [ROW])
    assert writer.append(sample_evidence(), [ROW])
    writer.close()
    assert writer.dropped == {local.TOO_LARGE: 1}


def test_evidence_that_cannot_be_encoded_is_a_counted_drop(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    assert not writer.append(sample_evidence(strings=[object()]), [ROW])
    assert writer.dropped == {local.UNENCODABLE: 1}


def test_a_directory_that_cannot_be_made_is_a_counted_drop_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    writer = _writer(tmp_path / "file" / "segments")
    assert not writer.append(sample_evidence(), [ROW])
    (tmp_path / "file").unlink()
    assert writer.append(sample_evidence(), [ROW])
    writer.close()
    assert writer.dropped == {"enotdir": 1}


def test_a_segment_that_is_deleted_under_the_writer_is_replaced(tmp_path: Path) -> None:
    writer = _writer(tmp_path / "segments")
    writer.append(sample_evidence(), [_row(0)])
    shutil.rmtree(tmp_path / "segments")
    assert writer.append(sample_evidence(), [_row(1)])
    writer.close()
    assert _ids(SegmentReader(tmp_path / "segments")) == ["req-01"]


def test_a_half_written_block_is_cut_off_again_and_the_next_append_is_tried(tmp_path: Path) -> None:
    # GIVEN a file size limit that the third block would pass half-way
    program = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from tests.builders import sample_evidence
from tailspan.export.local import SegmentWriter
from tailspan.export.segment import FILE_HEADER_SIZE, IndexRow
writer = SegmentWriter(
    Path({str(tmp_path)!r}), host="node-1", max_segment_bytes=1 << 20, max_total_bytes=8 << 20, max_age_s=3600.0
)
rows = [IndexRow(request_id="req-01")]
writer.append(sample_evidence(), rows)
size = next(Path({str(tmp_path)!r}).iterdir()).stat().st_size
block = size - FILE_HEADER_SIZE
resource.setrlimit(resource.RLIMIT_FSIZE, (size + block + block // 2, resource.RLIM_INFINITY))
print([writer.append(sample_evidence(), rows) for _ in range(3)], dict(writer.dropped))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(writer.append(sample_evidence(), rows))
writer.close()
"""

    # WHEN a child writes past it, and on once it is lifted
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    # THEN the failures are counted, and the file has the three whole blocks and no trace of the others
    assert done.stdout.split("\n")[:2] == ["[True, False, False] {'efbig': 2}", "True"]
    reader = SegmentReader(tmp_path)
    assert len(_ids(reader)) == len(list(reader.evidence())) == 3
    assert not reader.corrupt


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@as_root
def test_a_full_disk_is_a_counted_drop_and_writing_goes_on_when_there_is_room(small_disk: Path) -> None:
    # GIVEN a disk of 256 kB that another file fills but for 40 kB
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (212 << 10))
    writer = _writer(small_disk / "segments")

    # WHEN evidence of more than that is appended, and again after room is made
    assert writer.append(sample_evidence(), [_row(0)])
    assert not writer.append(_noise_evidence(5000), [_row(1)])
    ballast.unlink()
    assert writer.append(sample_evidence(), [_row(2)])
    writer.close()

    # THEN one is lost and counted, and what is there is whole
    assert writer.dropped == {"enospc": 1}
    reader = SegmentReader(small_disk / "segments")
    assert _ids(reader) == ["req-02", "req-00"]
    assert len(list(reader.evidence())) == 2
    assert not reader.corrupt


@as_root
def test_a_disk_with_no_room_for_a_header_leaves_no_empty_segments_behind(small_disk: Path) -> None:
    writer = _writer(small_disk / "segments")
    (small_disk / "segments").mkdir()
    with open(small_disk / "ballast", "wb", buffering=0) as ballast, pytest.raises(OSError):
        while True:
            ballast.write(b"x" * 4096)
    for _ in range(3):
        assert not writer.append(sample_evidence(), [ROW])
    assert writer.dropped == {"enospc": 3}
    assert not list((small_disk / "segments").iterdir())


@as_root
def test_a_read_only_disk_is_a_counted_drop(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    writer = _writer(small_disk / "segments")
    assert not writer.append(sample_evidence(), [ROW])
    assert writer.dropped == {"erofs": 1}


# --- damaged files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 10, BLOCK_SIZE - BLOCK_HEADER_SIZE, BLOCK_SIZE - 1])
def test_a_truncated_tail_is_silently_the_end(tmp_path: Path, cut: int) -> None:
    _fill(tmp_path, 3)
    path = _only_file(tmp_path)
    os.truncate(path, path.stat().st_size - cut)

    reader = SegmentReader(tmp_path)

    assert _ids(reader) == ["req-01", "req-00"]
    assert not reader.corrupt


def test_a_segment_created_this_instant_is_no_damage(tmp_path: Path) -> None:
    _fill(tmp_path, 1)
    (tmp_path / f"{1:020d}.tspan").write_bytes(b"")
    reader = SegmentReader(tmp_path)
    assert _ids(reader) == ["req-00"]
    assert not reader.corrupt


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("where", [0, 9, BLOCK_HEADER_SIZE - 1], ids=["magic", "length", "crc"])
def test_reading_goes_on_past_a_block_with_a_damaged_header_and_reports_it(tmp_path: Path, where: int) -> None:
    _fill(tmp_path, 3)
    _overwrite(_only_file(tmp_path), FILE_HEADER_SIZE + BLOCK_SIZE + where, b"\x55")

    reader = SegmentReader(tmp_path)

    assert _ids(reader) == ["req-02", "req-00"]
    (complaint,) = reader.corrupt
    assert complaint.endswith(f"{BLOCK_SIZE} bytes at {FILE_HEADER_SIZE + BLOCK_SIZE} are no block")


def test_a_damaged_index_costs_its_block_only(tmp_path: Path) -> None:
    _fill(tmp_path, 3)
    _overwrite(_only_file(tmp_path), FILE_HEADER_SIZE + BLOCK_SIZE + BLOCK_HEADER_SIZE + 5, b"\xff\xff")
    reader = SegmentReader(tmp_path)
    assert _ids(reader) == ["req-02", "req-00"]
    assert ["index CRC differs" in complaint for complaint in reader.corrupt] == [True]


def test_a_damaged_payload_is_still_listed_and_says_so_when_it_is_loaded(tmp_path: Path) -> None:
    _fill(tmp_path, 1)
    _overwrite(_only_file(tmp_path), FILE_HEADER_SIZE + BLOCK_SIZE - 3, b"\xff\xff\xff")
    reader = SegmentReader(tmp_path)
    (entry,) = reader.rows()
    with pytest.raises(SegmentError, match="payload CRC differs"):
        reader.load(entry)
    assert not list(reader.evidence())
    assert ["payload CRC differs" in complaint for complaint in reader.corrupt] == [True]


def test_garbage_between_blocks_is_one_report_even_across_the_scanners_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_STEP", 64)
    block = segment.encode_block(sample_evidence(), [_row(1)])
    for garbage in (61, 64, 500):
        path = tmp_path / f"capture-{garbage}"
        path.write_bytes(segment.encode_file_header(0, "h") + block + b"\0" * garbage + block)
        reader = SegmentReader(path)
        assert len(_ids(reader)) == 2
        assert len(reader.corrupt) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    at=st.integers(FILE_HEADER_SIZE, FILE_HEADER_SIZE + 3 * BLOCK_SIZE - 1),
    junk=st.binary(min_size=1, max_size=80),
)
def test_whatever_is_overwritten_the_reader_yields_the_blocks_that_are_whole(
    tmp_path: Path, at: int, junk: bytes
) -> None:
    path = tmp_path / "capture"
    path.unlink(missing_ok=True)
    write_evidence_file(path, [(sample_evidence(), [_row(number)]) for number in range(3)], host="node-1")
    _overwrite(path, at, junk)
    os.truncate(path, FILE_HEADER_SIZE + 3 * BLOCK_SIZE)
    touched = {(at + i - FILE_HEADER_SIZE) // BLOCK_SIZE for i in range(len(junk))}

    reader = SegmentReader(path)
    loaded = list(reader.evidence())

    assert len(loaded) >= 3 - len(touched & {0, 1, 2})


def test_a_newer_schema_is_refused_and_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "SCHEMA_VERSION", SCHEMA_VERSION + 6)
    path = tmp_path / "capture"
    write_evidence_file(path, [(sample_evidence(), [ROW])], host="node-1")
    monkeypatch.undo()

    with pytest.raises(
        SegmentError, match=rf"capture: schema version {SCHEMA_VERSION + 6}: .* up to {SCHEMA_VERSION}"
    ):
        SegmentReader(path)


def test_in_a_directory_a_newer_segment_is_reported_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(tmp_path, 1)
    monkeypatch.setattr(segment, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    _fill(tmp_path, 1)
    monkeypatch.undo()

    reader = SegmentReader(tmp_path)

    assert len(_ids(reader)) == 1
    assert [f"schema version {SCHEMA_VERSION + 1}" in complaint for complaint in reader.corrupt] == [True]


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x89tsSEG\n" + bytes(100), b"\x89tsSEG\r\n" + bytes(100)])
def test_a_file_that_is_no_segment_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(SegmentError, match=r"file: (not a tailspan segment|its header is damaged)"):
        SegmentReader(tmp_path / "file")


def test_a_path_with_nothing_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no segments at"):
        SegmentReader(tmp_path / "nowhere")


def test_an_empty_directory_has_no_rows(tmp_path: Path) -> None:
    assert _ids(SegmentReader(tmp_path)) == []


def test_a_segment_that_retention_takes_while_it_is_read_is_passed_over(tmp_path: Path) -> None:
    _fill(tmp_path, 4, max_segment_bytes=FILE_HEADER_SIZE + 2 * BLOCK_SIZE)
    reader = SegmentReader(tmp_path)
    rows = reader.rows()
    newest = next(rows)
    for path in tmp_path.iterdir():
        path.unlink()

    assert [entry.row.request_id for entry in rows] == []
    with pytest.raises(NotFoundError):
        reader.load(newest)


# --- captures and other users -----------------------------------------------------------------------------------


def test_a_capture_never_overwrites_a_file(tmp_path: Path) -> None:
    (tmp_path / "capture").write_bytes(b"precious")
    with pytest.raises(CannotError, match=r"cannot write .*capture: File exists"):
        write_evidence_file(tmp_path / "capture", [], host="node-1")
    assert (tmp_path / "capture").read_bytes() == b"precious"


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """Below /tmp, where another user can reach it, which pytest's own directories forbid."""
    with tempfile.TemporaryDirectory(prefix="tailspan-test-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def _read_as_nobody(path: Path) -> str:
    program = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from tailspan.errors import TailspanError
from tailspan.export.local import SegmentReader
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
try:
    reader = SegmentReader(Path({str(path)!r}))
    print(len([reader.load(entry) for entry in reader.rows()]), "read")
except TailspanError as error:
    print(error.exit_code, error)
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


@as_root
@pytest.mark.parametrize("grant", ["group", "world"])
def test_another_user_reads_what_the_group_or_the_world_may_read(public_dir: Path, grant: str) -> None:
    segments = public_dir / "segments"
    _fill(segments, 3)
    if grant == "group":
        for path in (segments, _only_file(segments)):
            os.chown(path, 0, NOBODY)
    else:
        segments.chmod(0o755)
        _only_file(segments).chmod(0o644)

    assert _read_as_nobody(segments) == "3 read\n"


@as_root
@pytest.mark.parametrize("what", ["directory", "file in it", "file"])
def test_another_user_without_permission_is_told_so(public_dir: Path, what: str) -> None:
    segments = public_dir / "segments"
    _fill(segments, 1)
    if what != "directory":
        segments.chmod(0o755)
    denied = _only_file(segments) if what != "directory" else segments

    told = _read_as_nobody(denied if what == "file" else segments)

    assert told == f"3 cannot read {denied}: permission denied; be root or in the group that owns it\n"
