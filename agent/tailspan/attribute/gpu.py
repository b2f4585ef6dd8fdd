"""What a thread waited for in a call into the GPU's driver, and what made that wait longer.

The time of a call becomes its cause, but for what hindered the thread itself there. A wait for the device is then
split by what NVML says of the device meanwhile: the share that other processes' kernels took, the share by which
clocks were low, and the device's own work. Those parts are laid one after the other, the device's own work first:
their order within one wait means nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tailspan.attribute.causes import Cause
from tailspan.attribute.intervals import Flags, Ints, disjoint, tile, tile_by_thread
from tailspan.timeline.evidence import Evidence, Table
from tailspan.timeline.tables import GpuEventKind, join
from tailspan.wire.events import GpuCallKind

Floats = npt.NDArray[np.float64]

#: By GpuCallKind; launches return at once.
_OF_CALL = np.array([Cause.GPU, Cause.GPU_COPY, Cause.GPU_ALLOC, Cause.GPU_ALLOC, Cause.GPU_LOAD], np.int64)
#: What a thread does in a call that is the call's own doing: it spins, or sleeps until the device has done.
_ITSELF = (Cause.ON_CPU, Cause.POLL, Cause.SLEEP, Cause.OTHER, Cause.PIPE, Cause.UNIX, Cause.GPU)
#: Kinds of calls during which the device goes on without the thread.
_DEVICE_WORKS = (GpuCallKind.SYNC, GpuCallKind.COPY)
#: Waits that a fault of the device explains.
_CALLS = (Cause.GPU, Cause.GPU_COPY, Cause.GPU_ALLOC, Cause.GPU_LOAD)

#: A thread that gets on a CPU again and returns so soon may have been waiting for nothing but that CPU.
RETURN_NS = 100_000
#: The last sample holds for so long.
STALE_NS = 2_000_000_000
#: Below this share of its highest clock a GPU is slow.
SLOW_CLOCK = 0.9
#: Nothing asked of a device for so long lets its clocks go down; and so long after that they may still be low.
IDLE_NS, WARM_UP_NS = 100_000_000, 500_000_000
#: From this share on memory is full: allocators keep a reserve, and fragments remain.
FULL = 0.95
#: How long an allocation that failed, and an error of the device, explain what comes after.
FAILED_ALLOCATION_NS, ERROR_NS, LOST_NS = 1_000_000_000, 1_000_000_000, 10_000_000_000
#: A smaller part of a wait is not split off.
_SMALLEST_NS = 20_000

#: Of PCIe, one direction, by generation.
_LANE_BYTES_PER_S = np.array([0.25, 0.25, 0.5, 0.985, 1.969, 3.938, 7.563]) * 1e9

OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY and cudaErrorMemoryAllocation

# nvmlClocksEventReason*, nvml.h
REASON_IDLE = 0x1
REASON_SET = 0x2  # clocks set by an administrator
REASON_POWER = 0x4
REASON_HARDWARE = 0x8
REASON_SYNC_BOOST = 0x10
REASON_THERMAL = 0x20 | 0x40
REASON_BRAKE = 0x80
_CAPPED = REASON_SET | REASON_POWER | REASON_HARDWARE | REASON_SYNC_BOOST | REASON_THERMAL | REASON_BRAKE


def split(rows: Table, evidence: Evidence) -> Table:
    """States of threads (rows of States), those in calls into the driver as what they waited for; in no order."""
    rows = _split_by_call(rows, evidence.gpu_calls)
    in_call = np.isin(rows["cause"], _CALLS)
    if not in_call.any():
        return rows
    calls = rows[in_call]
    devices = Devices(evidence)
    calls["gpu"] = [devices.of(*who) for who in zip(calls["tid"].tolist(), calls["tgid"].tolist(), strict=True)]
    calls = _split_by_fault(_split_copies(calls, evidence), evidence.gpu_events)
    _full(calls, evidence)
    return join((rows[~in_call], _split_by_device(calls, evidence)), rows.dtype)


class Devices:
    """Which GPU (row of ``Meta.gpus``) each thread uses.

    What its requests named; or the one on which NVML sees its process; or the only one there is.
    """

    def __init__(self, evidence: Evidence) -> None:
        gpus = evidence.meta.gpus
        number = {gpu["uuid"]: at for at, gpu in enumerate(gpus)}
        named = np.array([number.get(text, -1) for text in evidence.strings] or [-1])
        requests, spans = evidence.requests, evidence.spans
        self._by_tid = _only_one(spans["tid"], named[requests["device"][spans["request"]]])
        self._by_tgid = _only_one(requests["tgid"], named[requests["device"]])
        processes = evidence.gpu_processes
        seen: dict[int, set[int]] = {}
        for tgid, gpu in set(zip(processes["tgid"].tolist(), processes["gpu"].tolist(), strict=True)):
            seen.setdefault(tgid, set()).add(gpu)
        for tgid, used in seen.items():
            # A MIG instance's processes are on its card too.
            used = used - {number.get(gpus[gpu].get("parent", ""), -1) for gpu in used}
            if len(used) == 1:
                self._by_tgid.setdefault(tgid, used.pop())
        self._otherwise = 0 if len(gpus) == 1 else -1
        #: Processes that are known to use any.
        self.users = set(seen) | set(self._by_tgid) | set(np.unique(evidence.gpu_calls["tgid"]).tolist())

    def of(self, tid: int, tgid: int) -> int:
        """-1 where it is not known."""
        return self._by_tid.get(tid, self._by_tgid.get(tgid, self._otherwise))


def _only_one(who: Ints, gpu: Ints) -> dict[int, int]:
    """Those who named exactly one GPU."""
    known = gpu >= 0
    pairs = np.unique(np.stack((who[known].astype(np.int64), gpu[known]), axis=1), axis=0)
    ones, first, count = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    alone = count == 1
    return dict(zip(ones[alone].tolist(), pairs[first[alone], 1].tolist(), strict=True))


def _split_by_call(rows: Table, calls: Table) -> Table:
    order = np.lexsort((calls["enter_mono_ns"], calls["tid"]))
    order = order[calls["kind"][order] < len(_OF_CALL)]
    calls = calls[order]
    called = np.isin(rows["tid"], calls["tid"])
    if not called.any():
        return rows
    mine = rows[called]
    of = (calls["tid"], calls["enter_mono_ns"], calls["exit_mono_ns"])
    tiles = tile_by_thread((mine["tid"], mine["start"], mine["end"]), of)
    parts = mine[tiles.parent]
    parts["start"], parts["end"] = tiles.start, tiles.end
    inside, call = tiles.cover >= 0, tiles.cover
    cause, kind = parts["cause"], calls["kind"][call]
    itself = inside & (np.isin(cause, _ITSELF) | ((cause == Cause.FUTEX) & (parts["waker_tid"] == 0)))
    # A wait for a CPU made the call longer only if the device had done by then: if it returned right after.
    worked = itself & (tiles.end - tiles.start >= RETURN_NS)
    busy_until = np.zeros(len(calls), np.int64)
    np.maximum.at(busy_until, call[worked], tiles.end[worked])
    waits = inside & np.isin(cause, (Cause.RUN_QUEUE, Cause.THROTTLED)) & np.isin(kind, _DEVICE_WORKS)
    itself |= waits & (tiles.start < busy_until[call])
    parts["cause"] = np.where(itself, _OF_CALL[np.minimum(kind, len(_OF_CALL) - 1)], cause)
    parts["call"] = np.where(itself, order[call], -1)
    return join((rows[~called], parts), rows.dtype)


def _split_copies(calls: Table, evidence: Evidence) -> Table:
    """A copy waits for what its process has launched before: until that is done it is a wait for the device.

    Other threads' work is done when their call that waits for it returns. Of the thread's own, nothing tells: what
    the link may have taken for so many bytes, at half of its nominal rate, is left to the copy. Copies on a stream
    of their own, which wait for nobody, are wrongly told as waiting.
    """
    copies = calls["cause"] == Cause.GPU_COPY
    if not copies.any():
        return calls
    rows = calls[copies]
    own = evidence.gpu_calls[rows["call"]]
    launched = own["launches"] > 0
    ns_of_bytes = own["bytes"].astype(np.int64) * 1e9 / (_link_bytes_per_s(rows, evidence.gpu_samples) / 2)
    until = np.where(launched, own["exit_mono_ns"] - ns_of_bytes.astype(np.int64), 0)
    work = evidence.gpu_calls[(evidence.gpu_calls["launches"] > 0) & (evidence.gpu_calls["launch_mono_ns"] > 0)]
    work = work[np.lexsort((work["launch_mono_ns"], work["tgid"]))]
    tgid = work["tgid"].astype(np.int64)
    cover = disjoint(tgid, work["launch_mono_ns"], work["exit_mono_ns"])
    # Of the thread's own work the copy itself would be the end.
    tiles = tile(np.where(launched, -1, rows["tgid"]) + 1, rows["start"], rows["end"], tgid + 1, *cover)
    parts = rows[tiles.parent]
    parts["start"], parts["end"] = tiles.start, tiles.end
    parts["cause"] = np.where(tiles.cover >= 0, Cause.GPU, parts["cause"])
    until = np.clip(until[tiles.parent], parts["start"], parts["end"])
    waited, copied = parts.copy(), parts
    waited["end"], waited["cause"], copied["start"] = until, Cause.GPU, until
    waited, copied = waited[waited["end"] > waited["start"]], copied[copied["end"] > copied["start"]]
    return join((calls[~copies], waited, copied), calls.dtype)


def _link_bytes_per_s(rows: Table, samples: Table) -> Floats:
    """Nominal, of each row's GPU; where it is not known, as a link of generation 3 with 16 lanes."""
    rate = np.full(len(rows), 16 * _LANE_BYTES_PER_S[3])
    samples = samples[(samples["pcie_gen"] > 0) & (samples["pcie_width"] > 0)]
    if len(samples):
        at = _at(rows["gpu"], rows["end"], *_covers(samples))
        lane = _LANE_BYTES_PER_S[np.minimum(samples["pcie_gen"][at], len(_LANE_BYTES_PER_S) - 1)]
        rate = np.where(at >= 0, samples["pcie_width"][at] * lane, rate)
    return rate


def _split_by_fault(calls: Table, events: Table) -> Table:
    """From an error of the device on, a wait for it is a wait for a device with an error."""
    if not len(events):
        return calls
    order = np.lexsort((events["mono_ns"], events["gpu"]))
    gpu, kind = events["gpu"][order].astype(np.int64), events["kind"][order]
    start = events["mono_ns"][order]
    end = start + np.where(kind == GpuEventKind.LOST, LOST_NS, ERROR_NS)
    for back in np.flatnonzero(kind == GpuEventKind.BACK).tolist():
        ended = (gpu == gpu[back]) & (start <= start[back])
        end[ended] = np.minimum(end[ended], start[back])
    cover = disjoint(gpu, start, end)
    nowhere = int(gpu.max()) + 1
    of = np.where(calls["gpu"] >= 0, calls["gpu"], nowhere)
    tiles = tile(of.astype(np.int64), calls["start"], calls["end"], gpu, *cover)
    parts = calls[tiles.parent]
    parts["start"], parts["end"] = tiles.start, tiles.end
    hit = tiles.cover >= 0
    parts["cause"] = np.where(hit, Cause.GPU_FAULT, parts["cause"])
    parts["told"] = np.where(hit, order[tiles.cover], -1)
    return parts


def _full(calls: Table, evidence: Evidence) -> None:
    """Allocations while memory was full, or after one had failed."""
    allocated = np.flatnonzero(calls["cause"] == Cause.GPU_ALLOC)
    if not len(allocated):
        return
    rows = calls[allocated]
    samples = evidence.gpu_samples
    samples = samples[(samples["memory_total_bytes"] > 0) & (samples["memory_used_bytes"] >= 0)]
    full = np.zeros(len(rows), bool)
    if len(samples):
        at = _at(rows["gpu"], rows["end"], *_covers(samples))
        used = samples["memory_used_bytes"][at] / samples["memory_total_bytes"][at]
        full = (at >= 0) & (used >= FULL)
    failed = evidence.gpu_calls[evidence.gpu_calls["result"] == OUT_OF_MEMORY]
    failed = failed[failed["kind"] == GpuCallKind.ALLOC]
    for call in failed[-64:]:  # of a storm the last
        since = rows["end"] - call["enter_mono_ns"]
        full |= (rows["tgid"] == call["tgid"]) & (since > 0) & (since < FAILED_ALLOCATION_NS)
    calls["cause"][allocated[full]] = Cause.GPU_FULL


def _split_by_device(calls: Table, evidence: Evidence) -> Table:
    """Waits for the device, split by what it was like meanwhile."""
    waited = np.isin(calls["cause"], (Cause.GPU, Cause.GPU_COPY)) & (calls["gpu"] >= 0)
    if not waited.any():
        return calls
    waits = calls[waited]
    length = waits["end"] - waits["start"]
    shared, process = _shared(waits, evidence.gpu_processes)
    clocks, cold, sample = _slowed(waits, shared / np.maximum(length, 1), evidence)
    parts = [
        (waits["cause"], length - shared - clocks - cold, waits["told"]),
        (Cause.GPU_SHARED, shared, process),
        (Cause.GPU_CLOCKS, clocks, sample),
        (Cause.GPU_COLD, cold, sample),
    ]
    split, start = [calls[~waited]], waits["start"]
    for cause, ns, told in parts:
        part = waits.copy()
        part["start"], part["end"] = start, start + ns
        part["cause"], part["told"] = cause, told
        split.append(part[ns > 0])
        start = start + ns
    return join(split, calls.dtype)


def _shared(waits: Table, processes: Table) -> tuple[Ints, Ints]:
    """(ns that other processes' kernels took, the row of the one that took most) of each wait."""
    processes = processes[np.isin(processes["gpu"], waits["gpu"])]
    total = np.zeros(len(waits))
    most, which = np.zeros(len(waits)), np.full(len(waits), -1, np.int64)
    for tgid in np.unique(processes["tgid"][processes["sm_percent"] > 0]).tolist():
        row, start, end, gpu = _covers(processes, processes["tgid"] == tgid)
        tiles = tile(waits["gpu"], waits["start"], waits["end"], gpu, start, end)
        seen = (tiles.cover >= 0) & (waits["tgid"][tiles.parent] != tgid)
        parent, of = tiles.parent[seen], row[tiles.cover[seen]]
        share = np.maximum(processes["sm_percent"][of], 0) / 100
        took = np.bincount(parent, (tiles.end - tiles.start)[seen] * share, len(waits))
        last = np.full(len(waits), -1, np.int64)
        last[parent] = of
        which = np.where(took > most, last, which)
        most = np.maximum(most, took)
        total += took
    ns = np.minimum(total, waits["end"] - waits["start"]).astype(np.int64)
    return np.where(ns >= _SMALLEST_NS, ns, 0), which


def _slowed(waits: Table, shared: Floats, evidence: Evidence) -> tuple[Ints, Ints, Ints]:
    """(ns lost to capped clocks, to cold clocks, the sample that says so) of each wait. ``shared``: its share that
    others took.

    Work takes longer as the SM clock is lower; that of a device bound by its memory suffers less.
    """
    samples = evidence.gpu_samples
    row, start, end, gpu = _covers(samples)
    tiles = tile(waits["gpu"], waits["start"], waits["end"], gpu, start, end)
    seen = (tiles.cover >= 0) & (waits["cause"][tiles.parent] == Cause.GPU)
    parent, of = tiles.parent[seen], row[tiles.cover[seen]]
    sample = samples[of]
    speed = (sample["sm_before_mhz"] + sample["sm_mhz"]) / 2 / np.maximum(sample["sm_max_mhz"], 1)
    known = (sample["sm_mhz"] > 0) & (sample["sm_before_mhz"] > 0) & (sample["sm_max_mhz"] > 0)
    slow = known & (speed < SLOW_CLOCK)
    lost = np.where(slow, (tiles.end - tiles.start)[seen] * (1 - speed) * (1 - shared[parent]), 0)
    idle = _was_idle(waits, evidence)[parent]
    is_capped = capped(sample)
    by_cap = np.bincount(parent, np.where(is_capped, lost, 0), len(waits)).astype(np.int64)
    by_cold = np.bincount(parent, np.where(idle & ~is_capped, lost, 0), len(waits)).astype(np.int64)
    which = np.full(len(waits), -1, np.int64)
    order = np.argsort(lost, kind="stable")  # the last that is put is the one that lost most
    which[parent[order]] = of[order]
    return np.where(by_cap >= _SMALLEST_NS, by_cap, 0), np.where(by_cold >= _SMALLEST_NS, by_cold, 0), which


def capped(samples: Table) -> Flags:
    """Whether clocks were held down for a reason other than idleness."""
    found: Flags = (samples["reasons"] > 0) & (samples["reasons"] & _CAPPED != 0)
    for name in ("power_ns", "thermal_ns", "brake_ns", "board_ns"):
        found |= samples[name] > 0
    return found


def _was_idle(waits: Table, evidence: Evidence) -> Flags:
    """Whether the device had nothing to do shortly before: by the process's own calls, else by the samples."""
    calls, samples = evidence.gpu_calls, evidence.gpu_samples
    idle = np.zeros(len(waits), bool)
    for tgid in np.unique(waits["tgid"]).tolist():
        of = waits["tgid"] == tgid
        own = calls[calls["tgid"] == tgid]
        if len(own):
            launched, entered = own["launch_mono_ns"], own["enter_mono_ns"]
            begun = np.where(launched > 0, np.minimum(launched, entered), entered)
            order = np.argsort(begun, kind="stable")
            begun, done = begun[order], np.maximum.accumulate(own["exit_mono_ns"][order])
            ends = begun[np.append(True, begun[1:] - done[:-1] >= IDLE_NS)]
        else:
            reasons = samples["reasons"]
            rests = (samples["busy_percent"] == 0) | ((reasons > 0) & (reasons & REASON_IDLE != 0))
            ends = np.sort(samples["end_mono_ns"][rests & np.isin(samples["gpu"], waits["gpu"][of])])
        idle[of] = _shortly_after(ends, waits["start"][of])
    return idle


def _shortly_after(ends: Ints, start: Ints) -> Flags:
    if not len(ends):
        return np.zeros(len(start), bool)
    last = np.searchsorted(ends, start, side="right") - 1
    after: Flags = (last >= 0) & (start - ends[last] <= WARM_UP_NS)
    return after


def _covers(rows: Table, chosen: Flags | None = None) -> tuple[Ints, Ints, Ints, Ints]:
    """(row, start, end, gpu) of samples, disjoint a GPU and in order; the last look's hold a while longer."""
    latest: dict[int, int] = {}
    for of, until in zip(rows["gpu"].tolist(), rows["end_mono_ns"].tolist(), strict=True):
        latest[of] = max(latest.get(of, until), until)
    row = np.lexsort((rows["start_mono_ns"], rows["gpu"]))
    if chosen is not None:
        row = row[chosen[row]]
    gpu = rows["gpu"][row].astype(np.int64)
    end = rows["end_mono_ns"][row].copy()
    end[end == np.array([latest[of] for of in gpu.tolist()], np.int64)] += STALE_NS
    start, end = disjoint(gpu, rows["start_mono_ns"][row], end)
    return row, start, end, gpu


def _at(gpu: Ints, when: Ints, row: Ints, start: Ints, end: Ints, of: Ints) -> Ints:
    """The row that holds at each time, of at least one; -1: none."""
    # Covers of a GPU that is not known would be those of GPU 0: one key above all.
    key = np.where(gpu >= 0, gpu, int(of.max()) + 1).astype(np.int64)
    tiles = tile(key, when - 1, when, of, start, end)
    found = np.full(len(gpu), -1, np.int64)
    found[tiles.parent] = np.where(tiles.cover >= 0, row[tiles.cover], -1)
    return found
