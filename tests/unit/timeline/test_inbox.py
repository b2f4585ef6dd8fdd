import numpy as np

from tailspan.timeline.inbox import MAX_REQUEST_NS, Inbox, Received
from tailspan.timeline.tables import LOSS_CLIENT, Join
from tailspan.timeline.threads import Threads
from tailspan.timeline.window import Strings
from tailspan.wire.events import THREAD_STATE
from tailspan.wire.spans import (
    Activation,
    ActivationKind,
    Drops,
    Hello,
    Message,
    Pause,
    PauseKind,
    Request,
    Span,
    SpanKind,
)

TGID = 900
NOW = 10**15


def inbox() -> Inbox:
    """One followed process 900 whose thread 905 calls itself 4."""
    states = np.zeros(1, THREAD_STATE)
    states["tid"], states["tgid"], states["ns_tid"] = 905, TGID, 4
    threads = Threads()
    threads.see(states)
    return Inbox(threads, Strings())


def pause(**fields: int) -> Pause:
    base = {"tid": 4, "start_mono_ns": NOW - 30, "end_mono_ns": NOW - 20, "generation": 2}
    return Pause(PauseKind.GC, **(base | fields))


def request(**fields: object) -> Request:
    base: dict[str, object] = {"start_mono_ns": NOW - 100, "end_mono_ns": NOW - 10, "tid": 4}
    return Request(b"t" * 16, b"s" * 8, b"\0" * 8, "r1", "GET /x", **(base | fields))  # type: ignore[arg-type]


def received(*messages: Message, at: int = NOW) -> list[Received]:
    return [Received(TGID, message, at) for message in messages]


def test_a_request_becomes_a_row_with_the_hosts_thread_ids() -> None:
    box = inbox()
    spans = [
        Span("run", SpanKind.SYNC, 4, NOW - 50, NOW - 20),
        Span("queue", SpanKind.QUEUED, 0, NOW - 90, NOW - 50),
    ]

    rows = box.rows(received(Hello(4, "resnet"), request(spans=spans, batch_id=3, peer_port=41234)))

    assert rows.requests["tid"].tolist() == [905]
    assert rows.requests["tgid"].tolist() == [TGID]
    assert rows.spans["tid"].tolist() == [905, 0]
    assert rows.spans["request"].tolist() == [0, 0]
    assert rows.requests["peer_port"].tolist() == [41234]
    assert rows.requests["arrived_mono_ns"].tolist() == [0]
    assert rows.requests["sampled"].tolist() == [1]
    assert rows.requests["asynchronous"].tolist() == [0]
    assert not box.dropped
    assert box.resources[TGID]["service.name"] == "resnet"


def test_a_pause_becomes_a_row_and_names_its_thread() -> None:
    states = np.zeros(1, THREAD_STATE)
    states["tid"], states["tgid"], states["ns_tid"] = 905, TGID, 4
    threads = Threads()
    threads.see(states)
    assert threads.rows(0)["named"].tolist() == [0]

    rows = Inbox(threads, Strings()).rows(received(pause()))

    assert rows.pauses.tolist() == [(NOW - 30, NOW - 20, 905, TGID, PauseKind.GC, 2)]
    assert threads.rows(0)["named"].tolist() == [1]


def test_where_the_runtimes_locks_lie_is_kept_by_process() -> None:
    box = inbox()

    box.rows(received(Hello(4, "resnet", runtime_locks=[[5, 7]])))
    assert box.runtime_locks == {TGID: [[5, 7]]}

    box.rows(received(Hello(4, "not Python now")))
    assert box.runtime_locks == {TGID: []}


def test_a_thread_that_is_not_the_senders_is_unknown_and_counted() -> None:
    box = inbox()

    rows = box.rows(received(request(tid=905)))  # the host's number means nothing in the sender's namespace

    assert rows.requests["tid"].tolist() == [0]
    assert rows.requests["join"].tolist() == [Join.NONE]
    assert box.dropped == {"unknown_tid": 1}


def test_a_request_may_name_no_thread_and_tell_of_spans_that_do_not_fit() -> None:
    box = inbox()

    rows = box.rows(received(request(), request(tid=0, broken=2), request(tid=0, broken=1 << 20)))

    assert rows.requests["tid"].tolist() == [905, 0, 0]
    assert rows.requests["join"].tolist() == [Join.SAID, Join.NONE, Join.NONE]
    assert rows.requests["broken"].tolist() == [0, 2, 0xFFFF]
    assert not box.dropped


def test_what_cannot_be_true_of_time_is_dropped_and_counted() -> None:
    box = inbox()
    long = {"start_mono_ns": 0, "end_mono_ns": MAX_REQUEST_NS + 1}
    step = Activation(ActivationKind.STEP, 4, NOW - 10, NOW + 10, 1)

    pauses = pause(start_mono_ns=0, end_mono_ns=MAX_REQUEST_NS + 1), pause(end_mono_ns=NOW + 1)
    rows = box.rows(received(request(**long), request(end_mono_ns=NOW + 1), step, *pauses))

    assert not len(rows.requests)
    assert not len(rows.activations)
    assert not len(rows.pauses)
    assert box.dropped == {"too_long": 2, "future": 3}


def test_what_a_client_dropped_is_a_loss_since_it_last_said_so() -> None:
    box = inbox()

    box.rows(received(Drops(0), at=NOW))
    first = box.rows(received(Drops(23), at=NOW + 5)).losses
    again = box.rows(received(Drops(23), at=NOW + 9)).losses
    more = box.rows(received(Drops(40), at=NOW + 12)).losses

    assert [(int(r["start_mono_ns"]), int(r["end_mono_ns"]), int(r["count"])) for r in first] == [
        (NOW, NOW + 5, 23)
    ]
    assert not len(again)
    assert more["count"].tolist() == [17]
    assert more["klass"].tolist() == [LOSS_CLIENT]


def test_drops_told_on_two_connections_are_counted_once() -> None:
    box = inbox()

    told = [box.rows(received(Drops(count), at=NOW + at)).losses for at, count in enumerate((23, 17, 23, 29))]

    assert [losses["count"].tolist() for losses in told] == [[23], [], [], [6]]


def test_a_process_that_is_gone_is_forgotten() -> None:
    box = inbox()
    box.rows(received(Hello(4, "resnet"), Drops(3)))

    box.forget(TGID)

    assert not box.resources
    assert not box.runtime_locks
