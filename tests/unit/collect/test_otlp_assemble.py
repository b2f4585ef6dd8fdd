"""Spans in any order and any pieces become requests, or are counted."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tailspan.collect.otlp.assemble import MAX_OF_TRACE, REMEMBER_NS, SETTLE_NS, WAIT_NS, Assembler
from tailspan.collect.otlp.spans import worker_spans
from tailspan.timeline.inbox import MAX_REQUEST_NS
from tailspan.wire.spans import MAX_SPANS, Request
from tests.unit.collect.otlp_messages import LOCAL, OFFSET, REMOTE, SECOND, START_UNIX, TRACE, span, traces

TGID = 4711
#: On the monotonic clock.
START = START_UNIX - OFFSET
CAME = START + 10 * SECOND
OTHER_TRACE = bytes(reversed(TRACE))


def add(assembler: Assembler, *spans: Span, came: int = CAME, tgid: int = TGID) -> None:
    assembler.add(tgid, worker_spans(traces(*spans).resource_spans[0]), came, OFFSET)


def take(assembler: Assembler, now: int = CAME) -> list[Request]:
    return [received.message for received in assembler.take(now) if isinstance(received.message, Request)]


def assemble(*spans: Span) -> tuple[list[Request], Counter[str]]:
    """All that comes of these, however long it takes."""
    assembler = Assembler()
    add(assembler, *spans)
    requests = take(assembler) + take(assembler, CAME + SETTLE_NS) + take(assembler, CAME + WAIT_NS)
    assert assembler.held == 0
    return requests, assembler.broken


def names(request: Request) -> list[str]:
    return [one.name for one in request.spans]


def test_a_root_with_all_below_it_is_a_request() -> None:
    (request,), broken = assemble(
        span(3, 2, at=200, lasts=100), span(2, 1, at=100, lasts=300), span(1, 9, lasts=1000, flags=REMOTE)
    )
    assert (request.trace_id, request.span_id) == (TRACE, bytes(7) + b"\1")
    assert request.parent_id == bytes(7) + b"\x09"
    assert (request.start_mono_ns, request.end_mono_ns) == (START, START + 1000)
    assert [(one.name, one.start_mono_ns - START, one.end_mono_ns - START) for one in request.spans] == [
        ("span 2", 100, 400),
        ("span 3", 200, 300),
    ]
    assert (request.name, request.status, request.tid, request.sampled, request.broken) == (
        "span 1",
        "ok",
        0,
        True,
        0,
    )
    assert not broken


@pytest.mark.parametrize(
    ("fields", "requests"),
    [
        ({"parent": 0, "flags": 0}, 1),
        ({"parent": 9, "flags": REMOTE}, 1),
        ({"parent": 9, "flags": LOCAL}, 0),
        ({"parent": 9, "flags": LOCAL, "kind": Span.SPAN_KIND_SERVER}, 0),
        ({"parent": 9, "flags": 0, "kind": Span.SPAN_KIND_SERVER}, 1),
        ({"parent": 9, "flags": 0, "kind": Span.SPAN_KIND_CONSUMER}, 1),
        ({"parent": 9, "flags": 0, "kind": Span.SPAN_KIND_CLIENT}, 0),
        ({"parent": 0, "flags": LOCAL, "parent_span_id": bytes(8)}, 1),
    ],
)
def test_what_is_a_root(fields: dict[str, int], requests: int) -> None:
    found, broken = assemble(span(1, **fields))  # type: ignore[arg-type]
    assert len(found) == requests
    assert broken == ({} if requests else {"no_root": 1})


def test_a_request_that_the_process_makes_to_itself_is_a_request_of_its_own() -> None:
    requests, broken = assemble(
        span(4, 3, at=300, lasts=100),
        span(3, 2, at=200, lasts=300, flags=REMOTE),
        span(2, 1, at=100, lasts=500),
        span(1, lasts=1000),
    )
    assert [(request.name, names(request)) for request in requests] == [
        ("span 3", ["span 4"]),
        ("span 1", ["span 2"]),
    ]
    assert not broken


def test_attributes_say_what_the_request_was() -> None:
    (request,), broken = assemble(
        span(
            1,
            kind=Span.SPAN_KIND_SERVER,
            status=Status(code=Status.STATUS_CODE_ERROR),
            attributes={
                "http.request.header.x-request-id": ["r-7"],
                "error.type": "timeout",
                "client.port": 443,
                "network.peer.port": 41234,
                "tailspan.thread.tid": 99,
            },
        ),
        span(2, 1, lasts=5, attributes={"gen_ai.request.model": "llama", "tailspan.thread.tid": 98}),
        span(
            3,
            1,
            lasts=4,
            attributes={"tailspan.batch.id": 5512, "tailspan.batch.size": 5, "tailspan.batch.capacity": 8},
        ),
    )
    assert (request.request_id, request.status, request.peer_port, request.tid) == ("r-7", "timeout", 41234, 99)
    assert (request.model, request.batch_id, request.batch_size, request.batch_capacity) == ("llama", 5512, 5, 8)
    assert [one.tid for one in request.spans] == [98, 0]
    assert not broken


def test_ours_come_before_what_others_call_the_same() -> None:
    told = {
        "tailspan.model.name": "resnet",
        "tailspan.model.version": "3",
        "gen_ai.request.model": "llama",
        "tailspan.request.id": "ours",
        "http.request.header.x-request-id": ["theirs"],
    }
    (request,), _ = assemble(span(1, attributes=dict(told)))
    assert (request.model, request.model_version, request.request_id) == ("resnet", "3", "ours")


def test_the_port_of_a_callers_span_is_the_servers_that_it_calls() -> None:
    (request,), _ = assemble(span(1, kind=Span.SPAN_KIND_CLIENT, attributes={"network.peer.port": 443}))
    assert request.peer_port == 0


@pytest.mark.parametrize("value", ["many", -1, 1 << 40, 1.5, [1.5]])
def test_an_attribute_that_is_not_what_its_name_says_costs_itself(value: object) -> None:
    (request,), broken = assemble(span(1, attributes={"tailspan.thread.tid": value}))
    assert request.tid == 0
    assert broken == {"bad_value": 1}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"trace_id": b"short"}, "bad_id"),
        ({"trace_id": bytes(16)}, "bad_id"),
        ({"span_id": bytes(8)}, "bad_id"),
        ({"span_id": b""}, "bad_id"),
        ({"parent_span_id": b"four"}, "bad_id"),
        ({"end_time_unix_nano": 0}, "unended"),
        ({"lasts": -1}, "backwards"),
        ({"at": -MAX_REQUEST_NS, "lasts": MAX_REQUEST_NS + 1}, "too_long"),
        ({"at": 10 * SECOND}, "future"),
        ({"start_time_unix_nano": 1, "end_time_unix_nano": 2}, "before_boot"),
        ({"end_time_unix_nano": 2**64 - 1}, "too_long"),
        ({"start_time_unix_nano": 2**64 - 1, "end_time_unix_nano": 2**64 - 1}, "future"),
    ],
)
def test_an_impossible_span_is_refused_by_reason(fields: dict[str, object], reason: str) -> None:
    requests, broken = assemble(span(1, **fields))  # type: ignore[arg-type]
    assert requests == []
    assert broken == {reason: 1}


def test_a_span_that_seems_to_end_as_the_message_comes_does_not_end_after_it() -> None:
    (request,), broken = assemble(span(1, at=10 * SECOND - 50, lasts=100))
    assert (request.start_mono_ns, request.end_mono_ns) == (CAME - 50, CAME)
    assert not broken


def test_a_request_waits_for_a_parent_that_is_missing_within_it() -> None:
    assembler = Assembler()
    add(assembler, span(3, 2, at=200, lasts=100), span(1, lasts=1000))
    assert take(assembler) == []
    add(assembler, span(2, 1, at=100, lasts=300), came=CAME + SECOND)
    (request,) = take(assembler, CAME + SECOND)
    assert (names(request), request.broken) == (["span 2", "span 3"], 0)
    assert not assembler.broken


def test_a_span_whose_parent_never_comes_is_in_the_request_and_counted() -> None:
    (request,), broken = assemble(span(4, 3, lasts=10), span(3, 2, lasts=100), span(1, lasts=1000))
    assert (sorted(names(request)), request.broken) == (["span 3", "span 4"], 1)
    assert broken == {"no_parent": 1}


def test_a_span_without_parent_outside_every_request_is_counted_alone() -> None:
    (request,), broken = assemble(span(3, 2, at=2000, lasts=100), span(1, lasts=1000))
    assert (names(request), request.broken) == ([], 0)
    assert broken == {"no_parent": 1}


def test_an_orphan_within_two_requests_of_a_trace_is_the_inner_ones() -> None:
    requests, broken = assemble(
        span(5, 4, at=300, lasts=10), span(1, lasts=1000), span(2, 9, at=200, lasts=300, flags=REMOTE)
    )
    assert [(request.name, names(request)) for request in requests] == [("span 2", ["span 5"]), ("span 1", [])]
    assert broken == {"no_parent": 1}


def test_spans_whose_root_is_never_ended_are_counted() -> None:
    requests, broken = assemble(span(3, 2), span(2, 1), span(1, end_time_unix_nano=0))
    assert requests == []
    assert broken == {"unended": 1, "no_root": 2}


def test_a_span_of_another_trace_than_its_parent_is_in_the_request_and_counted() -> None:
    (request,), broken = assemble(
        span(3, 2, lasts=10, trace=OTHER_TRACE), span(2, 1, lasts=100, trace=OTHER_TRACE), span(1, lasts=1000)
    )
    assert (sorted(names(request)), request.broken) == (["span 2", "span 3"], 2)
    assert broken == {"trace_changed": 2}


def test_traces_whose_span_ids_repeat_are_kept_apart() -> None:
    requests, broken = assemble(
        *(
            one
            for trace in (TRACE, OTHER_TRACE)
            for one in (span(2, 1, lasts=9, trace=trace), span(1, trace=trace))
        )
    )
    assert sorted((request.trace_id, names(request)) for request in requests) == [
        (TRACE, ["span 2"]),
        (OTHER_TRACE, ["span 2"]),
    ]
    assert not broken


def test_what_comes_twice_or_late_is_counted() -> None:
    assembler = Assembler()
    add(assembler, span(2, 1, lasts=10), span(2, 1, lasts=10), span(1))
    assert [names(request) for request in take(assembler)] == [["span 2"]]
    add(assembler, span(1), span(3, 1))
    assert take(assembler) == []
    assert assembler.broken == {"duplicate": 2, "late": 1}


def test_what_is_complete_is_remembered_for_a_while_only() -> None:
    assembler = Assembler()
    add(assembler, span(1))
    assert len(take(assembler)) == 1
    take(assembler, CAME + REMEMBER_NS)
    add(assembler, span(1), span(2, 1))
    assert assembler.broken == {"duplicate": 1, "late": 1}
    take(assembler, CAME + REMEMBER_NS + 1)
    add(assembler, span(1))
    assert len(take(assembler, CAME + REMEMBER_NS + 1)) == 1
    assert assembler.broken == {"duplicate": 1, "late": 1}


def test_a_request_keeps_its_longest_spans() -> None:
    more = 7
    (request,), broken = assemble(
        span(1, lasts=10_000), *(span(number, 1, lasts=number) for number in range(2, MAX_SPANS + 2 + more))
    )
    assert len(request.spans) == MAX_SPANS
    assert min(one.end_mono_ns - one.start_mono_ns for one in request.spans) == 2 + more
    assert broken == {"too_many": more}


def test_processes_are_kept_apart_and_forgotten() -> None:
    assembler = Assembler()
    add(assembler, span(2, 1), tgid=1)
    add(assembler, span(1), tgid=2)
    assert [names(request) for request in take(assembler)] == [[]]
    assembler.forget(1)
    assembler.forget(1)
    assert assembler.held == 0
    assert assembler.broken == {"no_root": 1}


def test_what_waits_is_bounded_per_trace_process_and_in_all() -> None:
    assembler = Assembler(max_of_process=MAX_OF_TRACE + 10, max_held=MAX_OF_TRACE + 20)
    add(assembler, *(span(number, 9999) for number in range(1, MAX_OF_TRACE + 1 + 3)))
    assert (assembler.held, assembler.broken["overflow"]) == (MAX_OF_TRACE, 3)
    add(assembler, *(span(number, 9999, trace=OTHER_TRACE) for number in range(1, 1 + 15)))
    assert (assembler.held, assembler.broken["overflow"]) == (MAX_OF_TRACE + 10, 3 + 5)
    add(assembler, *(span(number, 9999) for number in range(1, 1 + 11)), tgid=2)
    assert (assembler.held, assembler.broken["overflow"]) == (MAX_OF_TRACE + 20, 3 + 5 + 1)


#: A request with three levels, one of its spans another process's child, and spans that are not all within it.
TREE = [
    span(1, 9, lasts=1000, flags=REMOTE),
    span(2, 1, at=100, lasts=300),
    span(3, 2, at=150, lasts=100),
    span(4, 3, at=160, lasts=10),
    span(5, 1, at=500, lasts=100),
    span(6, 5, at=520, lasts=600),
]


@given(st.permutations(TREE))
def test_any_order_in_one_message_gives_the_same_request(order: list[Span]) -> None:
    (request,), broken = assemble(*order)
    assert names(request) == ["span 2", "span 3", "span 4", "span 5", "span 6"]
    assert not broken


@given(st.permutations(TREE), st.sets(st.integers(1, len(TREE) - 1)))
def test_any_order_and_pieces_give_the_same_request_or_are_counted(order: list[Span], cuts: set[int]) -> None:
    assembler, requests = Assembler(), []
    bounds = [0, *sorted(cuts), len(order)]
    for number, (first, past) in enumerate(itertools.pairwise(bounds)):
        now = CAME + number * SECOND
        add(assembler, *order[first:past], came=now)
        requests += take(assembler, now)
    requests += take(assembler, CAME + SETTLE_NS + 10 * SECOND) + take(assembler, CAME + WAIT_NS + 10 * SECOND)

    # one request with the same times, whose spans are in it or counted
    (request,) = requests
    assert (request.name, request.start_mono_ns, request.end_mono_ns) == ("span 1", START, START + 1000)
    in_it = [name for name in ("span 2", "span 3", "span 4", "span 5", "span 6") if name in names(request)]
    assert names(request) == in_it
    lost = assembler.broken["late"] + assembler.broken["no_parent"] - request.broken
    assert len(in_it) + lost == len(TREE) - 1
    assert set(assembler.broken) <= {"late", "no_parent"}
    assert assembler.held == 0
    # and where the root came last, nothing is lost
    if order[-1] is TREE[0]:
        assert lost == 0


SPANS = st.builds(
    lambda number, parent, at, lasts, flags, trace, kind: span(
        number, parent, at=at, lasts=lasts, flags=flags, trace=trace, kind=kind
    ),
    st.integers(0, 6),
    st.integers(0, 6),
    st.integers(-3, 3),
    st.integers(-1, 3),
    st.sampled_from([0, LOCAL, REMOTE]),
    st.sampled_from([TRACE, OTHER_TRACE, b"bad"]),
    st.integers(0, 5),
)


@given(st.lists(st.lists(SPANS, max_size=6), max_size=6))
def test_every_span_of_any_nonsense_is_in_a_request_or_counted(messages: list[list[Span]]) -> None:
    assembler, requests = Assembler(), []
    for number, message in enumerate(messages):
        add(assembler, *message, came=CAME + number * SECOND)
        requests += take(assembler, CAME + number * SECOND)
    requests += take(assembler, CAME + SETTLE_NS + 10 * SECOND) + take(assembler, CAME + WAIT_NS + 10 * SECOND)

    told = sum(1 + len(request.spans) for request in requests)
    adopted = sum(request.broken for request in requests)
    assert told + assembler.broken.total() - adopted == sum(map(len, messages))
    assert assembler.held == 0
