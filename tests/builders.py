"""Synthetic facts and verdicts for tests that need no kernel: one request that waited behind a CPU hog.

::

    0        12.0                            373.0       412.3 ms
    | futex  | run queue behind stress-ng    | on cpu    |
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tailspan.attribute.causes import N_CAUSES, Cause
from tailspan.attribute.verdict import (
    Alternative,
    Culprit,
    CulpritKind,
    Like,
    Outcome,
    Part,
    RequestFacts,
    Step,
    Trust,
    Verdict,
)
from tailspan.timeline.evidence import TABLES, Evidence, LikeRow, Meta, Table

MS = 1_000_000
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
PARENT_ID = "53995c3f42cd8ad8"
START_MONO_NS = 1_000_000_000_000
UNIX_OFFSET_NS = 1_763_000_000_000_000_000
WALL_NS = 412_300_000

_CUTS_NS = {
    Cause.FUTEX: (0, 12 * MS),
    Cause.RUN_QUEUE: (12 * MS, 373 * MS),
    Cause.ON_CPU: (373 * MS, WALL_NS),
}
_HOG = Culprit(CulpritKind.PROCESS, 358 * MS, "stress-ng[9001]", 9001, 9001, "stress-ng", "/batch.slice")


def sample_request(**changes: Any) -> RequestFacts:
    request = RequestFacts(
        trace_id=TRACE_ID,
        span_id=SPAN_ID,
        parent_id=PARENT_ID,
        request_id="req-23",
        name="POST /v1/infer",
        model="resnet50",
        model_version="3",
        service="worker",
        status="ok",
        pid=8100,
        tid=8123,
        start_mono_ns=START_MONO_NS,
        start_unix_ns=START_MONO_NS + UNIX_OFFSET_NS,
        wall_ns=WALL_NS,
        batch_id=5512,
        batch_size=8,
        batch_capacity=16,
        sampled=True,
    )
    return replace(request, **changes)


def sample_step(cause: Cause, start_ns: int, end_ns: int, note: str = "") -> Step:
    return Step(start_ns, end_ns, "infer", 8123, "ort", cause, note)


def sample_verdict(**changes: Any) -> Verdict:
    verdict = Verdict(
        request=sample_request(),
        like=Like(n=2113, p50_ns=38 * MS, p95_ns=60 * MS, threshold_ns=60 * MS),
        ledger=(
            Part(Cause.RUN_QUEUE, 361 * MS, 1 * MS, (_HOG,)),
            Part(Cause.ON_CPU, WALL_NS - 373 * MS, 31 * MS, ()),
            Part(Cause.FUTEX, 12 * MS, 6 * MS, ()),
        ),
        outcome=Outcome.NAMED,
        cause=Cause.RUN_QUEUE,
        culprit=_HOG,
        sentence="374 ms above normal. 358 ms of it: thread 8123 was ready to run while stress-ng[9001] ran.",
        confidence=0.95,
        excess_ns=374 * MS,
        alternatives=(Alternative(Cause.FUTEX, None, 6 * MS, "6 ms of 374"),),
        ruled_out=("throttled",),
        waterfall=tuple(
            sample_step(cause, *cut, note="stress-ng[9001]" if cause is Cause.RUN_QUEUE else "")
            for cause, cut in _CUTS_NS.items()
        ),
        trust=Trust(coverage=1.0, lost=0, clock_error_ns=12_000, gpu_sample_age_ns=None, notes=()),
    )
    return replace(verdict, **changes)


def table(which: str, /, rows: int = 1, **columns: Any) -> Table:
    """Rows of an evidence table; columns that are not named read 0."""
    table: Table = np.zeros(rows, TABLES[which])
    for column, values in columns.items():
        table[column] = values
    return table


def sample_evidence(**changes: Any) -> Evidence:
    ready, on = START_MONO_NS + 12 * MS, START_MONO_NS + 373 * MS
    evidence = Evidence(
        requests=table(
            "requests",
            trace_id=[bytes.fromhex(TRACE_ID)],
            span_id=[bytes.fromhex(SPAN_ID)],
            parent_id=[bytes.fromhex(PARENT_ID)],
            request_id=[b"req-23"],
            start_mono_ns=[START_MONO_NS],
            end_mono_ns=[START_MONO_NS + WALL_NS],
            name=[0],
            model=[1],
            version=[2],
            service=[3],
            status=[4],
            tid=[8123],
            tgid=[8100],
            sampled=[1],
        ),
        spans=table(
            "spans",
            start_mono_ns=[START_MONO_NS],
            end_mono_ns=[START_MONO_NS + WALL_NS],
            name=[5],
            tid=[8123],
        ),
        cycles=table(
            "cycles",
            run_mono_ns=[START_MONO_NS - MS],
            off_mono_ns=[START_MONO_NS],
            ready_mono_ns=[ready],
            on_mono_ns=[on],
            tid=[8123],
            tgid=[8100],
            waker_comm=[b"batcher"],
        ),
        slices=table("slices", start_mono_ns=[ready], end_mono_ns=[on], cpu=[1]),
        threads=table("threads", gone_mono_ns=[np.iinfo(np.int64).max], tid=[8123], tgid=[8100], comm=[b"ort"]),
        strings=["POST /v1/infer", "resnet50", "3", "worker", "ok", "infer"],
        likes=[LikeRow(2113, 38 * MS, 60 * MS, 60 * MS, [0] * N_CAUSES)],
        meta=Meta(
            host="node-1",
            unix_offset_ns=UNIX_OFFSET_NS,
            cpu_count=2,
            cgroups={"42": "/batch.slice"},
            resources={"8100": {"service.name": "worker"}},
        ),
    )
    return replace(evidence, **changes)
