"""W3C Trace Context, version 00 and later ones, and B3; the cases are those of the specifications."""

from __future__ import annotations

import email.message
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan.client.trace import TraceContext, from_header, from_headers, parse

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


def ids(context: TraceContext) -> tuple[str, str, int]:
    return context.trace_id.hex(), context.parent_id.hex(), context.flags


SEVERAL = {"X-B3-TraceId": TRACE, "X-B3-SpanId": PARENT, "X-B3-Sampled": "1"}


@pytest.mark.parametrize(
    ("single", "flags"),
    [
        (f"{TRACE}-{PARENT}", 1),
        (f"{TRACE}-{PARENT}-1", 1),
        (f"{TRACE}-{PARENT}-0", 0),
        (f"{TRACE}-{PARENT}-d", 1),
        (f"{TRACE}-{PARENT}-0-05e3ac9a4f6e3b90", 0),
        (f"{TRACE}-{PARENT}-1".upper(), 1),
    ],
)
def test_b3_in_one_header(single: str, flags: int) -> None:
    assert ids(from_headers({"b3": single})) == (TRACE, PARENT, flags)


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, 1),
        ({"X-B3-Sampled": ""}, 1),
        ({"X-B3-Sampled": "0"}, 0),
        ({"X-B3-Sampled": "false"}, 0),
        ({"X-B3-Sampled": "True"}, 1),
        ({"X-B3-Sampled": "0", "X-B3-Flags": "1"}, 1),
        ({"X-B3-ParentSpanId": "05e3ac9a4f6e3b90"}, 1),
    ],
)
def test_b3_in_several_headers(changes: dict[str, str], flags: int) -> None:
    assert ids(from_headers(SEVERAL | changes)) == (TRACE, PARENT, flags)


@pytest.mark.parametrize("headers", [{"b3": f"{TRACE[16:]}-{PARENT}"}, SEVERAL | {"X-B3-TraceId": TRACE[16:]}])
def test_a_trace_id_of_64_bits_is_padded_on_the_left(headers: dict[str, str]) -> None:
    assert ids(from_headers(headers))[0] == "0" * 16 + TRACE[16:]


@pytest.mark.parametrize(
    ("headers", "flags"),
    [
        ({"b3": "0"}, 0),
        ({"b3": "1"}, 1),
        ({"b3": "d"}, 1),
        ({"X-B3-Sampled": "0"}, 0),
        ({"X-B3-Flags": "1"}, 1),
    ],
)
def test_a_decision_without_ids_holds_for_the_trace_that_begins_here(headers: dict[str, str], flags: int) -> None:
    context = from_headers(headers)
    assert context.parent_id == bytes(8)
    assert any(context.trace_id)
    assert context.flags == flags


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"b3": ""},
        {"b3": f"{TRACE}-{PARENT}-2"},
        {"b3": f"{TRACE}-{PARENT}-1-"},
        {"b3": f"{TRACE[1:]}-{PARENT}"},
        {"b3": f"{'0' * 32}-{PARENT}"},
        {"b3": f"{TRACE}-{'0' * 16}-1"},
        {"b3": 7},
        {"X-B3-TraceId": TRACE},
        {"X-B3-SpanId": PARENT},
        SEVERAL | {"X-B3-TraceId": TRACE[:-1] + "g"},
        SEVERAL | {"X-B3-SpanId": f"{PARENT}-1"},
        {"traceparent": VALID.upper()},
    ],
)
def test_invalid_headers_begin_a_new_sampled_trace(headers: dict[str, Any]) -> None:
    context = from_headers(headers)
    assert context.trace_id.hex() != TRACE
    assert (context.parent_id, context.flags) == (bytes(8), 1)


def test_w3c_goes_before_b3_and_one_header_before_several() -> None:
    others = {"X-B3-TraceId": "a" * 32, "X-B3-SpanId": "b" * 16}
    assert ids(from_headers({**others, "b3": "0", "traceparent": VALID})) == (TRACE, PARENT, 1)
    assert ids(from_headers({**others, "b3": f"{TRACE}-{PARENT}-0"})) == (TRACE, PARENT, 0)
    # AND what is invalid goes before nothing
    assert ids(from_headers({**SEVERAL, "b3": "x", "traceparent": "x"})) == (TRACE, PARENT, 1)


@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "TRACEPARENT"])
def test_names_are_those_of_http_in_any_case_and_any_container(name: str) -> None:
    message = email.message.Message()  # what http.server gives
    message[name] = VALID
    pairs = [(b"host", b"a"), (name.lower().encode(), VALID.encode())]  # what ASGI gives
    for headers in ({name: VALID}, {name.encode(): VALID.encode()}, message, pairs):
        assert ids(from_headers(headers)) == (TRACE, PARENT, 1)


def test_of_a_header_that_came_twice_the_first_counts() -> None:
    assert ids(from_headers([("b3", f"{TRACE}-{PARENT}"), ("B3", "0")])) == (TRACE, PARENT, 1)


HEX = st.text("0123456789abcdefABCDEFgd-", max_size=70)
NAMES = st.sampled_from(["traceparent", "b3", *SEVERAL, "X-B3-Flags"]) | st.text() | st.binary() | st.none()
VALUES = (
    HEX
    | st.text()
    | st.binary()
    | st.integers()
    | st.from_regex(r"[0-9a-f]{16,32}-[0-9a-f]{16}(-[01d](-[0-9a-f]{16})?)?")
)


@given(st.dictionaries(NAMES, VALUES) | st.lists(st.tuples(NAMES, VALUES)))
def test_whatever_headers_come_in_what_leaves_is_valid(headers: Any) -> None:
    assert parse(from_headers(headers).traceparent()) is not None
