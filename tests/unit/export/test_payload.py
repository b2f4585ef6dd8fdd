from __future__ import annotations

import contextlib
import struct
from dataclasses import fields
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan.attribute.causes import N_CAUSES
from tailspan.errors import SegmentError
from tailspan.export import payload
from tailspan.timeline.evidence import TABLES, Evidence
from tests.builders import sample_evidence, table


def _encoded(evidence: Evidence) -> bytes:
    return b"".join(payload.encode(evidence))


def _parts(raw: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<I", raw)
    return msgpack.unpackb(raw[4 : 4 + length]), raw[4 + length :]


def _joined(head: dict[str, Any], rows: bytes) -> bytes:
    packed = msgpack.packb(head)
    return struct.pack("<I", len(packed)) + packed + rows


def assert_same(left: Evidence, right: Evidence) -> None:
    for field in fields(Evidence):
        one, other = getattr(left, field.name), getattr(right, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes()
        else:
            assert one == other


def test_evidence_comes_back_as_it_was() -> None:
    assert_same(payload.decode(_encoded(sample_evidence())), sample_evidence())


def test_empty_evidence_comes_back_as_it_was() -> None:
    assert_same(payload.decode(_encoded(Evidence())), Evidence())


@pytest.mark.parametrize("name", TABLES)
def test_every_column_of_every_table_comes_back(name: str) -> None:
    # GIVEN three rows of random bytes: no column may be missed, shifted or converted
    rng = np.random.default_rng(23)
    rows = np.frombuffer(rng.bytes(3 * TABLES[name].itemsize), TABLES[name])

    # WHEN the table alone is encoded and decoded
    head, _ = _parts(_encoded(Evidence()))
    head["tables"] = [[name, 3, rows.dtype.itemsize, list(payload.columns(rows.dtype))]]
    decoded = payload._table(TABLES[name], 3, rows.dtype.itemsize, head["tables"][0][3], rows.tobytes())

    # THEN every scalar column is equal
    for path, _, _ in payload.columns(rows.dtype):
        assert payload._column(decoded, path).tobytes() == payload._column(rows, path).tobytes(), path


def test_decoded_tables_can_be_written_to_like_live_ones() -> None:
    decoded = payload.decode(_encoded(sample_evidence()))
    assert all(getattr(decoded, name).flags.writeable for name in TABLES)


def test_an_older_file_reads_0_in_a_column_that_it_lacks_and_ignores_one_that_is_gone() -> None:
    # GIVEN evidence whose slices were written when there was no cpu yet, but a column that is gone now
    old = np.zeros(2, [("start_mono_ns", "<i8"), ("prio", "<i4"), ("end_mono_ns", "<u4")])
    old["start_mono_ns"], old["prio"], old["end_mono_ns"] = [5, 6], 120, [7, 8]
    head, _ = _parts(_encoded(Evidence()))
    head["tables"] = [["slices", 2, old.dtype.itemsize, list(payload.columns(old.dtype))]]

    # WHEN it is read
    slices = payload.decode(_joined(head, old.tobytes())).slices

    # THEN columns are matched by name, widened where they grew, and the new one is 0
    assert slices.dtype == TABLES["slices"]
    assert slices["start_mono_ns"].tolist() == [5, 6]
    assert slices["end_mono_ns"].tolist() == [7, 8]
    assert slices["cpu"].tolist() == [0, 0]


def test_an_older_file_may_have_a_table_that_is_gone_and_lack_one_that_is_new() -> None:
    evidence = sample_evidence()
    head, rows = _parts(_encoded(evidence))
    head["tables"] = [["sockets", 3, 4, [["rtt", "<u4", 0]]], *head["tables"][:-1]]

    decoded = payload.decode(_joined(head, b"\1\0\0\0" * 3 + rows))

    assert decoded.requests.tobytes() == evidence.requests.tobytes()
    assert len(decoded.losses) == 0


def test_an_older_file_with_fewer_causes_has_0_for_the_later_ones() -> None:
    head, rows = _parts(_encoded(sample_evidence()))
    head["likes"] = [[1, 2, 3, 4, [9, 8]]]
    (like,) = payload.decode(_joined(head, rows)).likes
    assert like.parts_ns == [9, 8] + [0] * (N_CAUSES - 2)


def test_meta_that_is_missing_has_its_default() -> None:
    head, rows = _parts(_encoded(sample_evidence()))
    del head["meta"]["cgroups"]
    head["meta"]["from_the_future"] = 1
    assert payload.decode(_joined(head, rows)).meta.cgroups == {}


def _one_table(name: str, rows: int, itemsize: int, columns: list[Any]) -> dict[str, Any]:
    return {"tables": [[name, rows, itemsize, columns]]}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_one_table("slices", 1 << 62, 4096, []), "is cut off"),
        (_one_table("slices", 5, 1, []), "is cut off"),
        (_one_table("slices", -1, 8, []), "its size"),
        (_one_table("slices", 1, 0, []), "its size"),
        (_one_table("slices", 1, 1 << 40, []), "its size"),
        (_one_table("slices", True, 1, []), "its size"),
        (_one_table("slices", 1, 4, [["cpu", "|O8", 0]]), "a column's type"),
        (_one_table("slices", 1, 4, [["cpu", "<u4, (1000000,)u1", 0]]), "a column's type"),
        (_one_table("slices", 1, 4, [["cpu", "(9,9)u1", 0]]), "a column's type"),
        (_one_table("slices", 1, 4, [["cpu", ["<u4"], 0]]), "a column's type"),
        (_one_table("slices", 1, 4, [["cpu", "<u4", 4]]), "a column's offset"),
        (_one_table("slices", 1, 4, [["cpu", "<u4", 2]]), "does not decode"),
        (_one_table("slices", 1, 4, [["cpu", "<u4", -4]]), "a column's offset"),
        (_one_table("slices", 1, 4, [["cpu", "<u2", 0], ["cpu", "<u2", 2]]), "does not decode"),
        (_one_table("slices", 1, 4, [["cpu", "|S4", 0]]), "has changed its kind"),
        (_one_table("slices", 1, 4, [[7, "<u4", 0]]), "a column's name"),
        ({"tables": 7}, "does not decode"),
        ({"strings": [1]}, "strings"),
        ({"strings": "POST"}, "strings"),
        ({"strings": []}, "requests.name names no string"),
        ({"likes": []}, None),
        ({"likes": [[1, 2, 3, 4, []]] * 2}, "differ in number"),
        ({"likes": [[1, 2, 3, -4, []]]}, "a baseline"),
        ({"likes": [[1, 2, 3]]}, "does not decode"),
        ({"meta": {"host": 1}}, "meta host"),
        ({"meta": {"cgroups": {"1": 2}}}, "meta cgroups"),
        ({"meta": {"resources": {"1": "x"}}}, "meta resources"),
        ({"meta": []}, "does not decode"),
    ],
)
def test_a_malformed_head_is_refused_with_a_reason(change: dict[str, Any], complaint: str | None) -> None:
    head, rows = _parts(_encoded(sample_evidence()))
    if "tables" in change:
        rows = b"\0\0\0\0"
    raw = _joined(head | change, rows)

    if complaint is None:
        payload.decode(raw)
    else:
        with pytest.raises(SegmentError, match=complaint):
            payload.decode(raw)


def test_a_span_of_a_request_that_is_not_there_is_refused() -> None:
    with pytest.raises(SegmentError, match=r"spans.request names no request"):
        payload.decode(_encoded(sample_evidence(spans=table("spans", request=1))))


def test_rows_that_would_grow_past_the_bound_on_reading_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN 1000 one-byte rows, which are 160 bytes each in today's table
    monkeypatch.setattr(payload, "MAX_RAW", 100_000)
    head, _ = _parts(_encoded(Evidence()))
    head["tables"] = [["cycles", 1000, 1, []]]
    with pytest.raises(SegmentError, match="larger than any that are stored"):
        payload.decode(_joined(head, bytes(1000)))


def test_evidence_that_could_not_be_read_back_is_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "MAX_RAW", 100)
    with pytest.raises(SegmentError, match="too large to store"):
        _encoded(sample_evidence())


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_decoded_but_nothing_else_is_raised(raw: bytes) -> None:
    with pytest.raises(SegmentError):
        payload.decode(raw)


@given(st.data())
def test_any_single_changed_byte_is_refused_or_decoded_but_nothing_else_is_raised(data: st.DataObject) -> None:
    raw = bytearray(_encoded(sample_evidence()))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SegmentError):
        payload.decode(bytes(raw))


def test_tables_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN tables of which each may be read, and that come to more than any that are stored
    monkeypatch.setattr(payload, "MAX_RAW", 100_000)
    head, _ = _parts(_encoded(Evidence()))
    rows = 60_000 // TABLES["slices"].itemsize
    head["tables"] = [["slices", rows, 1, []]]
    assert len(payload.decode(_joined(head, bytes(rows))).slices) == rows
    head["tables"] += [["cycles", 60_000 // TABLES["cycles"].itemsize, 1, []]]
    with pytest.raises(SegmentError, match="larger than any that are stored"):
        payload.decode(_joined(head, bytes(2 * rows)))
