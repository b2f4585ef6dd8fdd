from __future__ import annotations

from dataclasses import replace

from tailspan.export.segment import IndexRow
from tailspan.views import slow
from tests.builders import MS, TRACE_ID, sample_verdict

ROW = IndexRow.of(sample_verdict())


def test_line_says_when_how_long_why_who_where_and_which() -> None:
    head, line = slow.as_text([ROW], 120).splitlines()
    assert head.split() == ["ended", "(UTC)", "ms", "normal", "cause", "culprit", "route", "trace"]
    assert line.split()[2:] == [
        *("412.3", "38.0", "run_queue", "stress-ng[9001]", "POST", "/v1/infer"),
        TRACE_ID[:8],
    ]


def test_ids_are_as_long_as_it_takes_to_tell_them_apart() -> None:
    other = replace(ROW, trace_id=TRACE_ID[:10] + "f" * 22)
    _, one, two = slow.as_text([ROW, other], 120).splitlines()
    assert one.split()[-1] == TRACE_ID[:11]
    assert two.split()[-1] == other.trace_id[:11]


def test_requests_of_one_trace_do_not_make_the_id_longer_than_it_is() -> None:
    assert slow.as_text([ROW, ROW], 120).splitlines()[1].split()[-1] == TRACE_ID[:8]


def test_request_without_a_named_cause_shows_its_outcome() -> None:
    row = replace(ROW, cause="none", culprit="", outcome="inconclusive", normal_ns=0)
    assert slow.as_text([row], 120).splitlines()[1].split()[3:6] == ["-", "inconclusive", "-"]


def test_lines_keep_to_the_width_and_the_id_survives() -> None:
    row = replace(ROW, name="POST /a/very/long/route/" * 5, culprit="somebody-with-a-long-name[4194304]")
    lines = slow.as_text([row], 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].endswith(TRACE_ID[:8])


def test_slow_is_above_the_threshold_and_nothing_is_without_one() -> None:
    assert slow.is_slow(ROW)
    assert not slow.is_slow(replace(ROW, wall_ns=60 * MS))
    assert not slow.is_slow(replace(ROW, wall_ns=60_000 * MS, threshold_ns=0))


def test_json_has_every_column_of_the_index() -> None:
    (body,) = slow.as_json([ROW])["requests"]
    assert body["trace_id"] == TRACE_ID
    assert body["cause_ns"] == 361 * MS
