"""W3C Trace Context, version 00 and later ones; the cases are those of the specification."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan.client.trace import from_header, parse

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
VALID = f"00-{TRACE}-{PARENT}-01"


def test_a_valid_header_is_the_parent_of_a_new_span() -> None:
    context = from_header(VALID)
    assert context.trace_id.hex() == TRACE
    assert context.parent_id.hex() == PARENT
    assert context.span_id not in (context.parent_id, bytes(8))
    assert context.traceparent() == f"00-{TRACE}-{context.span_id.hex()}-01"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        VALID.upper(),
        VALID + " ",
        " " + VALID,
        VALID + "\n",
        VALID + "-",
        VALID + "-00",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-1",
        f"0-{TRACE}-{PARENT}-01",
        f"00-{TRACE[:-1]}g-{PARENT}-01",
        f"01-{TRACE}-{PARENT}-01x",
        f"00-{TRACE[:-1]}٣-{PARENT}-01",
        7,
    ],
)
def test_an_invalid_header_begins_a_new_sampled_trace(header: str | None) -> None:
    assert parse(header) is None
    context = from_header(header)
    assert context.trace_id.hex() != TRACE
    assert context.parent_id == bytes(8)
    assert context.flags == 1


@pytest.mark.parametrize("version", ["01", "cc", "fe"])
@pytest.mark.parametrize("rest", ["", "-", "-what-the-future-will-be-like"])
def test_a_later_version_is_read_by_its_first_four_fields(version: str, rest: str) -> None:
    context = from_header(f"{version}-{TRACE}-{PARENT}-01{rest}")
    assert (context.trace_id.hex(), context.parent_id.hex()) == (TRACE, PARENT)
    # AND what leaves is of the version that is written here
    assert context.traceparent().startswith(f"00-{TRACE}-")


@pytest.mark.parametrize(
    ("given", "handed_on"), [("00", "00"), ("01", "01"), ("03", "03"), ("02", "02"), ("fd", "01")]
)
def test_known_flags_are_handed_on_and_others_cleared(given: str, handed_on: str) -> None:
    assert from_header(f"00-{TRACE}-{PARENT}-{given}").traceparent().endswith(f"-{handed_on}")


def test_a_header_may_come_as_bytes() -> None:
    assert parse(VALID.encode()) == parse(VALID)
    assert parse(b"\xff" * 55) is None


def test_a_fork_does_not_repeat_the_ids_of_its_parent() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, from_header(None).trace_id)
        os._exit(0)
    os.close(writer)
    in_child = os.read(reader, 16)
    os.close(reader)
    os.waitpid(child, 0)
    assert len(in_child) == 16
    assert from_header(None).trace_id != in_child


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*"))
def test_whatever_comes_in_what_leaves_is_valid(header: str) -> None:
    assert parse(from_header(header).traceparent()) is not None
