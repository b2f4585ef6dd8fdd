"""The critical path: at every instant of a request, which thread it depended on, and how.

The innermost span decides (the one that started last). A synchronous span puts the request *on* its thread. While
it is queued or suspended it depends on a thread that may be busy for somebody else: the activations that the
worker's client sends (batches, event-loop steps) say for whom.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from tailspan.attribute.intervals import Ints, disjoint, tile
from tailspan.timeline.arrivals import began, messages
from tailspan.timeline.evidence import Evidence, Table
from tailspan.wire.events import SocketFlags
from tailspan.wire.spans import ActivationKind, SpanKind


class Hold(IntEnum):
    """How the request depends on the segment's thread."""

    ON = 0  #: the thread works for this request
    BEHIND = 1  #: the thread works for others; ``activation`` says for whom
    QUEUED = 2  #: the thread works for nobody we know, and has not taken the request up yet
    AWAIT = 3  #: the request is suspended, and the event loop works for nobody we know
    NOWHERE = 4  #: queued for a thread that the worker did not name
    UNREAD = 5  #: its bytes have arrived, and the thread that will read them has not
    ACCEPT = 6  #: ... and nobody has accepted the connection yet


#: Kinds of elements that are no spans of the worker's: behind those of wire.spans.SpanKind.
_UNREAD, _ACCEPT = 100, 101


@dataclass(slots=True)
class Path:
    """Segments in order of request, then of time; a request's segments tile it exactly."""

    request: Ints
    start: Ints
    end: Ints
    tid: Ints
    hold: Ints
    name: Ints  #: string index of the innermost span, -1 for the request itself
    activation: Ints  #: row of ``Evidence.activations``, -1 for none


def critical_path(evidence: Evidence) -> Path:
    spans = _elements(evidence)
    request, start, end, winner = _innermost(spans)
    kind = spans["kind"][winner].astype(np.int64)
    tid = spans["tid"][winner].astype(np.int64)
    name = spans["name"][winner].astype(np.int64)
    depends = np.isin(kind, (SpanKind.QUEUED, SpanKind.AWAIT, _UNREAD))
    waits, on = np.flatnonzero(depends), np.flatnonzero(~depends)
    hold = np.where(kind == _ACCEPT, Hold.ACCEPT, Hold.ON).astype(np.int64)
    activation = np.full(len(kind), -1, np.int64)
    if not len(waits):
        return Path(request, start, end, tid, hold, name, activation)

    parts = _behind(evidence, request[waits], start[waits], end[waits], tid[waits], kind[waits])
    origin = waits[parts.parent]
    merged = Path(
        np.concatenate((request[on], request[origin])),
        np.concatenate((start[on], parts.start)),
        np.concatenate((end[on], parts.end)),
        np.concatenate((tid[on], tid[origin])),
        np.concatenate((hold[on], parts.hold)),
        np.concatenate((name[on], name[origin])),
        np.concatenate((activation[on], parts.activation)),
    )
    order = np.lexsort((merged.start, merged.request))
    return Path(*(getattr(merged, field)[order] for field in Path.__slots__))


def _elements(evidence: Evidence) -> Table:
    """Every request as a span of its own (``name`` -1), what lies before its start, then its spans, cut to it."""
    requests, spans = evidence.requests, evidence.spans
    dtype = np.dtype(
        [
            ("start", "<i8"),
            ("end", "<i8"),
            ("request", "<i8"),
            ("tid", "<i8"),
            ("kind", "<i8"),
            ("name", "<i8"),
        ]
    )
    roots = np.zeros(len(requests), dtype)
    roots["start"], roots["end"] = began(requests), requests["end_mono_ns"]
    roots["request"] = np.arange(len(requests))
    roots["tid"], roots["name"] = requests["tid"], -1
    roots["kind"] = np.where(requests["asynchronous"] != 0, SpanKind.AWAIT, SpanKind.SYNC)
    inner = np.zeros(len(spans), dtype)
    of = spans["request"]
    low, high = requests["start_mono_ns"][of], requests["end_mono_ns"][of]
    inner["start"] = np.clip(spans["start_mono_ns"], low, high)
    inner["end"] = np.clip(spans["end_mono_ns"], low, high)
    inner["request"], inner["tid"] = of, spans["tid"]
    inner["kind"], inner["name"] = spans["kind"], spans["name"]
    return np.concatenate((roots, _arrivals(evidence, dtype), inner[inner["end"] > inner["start"]]))


def _arrivals(evidence: Evidence, dtype: np.dtype[np.void]) -> Table:
    """From the arrival of a request's first byte until a thread had read it."""
    requests, sockets = evidence.requests, messages(evidence.sockets)
    came = np.flatnonzero(requests["arrived_mono_ns"] > 0)
    if not len(came) or not len(sockets):
        return np.zeros(0, dtype)
    sockets = sockets[np.argsort(sockets["arrived_mono_ns"], kind="stable")]
    at = np.searchsorted(sockets["arrived_mono_ns"], requests["arrived_mono_ns"][came])
    at = np.minimum(at, len(sockets) - 1)
    same = sockets["arrived_mono_ns"][at] == requests["arrived_mono_ns"][came]
    came, read = came[same], sockets[at[same]]
    elements = np.zeros(len(came), dtype)
    elements["start"] = read["arrived_mono_ns"]
    elements["end"] = np.minimum(read["to_mono_ns"], requests["start_mono_ns"][came])
    elements["request"], elements["tid"], elements["name"] = came, read["tid"], -1
    elements["kind"] = np.where(read["flags"] & SocketFlags.UNACCEPTED != 0, _ACCEPT, _UNREAD)
    return elements[elements["end"] > elements["start"]]


def _innermost(spans: Table) -> tuple[Ints, Ints, Ints, Ints]:
    """Elementary segments (request, start, end) and the row of the innermost span that covers each."""
    times, start_rank = np.unique(np.concatenate((spans["start"], spans["end"])), return_inverse=True)
    start_rank, end_rank = start_rank[: len(spans)], start_rank[len(spans) :]
    # A boundary is a (request, time) pair as one number; ranks instead of times keep it small.
    base = spans["request"] * len(times)
    bounds = np.unique(np.concatenate((base + start_rank, base + end_rank)))
    first = np.searchsorted(bounds, base + start_rank)
    past = np.searchsorted(bounds, base + end_rank)
    count = past - first
    # Innermost: started last; of those that started together the one that ends first, then the one named last.
    depth = np.empty(len(spans), np.int64)
    depth[np.lexsort((np.arange(len(spans)), -spans["end"], spans["start"]))] = np.arange(len(spans))
    owner = np.repeat(np.arange(len(spans)), count)
    segment = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count) + first[owner]
    best = np.full(len(bounds), -1, np.int64)
    np.maximum.at(best, segment, depth[owner])
    by_depth = np.empty(len(spans), np.int64)
    by_depth[depth] = np.arange(len(spans))
    covered = np.flatnonzero(best >= 0)
    winner = by_depth[best[covered]]
    return (
        bounds[covered] // len(times),
        times[bounds[covered] % len(times)],
        times[bounds[covered + 1] % len(times)],
        winner,
    )


@dataclass(slots=True)
class _Parts:
    parent: Ints
    start: Ints
    end: Ints
    hold: Ints
    activation: Ints


def _behind(evidence: Evidence, request: Ints, start: Ints, end: Ints, tid: Ints, kind: Ints) -> _Parts:
    """Split queued, unread and suspended segments by what the thread they depend on worked for meanwhile."""
    order = np.lexsort((evidence.activations["start_mono_ns"], evidence.activations["tid"]))
    activations = evidence.activations[order]
    _, key = np.unique(np.concatenate((activations["tid"].astype(np.int64), tid)), return_inverse=True)
    cover_key, segment_key = (
        key[: len(activations)].astype(np.int64),
        key[len(activations) :].astype(np.int64),
    )
    cover = disjoint(cover_key, activations["start_mono_ns"], activations["end_mono_ns"])
    tiles = tile(segment_key, start, end, cover_key, *cover)
    kind = kind[tiles.parent]
    idle = np.where(kind == SpanKind.QUEUED, Hold.QUEUED, np.where(kind == _UNREAD, Hold.UNREAD, Hold.AWAIT))
    idle = np.where(tid[tiles.parent] == 0, Hold.NOWHERE, idle)
    if not len(activations):
        return _Parts(tiles.parent, tiles.start, tiles.end, idle, tiles.cover)
    own_id = np.frombuffer(evidence.requests["span_id"].tobytes(), ">u8").astype(np.uint64)
    worked_for = activations[tiles.cover]
    own = (worked_for["kind"] == ActivationKind.STEP) & (worked_for["owner"] == own_id[request[tiles.parent]])
    busy = np.where(own, Hold.ON, Hold.BEHIND)
    hold = np.where(tiles.cover >= 0, busy, idle)
    activation = np.where(hold == Hold.BEHIND, order[tiles.cover], -1)
    return _Parts(tiles.parent, tiles.start, tiles.end, hold, activation)
