"""Who is to blame for time on a GPU, and what is known of it meanwhile, in words."""

from __future__ import annotations

import numpy as np

from tailspan.attribute import gpu
from tailspan.attribute.causes import Cause
from tailspan.attribute.gpu import Devices
from tailspan.attribute.intervals import disjoint, tile
from tailspan.attribute.verdict import Culprit, CulpritKind, Step
from tailspan.attribute.words import text
from tailspan.timeline.arrivals import began
from tailspan.timeline.evidence import Evidence, Table
from tailspan.timeline.tables import ABSENT, GpuEventKind
from tailspan.wire.events import GpuCallKind

#: What the more frequent XIDs mean: docs.nvidia.com/deploy/xid-errors.
_XIDS = {
    13: "graphics engine exception",
    31: "memory page fault",
    43: "stopped processing",
    45: "cleaned up after an error",
    48: "double-bit ECC error",
    63: "row remapping",
    64: "row remapping failed",
    74: "NVLink error",
    79: "fallen off the bus",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "GSP does not answer",
    120: "GSP error",
}
_GIB = 1 << 30
#: Of one XID after another the last ones.
_MAX_EVENTS = 4
#: What keeps a thread from launching; a shorter time is not worth a word.
_NOT_RUNNING = (
    *(Cause.RUN_QUEUE, Cause.THROTTLED, Cause.IRQ, Cause.STEAL, Cause.STOPPED, Cause.GIL, Cause.GC),
    *(Cause.FUTEX, Cause.KERNEL_LOCK, Cause.IO, Cause.PAGE_IN, Cause.RECLAIM),
)
_TELLING_NS = 1_000_000


def gpu_culprit(evidence: Evidence, state: Table) -> Culprit:
    """Of a state (row of States.rows) whose cause is one of the GPU's; without ns."""
    cause = Cause(int(state["cause"]))
    at, told = int(state["gpu"]), int(state["told"])
    name, uuid = _name(evidence, at), _uuid(evidence, at)
    device = Culprit(CulpritKind.GPU, 0, name, owner=uuid)
    if cause is Cause.GPU:
        return Culprit(CulpritKind.NONE, 0, f"waiting for {name}", owner=uuid)
    if cause is Cause.GPU_COPY:
        return Culprit(
            CulpritKind.GPU, 0, f"the PCIe link of {name}{_link(evidence, at, int(state['end']))}", owner=uuid
        )
    if cause is Cause.GPU_ALLOC:
        return Culprit(CulpritKind.OWN, 0, "its own memory calls", pid=int(state["tgid"]))
    if cause is Cause.GPU_LOAD:
        return Culprit(CulpritKind.OWN, 0, "its own first use of some code", pid=int(state["tgid"]))
    if cause is Cause.GPU_FULL:
        return _holder(evidence, at, int(state["tgid"]), int(state["end"]))
    if cause is Cause.GPU_SHARED:
        process = evidence.gpu_processes[told]
        pid, comm = int(process["tgid"]), text(process["comm"])
        return Culprit(CulpritKind.PROCESS, 0, f"{comm}[{pid}]", pid=pid, comm=comm, owner=uuid)
    if cause is Cause.GPU_CLOCKS:
        return Culprit(CulpritKind.GPU, 0, f"{_reason(evidence.gpu_samples[told])} of {name}", owner=uuid)
    if cause is Cause.GPU_FAULT:
        return Culprit(CulpritKind.GPU, 0, f"{_event(evidence.gpu_events[told])} on {name}", owner=uuid)
    return device


def gpu_facts(evidence: Evidence, index: int, at: int, steps: tuple[Step, ...]) -> list[str]:
    """Of the GPU that a request ran on (``at``; -1: none): its state, who else is on it, what befell it."""
    request = evidence.requests[index]
    start, end = int(began(evidence.requests[index : index + 1])[0]), int(request["end_mono_ns"])
    calls = _calls(evidence, int(request["tgid"]), start, end)
    calls += _late_launches(evidence, int(request["tgid"]), start, end, steps)
    if at < 0:
        return calls
    found = []
    sample = latest_sample(evidence, at, end)
    if sample is not None:
        said = ", ".join(
            filter(None, (_clock(sample), _power(sample), _heat(sample), _memory(sample), _busy(sample)))
        )
        found.append(f"{_name(evidence, at)} ({evidence.meta.gpus[at].get('name', '')}): {said}")
    found += _tenants(evidence, at, int(request["tgid"]), end)
    events = evidence.gpu_events
    for event in events[(events["gpu"] == at) & (events["mono_ns"] <= end)][-_MAX_EVENTS:]:
        found.append(
            f"at {(int(event['mono_ns']) - start) / 1e6:+.1f} ms {_event(event)} on {_name(evidence, at)}"
        )
    return found + calls


def gpu_of(request: Table, devices: Devices) -> int:
    """Row of ``Meta.gpus``; -1 where the request used none, or it is not known which."""
    tgid = int(request["tgid"])
    return devices.of(int(request["tid"]), tgid) if tgid in devices.users else -1


def latest_sample(evidence: Evidence, at: int, end_mono_ns: int) -> Table | None:
    """The last that had begun by then."""
    samples = evidence.gpu_samples
    of = np.flatnonzero((samples["gpu"] == at) & (samples["start_mono_ns"] < end_mono_ns))
    return samples[of[np.argmax(samples["end_mono_ns"][of])]] if len(of) else None


def _name(evidence: Evidence, at: int) -> str:
    if at < 0:
        return "the GPU"
    known = evidence.meta.gpus[at]
    index = known.get("index", str(at))
    if known.get("parent"):
        parents = [number for number, each in enumerate(evidence.meta.gpus) if each["uuid"] == known["parent"]]
        return f"MIG {index} of {_name(evidence, parents[0]) if parents else 'a GPU'}"
    return f"GPU {index}"


def _uuid(evidence: Evidence, at: int) -> str:
    return evidence.meta.gpus[at]["uuid"] if at >= 0 else ""


def _reason(sample: Table) -> str:
    """Why its clocks were held down: what took most of the sample's time, else what NVML says at its end."""
    names = {
        "power_ns": "the power cap",
        "thermal_ns": "the heat",
        "brake_ns": "the power brake",
        "board_ns": "the board limit",
    }
    longest = max(names, key=lambda name: int(sample[name]))
    if sample[longest] > 0:
        return names[longest]
    reasons = int(sample["reasons"])
    for bit, words in (
        (gpu.REASON_BRAKE, "the power brake"),
        (gpu.REASON_THERMAL, "the heat"),
        (gpu.REASON_POWER, "the power cap"),
        (gpu.REASON_HARDWARE, "the hardware slowdown"),
        (gpu.REASON_SYNC_BOOST, "the sync boost"),
    ):
        if reasons & bit:
            return words
    return "the set clocks"


def _event(event: Table) -> str:
    code = int(event["code"])
    if event["kind"] in (GpuEventKind.LOST, GpuEventKind.BACK):
        return "lost by the driver" if event["kind"] == GpuEventKind.LOST else "found again by the driver"
    if event["kind"] == GpuEventKind.ECC:
        return f"{code} uncorrected memory error{'s' if code > 1 else ''}"
    meaning = _XIDS.get(code)
    return f"XID {code}{f' ({meaning})' if meaning else ''}"


def _link(evidence: Evidence, at: int, end: int) -> str:
    sample = latest_sample(evidence, at, end) if at >= 0 else None
    if sample is None or sample["pcie_gen"] <= 0 or sample["pcie_width"] <= 0:
        return ""
    now = f"gen {sample['pcie_gen']} x{sample['pcie_width']}"
    best = f"gen {sample['pcie_gen_max']} x{sample['pcie_width_max']}"
    return f" ({now}{f' of {best}' if now != best and sample['pcie_gen_max'] > 0 else ''})"


def _holder(evidence: Evidence, at: int, tgid: int, end: int) -> Culprit:
    """Who has most of the memory: another process, if it has more than this one."""
    latest = _processes(evidence, at, end)
    own = sum(int(row["memory_bytes"]) for row in latest if row["tgid"] == tgid and row["memory_bytes"] > 0)
    others = [row for row in latest if row["tgid"] != tgid and row["memory_bytes"] > own]
    if not others:
        return Culprit(CulpritKind.OWN, 0, "its own process", pid=tgid)
    most = max(others, key=lambda row: int(row["memory_bytes"]))
    pid, comm = int(most["tgid"]), text(bytes(most["comm"]))
    return Culprit(CulpritKind.PROCESS, 0, f"{comm}[{pid}]", pid=pid, comm=comm, owner=_uuid(evidence, at))


def _processes(evidence: Evidence, at: int, end: int) -> list[Table]:
    """Those that were on a GPU when its processes were last looked at: their rows end together."""
    rows = evidence.gpu_processes
    rows = rows[(rows["gpu"] == at) & (rows["start_mono_ns"] < end)]
    return list(rows[rows["end_mono_ns"] == rows["end_mono_ns"].max()]) if len(rows) else []


def _tenants(evidence: Evidence, at: int, tgid: int, end: int) -> list[str]:
    others = [row for row in _processes(evidence, at, end) if row["tgid"] != tgid]
    words = []
    for row in sorted(others, key=lambda row: -int(row["memory_bytes"]))[:4]:
        told = []
        if row["memory_bytes"] != ABSENT:
            told.append(f"{row['memory_bytes'] / _GIB:.1f} GiB")
        told.append(
            "its share of the time cannot be read" if row["sm_percent"] == ABSENT else f"{row['sm_percent']} %"
        )
        words.append(f"{text(bytes(row['comm']))}[{row['tgid']}] ({', '.join(told)})")
    return [f"also on {_name(evidence, at)}: {', '.join(words)}"] if words else []


def _calls(evidence: Evidence, tgid: int, start: int, end: int) -> list[str]:
    """The process's CUDA calls in the request's time."""
    calls = evidence.gpu_calls
    calls = calls[(calls["tgid"] == tgid) & (calls["exit_mono_ns"] > start) & (calls["enter_mono_ns"] < end)]
    if not len(calls):
        return []
    words = [f"{int(calls['launches'].sum())} launches"]
    took = np.minimum(calls["exit_mono_ns"], end) - np.maximum(calls["enter_mono_ns"], start)
    for kind, name in (
        (GpuCallKind.SYNC, "waits for the device"),
        (GpuCallKind.COPY, "copies"),
        (GpuCallKind.ALLOC, "allocations"),
        (GpuCallKind.FREE, "frees"),
        (GpuCallKind.LOAD, "code loads"),
    ):
        of = calls["kind"] == kind
        if of.any():
            words.append(f"{int(of.sum())} {name} ({took[of].sum() / 1e6:.1f} ms{_rate(calls[of])})")
    failed = calls[calls["result"] != 0]
    if len(failed):
        words.append(f"{len(failed)} failed (first with {int(failed['result'][0])})")
    return [f"CUDA calls of its process meanwhile: {', '.join(words)}"]


def _late_launches(evidence: Evidence, tgid: int, start: int, end: int, steps: tuple[Step, ...]) -> list[str]:
    """How long the device had nothing of this process to do, for its next launch came late."""
    calls = evidence.gpu_calls
    calls = calls[(calls["tgid"] == tgid) & (calls["exit_mono_ns"] > start) & (calls["enter_mono_ns"] < end)]
    launched = calls["launch_mono_ns"][calls["launch_mono_ns"] > 0]
    held = [step for step in steps if step.cause in _NOT_RUNNING]
    if not len(launched) or not held:
        return []
    last = int(launched.max())
    begun = np.where(calls["launch_mono_ns"] > 0, calls["launch_mono_ns"], calls["enter_mono_ns"])
    order = np.argsort(begun)
    busy = disjoint(order * 0, begun[order], calls["exit_mono_ns"][order])
    from_ = np.array([step.start_ns + start for step in held], np.int64)
    to = np.minimum(np.array([step.end_ns + start for step in held], np.int64), last)
    tiles = tile(from_ * 0, from_, np.maximum(to, from_), busy[0] * 0, *busy)
    idle = int((tiles.end - tiles.start)[tiles.cover < 0].sum())
    if idle < _TELLING_NS:
        return []
    return [f"late launches: the GPU had nothing to do for {idle / 1e6:.1f} ms in which the thread was held up"]


def _rate(calls: Table) -> str:
    copied = int(calls["bytes"].sum())
    if calls["kind"][0] != GpuCallKind.COPY or copied < 1 << 20:
        return ""
    ns = int((calls["exit_mono_ns"] - calls["enter_mono_ns"]).sum())
    return f", {copied / max(ns, 1):.1f} GB/s"


def _clock(sample: Table) -> str:
    if sample["sm_mhz"] <= 0:
        return ""
    of = f" of {sample['sm_max_mhz']}" if sample["sm_max_mhz"] > 0 else ""
    held = f" ({_reason(sample)})" if gpu.capped(np.array([sample]))[0] else ""
    return f"SM clock {sample['sm_mhz']}{of} MHz{held}"


def _power(sample: Table) -> str:
    if sample["power_mw"] < 0:
        return ""
    limit = f" of {sample['power_limit_mw'] / 1000:.0f}" if sample["power_limit_mw"] > 0 else ""
    return f"{sample['power_mw'] / 1000:.0f}{limit} W"


def _heat(sample: Table) -> str:
    return f"{sample['temperature_c']} °C" if sample["temperature_c"] != ABSENT else ""


def _memory(sample: Table) -> str:
    if sample["memory_used_bytes"] < 0 or sample["memory_total_bytes"] <= 0:
        return ""
    return f"memory {sample['memory_used_bytes'] / _GIB:.1f} of {sample['memory_total_bytes'] / _GIB:.1f} GiB"


def _busy(sample: Table) -> str:
    return f"busy {sample['busy_percent']} %" if sample["busy_percent"] != ABSENT else ""
