"""Whose turns a verdict may look at: of its requests' threads, their wakers, and those that had their CPUs.

On a host with thousands of followed threads that is a small part of what they all did meanwhile; what is left out
would be read, attributed and stored for nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tailspan.timeline.evidence import Evidence, Table
from tailspan.timeline.tables import join
from tailspan.wire.events import CycleFlags, ObjectKind

Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def related(evidence: Evidence) -> Evidence:
    """The evidence without the turns of threads that have nothing to do with its requests.

    Its verdicts are those of the whole. Each process has a row of ``open_threads`` left, which says its cgroup.
    """
    tids = _threads(evidence)
    cycles, looked = evidence.cycles, evidence.open_threads
    own = np.isin(cycles["tid"], tids)
    kept = np.isin(looked["tid"], tids)
    kept[_one_of_each_process(looked)] = True
    return replace(evidence, cycles=cycles[own | _had_their_cpus(evidence, own, tids)], open_threads=looked[kept])


def _one_of_each_process(looked: Table) -> Ints:
    """Rows: its main thread, else the last of it."""
    order = np.argsort(looked["tid"] == looked["tgid"], kind="stable")[::-1]
    _, first = np.unique(looked["tgid"][order], return_index=True)
    found: Ints = order[first]
    return found


def _threads(evidence: Evidence) -> Ints:
    """Named by the requests and by what was done for them; and, from waker to waker, who ended their waits."""
    requests, sockets = evidence.requests, evidence.sockets
    read = np.isin(sockets["arrived_mono_ns"], requests["arrived_mono_ns"][requests["arrived_mono_ns"] > 0])
    named = (requests["tid"], evidence.spans["tid"], sockets["tid"][read])
    tids = np.unique(np.concatenate(named).astype(np.int64))
    asleep, wakers = _wakers(evidence)
    asleep, wakers = _and_who_had_the_lock(evidence, asleep, wakers)
    tids = _closed(tids, asleep, wakers)
    # Native pool threads work for who has woken them.
    native = evidence.threads["tid"][evidence.threads["named"] == 0]
    pool = np.unique(asleep[np.isin(wakers, tids) & np.isin(asleep, native)])
    return _closed(np.union1d(tids, pool), asleep, wakers)


def _wakers(evidence: Evidence) -> tuple[Ints, Ints]:
    """(who slept, who ended that), each pair once."""
    parts = [(rows["tid"], rows["waker_tid"]) for rows in (evidence.cycles, evidence.open_threads)]
    asleep, wakers = (np.concatenate(column).astype(np.int64) for column in zip(*parts, strict=True))
    pairs = np.unique(asleep[wakers > 0] << 32 | wakers[wakers > 0])
    return pairs >> 32, pairs & 0xFFFFFFFF


def _and_who_had_the_lock(evidence: Evidence, asleep: Ints, wakers: Ints) -> tuple[Ints, Ints]:
    """A thread that waits for its interpreter's lock waits for any that runs Python in its process."""
    cycles = evidence.cycles
    for tgid, ranges in evidence.meta.runtime_locks.items():
        futex = (cycles["tgid"] == int(tgid)) & (cycles["object_kind"] == ObjectKind.FUTEX)
        waits = np.zeros(len(cycles), bool)
        for low, past in ranges:
            waits |= futex & (cycles["object"] >= low) & (cycles["object"] < past)
        python = np.unique(np.concatenate((cycles["tid"][waits], cycles["waker_tid"][waits]))).astype(np.int64)
        python = python[python > 0]
        if len(python):  # one after the other in a ring: who knows one knows all
            asleep, wakers = np.append(asleep, python), np.append(wakers, np.roll(python, 1))
    return asleep, wakers


def _closed(tids: Ints, asleep: Ints, wakers: Ints) -> Ints:
    while True:
        more = np.union1d(tids, wakers[np.isin(asleep, tids)])
        if len(more) == len(tids):
            return tids
        tids = more


def _had_their_cpus(evidence: Evidence, own: Flags, tids: Ints) -> Flags:
    """Turns of others that say who had a CPU while one of these threads waited for it."""
    cycles, looked = evidence.cycles, evidence.open_threads
    found = np.zeros(len(cycles), bool)
    others = np.flatnonzero(~own & (cycles["flags"] & CycleFlags.RUNNER != 0))
    waits = _waits(cycles[own], looked[np.isin(looked["tid"], tids)])
    if not len(others) or not len(waits):
        return found
    rows = cycles[others]
    first = min(int(rows["runner_since_mono_ns"].min()), int(waits["start"].min()))
    span = max(int(rows["on_mono_ns"].max()), int(waits["end"].max())) - first + 1
    base = waits["cpu"] * span - first
    order = np.argsort(base + waits["start"], kind="stable")
    starts, reach = (base + waits["start"])[order], np.maximum.accumulate((base + waits["end"])[order])
    cpu = rows["wait_cpu"].astype(np.int64) * span - first
    before = np.searchsorted(starts, cpu + rows["on_mono_ns"])  # waits that began before it was over
    overlaps = (before > 0) & (reach[np.maximum(before - 1, 0)] > cpu + rows["runner_since_mono_ns"])
    found[others[overlaps]] = True
    return found


_WAIT = np.dtype([("cpu", "<i8"), ("start", "<i8"), ("end", "<i8")])


def _waits(cycles: Table, looked: Table) -> Table:
    """For a CPU."""
    looked = looked[looked["ready_mono_ns"] > 0]
    parts = []
    for rows, end in ((cycles, "on_mono_ns"), (looked, "taken_mono_ns")):
        waits = np.zeros(len(rows), _WAIT)
        waits["cpu"], waits["start"], waits["end"] = rows["wait_cpu"], rows["ready_mono_ns"], rows[end]
        parts.append(waits)
    found = join(parts, _WAIT)
    return found[found["end"] > found["start"]]
