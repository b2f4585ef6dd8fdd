"""Packets of the workers' socket, through the inbox, to verdicts."""

from __future__ import annotations

import functools
import random
from collections import Counter

import numpy as np

from tailspan.config import Config, load
from tailspan.errors import MessageError
from tailspan.export import payload
from tailspan.pipeline import Judged, Moment, Pipeline
from tailspan.timeline.arrivals import began
from tailspan.timeline.evidence import Meta, Table
from tailspan.timeline.inbox import Inbox, Received
from tailspan.timeline.threads import Threads
from tailspan.timeline.window import Strings
from tailspan.wire.events import THREAD_EVENT
from tailspan.wire.spans import (
    MAX_PACKET,
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
    decode,
    encode,
)
from tests.builders import MS, table
from tests.fuzz import frames, mutation
from tests.fuzz.target import Change, Target

_TGID, _TID, _LOOP = 8100, 8123, 8124
_NOW = 1000 * MS
_REASONS = {"oversized", "malformed", "version", "kind", "field", "time"}


def check(data: bytes) -> None:
    messages = [message for packet in frames.split(data) if (message := _decoded(packet)) is not None]
    received = [Received(_TGID, message, _NOW) for message in messages]
    _check_rows(received)
    pipeline, look = _pipeline()
    meta = Meta(
        resources={str(_TGID): {"service.name": "web"}},
        runtime_locks={str(_TGID): message.runtime_locks for message in messages if isinstance(message, Hello)},
    )
    judged = sum(
        _check_judged(one) for one in pipeline.judge(received, Moment(look, meta, lambda number: "/web.slice"))
    )
    possible = sum(isinstance(message, Request) and _is_possible(message) for message in messages)
    assert judged == possible, f"{judged} of {possible} requests were judged"
    losses = pipeline.take_losses()
    assert (losses["end_mono_ns"] >= losses["start_mono_ns"]).all()
    pipeline.evict(_NOW)


def _decoded(packet: bytes) -> Message | None:
    try:
        message = decode(packet)
    except MessageError as error:
        assert error.reason in _REASONS, error.reason
        return None
    assert len(packet) <= MAX_PACKET
    assert decode(encode(message)) == message, "it is another message when it is sent again"
    return message


def _check_rows(received: list[Received]) -> None:
    """Every message is in a row, or counted."""
    threads = Threads()
    threads.see(_look())
    inbox = Inbox(threads, Strings(limit=16))
    rows = inbox.rows(received)
    kinds = Counter(type(one.message) for one in received)
    timed = kinds[Request] + kinds[Activation] + kinds[Pause]
    refused = inbox.dropped["too_long"] + inbox.dropped["future"]
    assert len(rows.requests) + len(rows.activations) + len(rows.pauses) + refused == timed
    assert len(rows.losses) <= kinds[Drops]
    for name, counted in (("name", rows.requests), ("name", rows.spans), ("name", rows.activations)):
        assert not len(counted) or counted[name].max() < 16


def _check_judged(judged: Judged) -> int:
    requests = judged.requests
    walls = requests["end_mono_ns"] - began(requests)
    assert (judged.ledgers >= 0).all(), "a part of a ledger is negative"
    assert (judged.ledgers.sum(axis=1) == walls[judged.sample]).all(), "a ledger is not its request's wall time"
    for row, verdict in judged.verdicts.items():
        assert sum(part.ns for part in verdict.ledger) == verdict.request.wall_ns, row
        assert verdict.sentence
    if len(judged.kept):
        stored = b"".join(payload.encode(judged.evidence))
        assert b"".join(payload.encode(payload.decode(stored))) == stored, "it is other evidence when it is read"
    return len(requests)


def _is_possible(request: Request) -> bool:
    return request.end_mono_ns <= _NOW and request.end_mono_ns - request.start_mono_ns <= 600_000 * MS


@functools.cache
def _config() -> Config:
    return load(flags={"store.keep": "all"}, environ={})


def _look() -> Table:
    look = table("open_threads", rows=3, tid=[_TGID, _TID, _LOOP], tgid=_TGID, ns_tid=[1, 24, 25], cgroup_id=42)
    look["run_mono_ns"], look["taken_mono_ns"] = 700 * MS, _NOW + MS
    return look


def _pipeline() -> tuple[Pipeline, Table]:
    """That knows of one worker, one of whose threads waited for a CPU that somebody else had."""
    pipeline, look = Pipeline(_config()), _look()
    pipeline.threads.see(look)
    wait = table("cycles", tid=_TID, tgid=_TGID, off_mono_ns=200 * MS, ready_mono_ns=300 * MS, on_mono_ns=700 * MS)
    taken = table("slices", start_mono_ns=300 * MS, end_mono_ns=700 * MS)
    for column, value in {"tid": 9, "tgid": 9, "comm": b"backup", "cgroup_id": 43}.items():
        taken["runner"][column] = value
    received = table("sockets", tid=_TID, tgid=_TGID, from_mono_ns=90 * MS, to_mono_ns=100 * MS)
    pipeline.take({"cycles": wait, "slices": taken, "sockets": received}, np.empty(0, THREAD_EVENT))
    return pipeline, look


def _request(**changes: object) -> Request:
    said: dict[str, object] = {
        "trace_id": b"t" * 16,
        "span_id": b"s" * 8,
        "parent_id": bytes(8),
        "request_id": "r-23",
        "name": "POST /v1/infer",
        "tid": 24,
        "start_mono_ns": 100 * MS,
        "end_mono_ns": 900 * MS,
    }
    return Request(**(said | changes))  # type: ignore[arg-type]


def seeds() -> dict[str, bytes]:
    spans = [
        Span("parse", SpanKind.SYNC, 24, 100 * MS, 110 * MS),
        Span("queue", SpanKind.QUEUED, 24, 110 * MS, 400 * MS),
        Span("infer", SpanKind.SYNC, 24, 400 * MS, 890 * MS),
    ]
    whole = _request(
        model="resnet50",
        model_version="3",
        batch_id=7,
        batch_size=4,
        batch_capacity=8,
        spans=spans,
        peer_port=41000,
        device="GPU-1",
        provider="CUDAExecutionProvider",
    )
    loop = _request(asynchronous=True, tid=25, spans=[Span("await", SpanKind.AWAIT, 25, 150 * MS, 800 * MS)])
    hello = Hello(1, "web", "1.0", {"deployment": "blue"}, [[4096, 8192]], 3)
    batch = Activation(ActivationKind.BATCH, 24, 390 * MS, 895 * MS, 7, "batch", 4, 8)
    step = Activation(ActivationKind.STEP, 25, 100 * MS, 140 * MS, int.from_bytes(b"s" * 8, "big"), "step")
    pause = Pause(PauseKind.GC, 24, 500 * MS, 520 * MS, 2)
    sessions: dict[str, list[Message]] = {
        "request": [_request()],
        "batched": [hello, batch, whole],
        "event-loop": [hello, step, loop, pause],
        "unknown-thread": [_request(tid=0), _request(tid=99)],
        "drops": [Drops(3), Drops(5), Drops(1 << 62)],
        "long-and-late": [_request(end_mono_ns=2000 * MS), _request(start_mono_ns=0)],
    }
    return {name: frames.join(map(encode, messages)) for name, messages in sessions.items()}


def _piece(which: int, packet: bytes, rng: random.Random, change: Change) -> bytes:
    return mutation.msgpack_map(packet, rng, change)


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    return frames.mutate(data, rng, change, _piece)


TARGET = Target(
    name="client_socket",
    reads="packets of a worker's client, by `wire.spans`, the inbox and the pipeline",
    holds="what decodes encodes to the same; every message is in a row or counted; no part of a ledger is "
    "negative, and they sum to the wall time; the evidence is the same when it is stored and read back",
    sources=("tailspan.wire.spans", "tailspan.timeline.inbox", "tailspan.pipeline"),
    check=check,
    seeds=seeds,
    mutate=mutate,
    words=(b"request", b"activation", b"runtime_locks", b"resource", b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff"),
    max_bytes=8192,
)
