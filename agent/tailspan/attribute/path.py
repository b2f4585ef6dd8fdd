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
from tailspan.timeline.evidence import Evidence, Table
from tailspan.wire.spans import ActivationKind, SpanKind


class Hold(IntEnum):
    """How the request depends on the segment's thread."""

    ON = 0  #: the thread works for this request
    BEHIND = 1  #: the thread works for others; ``activation`` says for whom
    QUEUED = 2  #: the thread works for nobody we know, and has not taken the request up yet
    AWAIT = 3  #: the request is suspended, and the event loop works for nobody we know
    NOWHERE = 4  #: queued for a thread that the worker did not name


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
    waits = np.flatnonzero(kind != SpanKind.SYNC)
    hold = np.full(len(kind), Hold.ON, np.int64)
    activation = np.full(len(kind), -1, np.int64)
    if not len(waits):
        return Path(request, start, end, tid, hold, name, activation)

    parts = _behind(evidence, request[waits], start[waits], end[waits], tid[waits], kind[waits])
    origin = waits[parts.parent]
    on = np.flatnonzero(kind == SpanKind.SYNC)
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
    """Every request as a span of its own (``name`` -1), then its spans, cut to the request."""
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
    roots["start"], roots["end"] = requests["start_mono_ns"], requests["end_mono_ns"]
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
    return np.concatenate((roots, inner[inner["end"] > inner["start"]]))


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
    """Split queued and suspended segments by what the thread they depend on worked for meanwhile."""
    order = np.lexsort((evidence.activations["start_mono_ns"], evidence.activations["tid"]))
    activations = evidence.activations[order]
    _, key = np.unique(np.concatenate((activations["tid"].astype(np.int64), tid)), return_inverse=True)
    cover_key, segment_key = (
        key[: len(activations)].astype(np.int64),
        key[len(activations) :].astype(np.int64),
    )
    cover = disjoint(cover_key, activations["start_mono_ns"], activations["end_mono_ns"])
    tiles = tile(segment_key, start, end, cover_key, *cover)
    idle = np.where(kind[tiles.parent] == SpanKind.QUEUED, Hold.QUEUED, Hold.AWAIT)
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
