"""A storm of context switches on CPUs that many threads wait for: exact, and in bounded memory.

``pytest -s`` prints what it takes with long waits summed, and without.
"""

from __future__ import annotations

import sys
import time
import tracemalloc

import numpy as np
import pytest

from tailspan.attribute import intervals
from tailspan.attribute.causes import N_CAUSES, Cause
from tailspan.attribute.judge import judge
from tailspan.attribute.ledger import account, ledgers
from tailspan.timeline.evidence import Evidence, LikeRow
from tests.builders import MS, table

WAITS, SLICES, SLICE_NS = 16, 20_000, 10_000
WAIT_NS = SLICES * SLICE_NS
FIRST_TID = 100
PINGS = (7, 9)  #: two that hand a CPU to each other


def storm() -> Evidence:
    """Each thread waits as long for the same CPU, and then has served its request."""
    start = 1_000 * MS
    tids = FIRST_TID + np.arange(WAITS)
    at = start + np.arange(SLICES) * SLICE_NS
    slices = table("slices", rows=SLICES, start_mono_ns=at, end_mono_ns=at + SLICE_NS, cpu=0)
    slices["runner"]["tid"] = slices["runner"]["tgid"] = np.resize(PINGS, SLICES)
    slices["runner"]["comm"] = b"ping"
    cycles = table(
        "cycles",
        rows=WAITS,
        tid=tids,
        tgid=FIRST_TID,
        run_mono_ns=start - MS,
        off_mono_ns=start,
        ready_mono_ns=start,
        on_mono_ns=start + WAIT_NS,
        wait_cpu=0,
    )
    requests = table(
        "requests", rows=WAITS, tid=tids, tgid=FIRST_TID, start_mono_ns=start - MS, end_mono_ns=start + WAIT_NS
    )
    like = LikeRow(100, MS, MS, 2 * MS, [0] * N_CAUSES)
    evidence = Evidence(requests=requests, cycles=cycles, slices=slices, strings=[""], likes=[like] * WAITS)
    evidence.threads = table("threads", rows=WAITS, tid=tids, tgid=FIRST_TID, gone_mono_ns=np.iinfo(np.int64).max)
    return evidence


def test_each_has_had_the_cpu_for_as_long_as_its_slices_say() -> None:
    told = account(storm())
    rows, states = told.rows, told.states
    assert len(states.rows) <= WAITS * (len(PINGS) * intervals.STRETCHES + 2)
    waits = rows[rows["cause"] == Cause.RUN_QUEUE]
    runner = states.runners["tid"][states.rows["runner"][waits["state"]]]
    for number in range(WAITS):
        for tid in PINGS:
            mine = (waits["request"] == number) & (runner == tid)
            assert (waits["end"] - waits["start"])[mine].sum() == WAIT_NS / 2
    table_ = ledgers(told, WAITS)
    assert table_.sum(axis=1).tolist() == [WAIT_NS + MS] * WAITS
    assert table_[:, Cause.RUN_QUEUE].tolist() == [WAIT_NS] * WAITS


def test_it_is_judged_in_a_fraction_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak_mib() -> float:
        evidence = storm()
        tracemalloc.start(1)
        began_s = time.thread_time()
        judge(evidence, np.arange(WAITS))
        took_s = time.thread_time() - began_s
        peak = tracemalloc.get_traced_memory()[1] / (1 << 20)
        tracemalloc.stop()
        print(
            f"{WAITS} waits of {SLICES:,} slices: {peak:.1f} MiB at the peak, {took_s:.2f} s, allocations traced"
        )
        return peak

    summed = peak_mib()
    monkeypatch.setattr(intervals, "MANY_COVERS", sys.maxsize)
    assert summed < peak_mib() / 4
