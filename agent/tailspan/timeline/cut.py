"""Cutting evidence: all pending requests from the live window, then only those worth keeping."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tailspan.timeline.arrivals import began
from tailspan.timeline.evidence import Evidence, Meta, Table
from tailspan.timeline.inbox import Rows
from tailspan.timeline.threads import Threads
from tailspan.timeline.window import Strings, Window

#: What was done to a process shortly before a request may still last: a stop signal.
INCIDENT_REACH_NS = 10_000_000_000

#: Where a GPU's last sample was, and whether it was idle before, tells about what comes after.
GPU_REACH_NS = 3_000_000_000

_REQUEST_STRINGS = ("name", "model", "version", "service", "status", "device", "provider")


def select(rows: Rows, keep: npt.NDArray[np.int64]) -> Rows:
    """Some of the requests (row indices, ascending) with their spans."""
    if len(keep) == len(rows.requests):
        return rows
    return replace(rows, requests=rows.requests[keep], spans=_spans_of(rows.spans, keep, len(rows.requests)))


def cut(
    rows: Rows, window: Window, threads: Threads, open_threads: Table, strings: Strings, meta: Meta
) -> Evidence:
    """Evidence about all requests of ``rows``: what overlaps the time they span. ``likes`` is left empty."""
    start = int(began(rows.requests).min())
    end = int(rows.requests["end_mono_ns"].max())
    return Evidence(
        requests=rows.requests,
        spans=rows.spans,
        activations=window.activations.cut(start, end),
        cycles=window.sorted_cycles(start, end),
        slices=window.sorted_slices(start, end),
        open_threads=open_threads,
        threads=threads.rows(start),
        losses=window.losses.cut(start, end),
        sockets=window.sockets.cut(start, end),
        blocks=window.blocks.cut(start, end),
        incidents=window.incidents.cut(start - INCIDENT_REACH_NS, end),
        pauses=window.pauses.cut(start, end),
        samples=window.samples.cut(start, end),
        gpu_calls=window.gpu_calls.cut(start - GPU_REACH_NS, end),
        gpu_samples=window.gpu_samples.cut(start - GPU_REACH_NS, end),
        gpu_processes=window.gpu_processes.cut(start - GPU_REACH_NS, end),
        gpu_events=window.gpu_events.cut(start - INCIDENT_REACH_NS, end),
        strings=strings.all,
        meta=meta,
    )


def narrow(evidence: Evidence, keep: npt.NDArray[np.int64]) -> Evidence:
    """The evidence about some of its requests (row indices, ascending), small enough to store.

    A verdict of the narrowed evidence is the one of the whole: only rows outside the kept requests' time go.
    """
    requests = evidence.requests[keep]
    spans = _spans_of(evidence.spans, keep, len(evidence.requests))
    times = _merged(began(requests), requests["end_mono_ns"])
    before = _merged(began(requests) - GPU_REACH_NS, requests["end_mono_ns"])
    narrowed = Evidence(
        requests=requests,
        spans=spans,
        activations=_overlapping(evidence.activations, "start_mono_ns", "end_mono_ns", times),
        cycles=_overlapping(evidence.cycles, "run_mono_ns", "on_mono_ns", times),
        slices=_overlapping(evidence.slices, "start_mono_ns", "end_mono_ns", times),
        open_threads=evidence.open_threads,
        threads=_overlapping(evidence.threads, "followed_mono_ns", "gone_mono_ns", times),
        losses=_overlapping(evidence.losses, "start_mono_ns", "end_mono_ns", times),
        sockets=_overlapping(evidence.sockets, "from_mono_ns", "to_mono_ns", times),
        blocks=_overlapping(evidence.blocks, "queued_mono_ns", "completed_mono_ns", times),
        incidents=evidence.incidents,
        pauses=_overlapping(evidence.pauses, "start_mono_ns", "end_mono_ns", times),
        samples=_overlapping(evidence.samples, "start_mono_ns", "end_mono_ns", times),
        gpu_calls=_overlapping(evidence.gpu_calls, "enter_mono_ns", "exit_mono_ns", before),
        gpu_samples=_overlapping(evidence.gpu_samples, "start_mono_ns", "end_mono_ns", before),
        gpu_processes=_overlapping(evidence.gpu_processes, "start_mono_ns", "end_mono_ns", before),
        gpu_events=evidence.gpu_events,
        likes=[evidence.likes[index] for index in keep.tolist() if index < len(evidence.likes)],
        meta=evidence.meta,
    )
    _renumber_strings(narrowed, evidence.strings)
    return narrowed


def _spans_of(spans: Table, keep: npt.NDArray[np.int64], requests: int) -> Table:
    """The spans of the kept ones of so many requests, which index those now."""
    place = np.full(requests, -1)
    place[keep] = np.arange(len(keep))
    found: Table = spans[place[spans["request"]] >= 0]
    found["request"] = place[found["request"]]
    return found


_Times = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _merged(start: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> _Times:
    """The union of intervals, as starts and ends of disjoint ones in order."""
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    begins = np.append(True, start[1:] > reach[:-1])
    return start[begins], reach[np.append(begins[1:], True)]


def _overlapping(rows: Table, first: str, last: str, times: _Times) -> Table:
    """The rows that touch any of the times."""
    starts, ends = times
    nearest = np.minimum(np.searchsorted(ends, rows[first]), len(ends) - 1)  # the first that ends after it begins
    touching = (ends[nearest] >= rows[first]) & (starts[nearest] <= rows[last])
    found: Table = rows[touching]
    return found


def _renumber_strings(evidence: Evidence, strings: list[str]) -> None:
    """Keep only the strings that are used. Index 0 stays the empty string."""
    columns = [(evidence.requests, field) for field in _REQUEST_STRINGS]
    columns += [(evidence.spans, "name"), (evidence.activations, "name")]
    used = np.unique(np.concatenate([[0], *(table[field] for table, field in columns)]))
    for table, field in columns:
        table[field] = np.searchsorted(used, table[field])
    evidence.strings = [strings[int(index)] for index in used]
