"""What works on this machine, what does not, why, and what becomes unknowable without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tailspan.timeline.gpus import GpuHost, GpuReading, NvmlState
from tailspan.views.table import GAP, MIN_WIDTH, Style, paint, plain, wrap

#: ``off``: it would work, and is not attached unless asked for.
State = Literal["works", "off", "missing"]

_MARKS: dict[State, tuple[str, Style]] = {
    "works": ("ok", Style.GOOD),
    "off": ("off", Style.DIM),
    "missing": ("NO", Style.BAD),
}
#: What an NVML function or field tells, by how its name begins, and what is unknowable without it.
_GPU_FACTS = {
    "nvmlDeviceGetProcessUtilization": ("per-process utilisation", "co-tenants are seen, their share is not"),
    "nvmlDeviceGetComputeRunningProcesses": ("processes", "co-tenants are not seen"),
    "nvmlDeviceGetUtilizationRates": ("utilisation", "a device at rest is not told from a busy one"),
    "nvmlDeviceGetClockInfo(sm_clock": ("SM clock", "slow clocks are not told from the device's own work"),
    "nvmlDeviceGetMaxClockInfo(sm_clock": ("highest SM clock", "what slow clocks cost is not known"),
    "nvmlDeviceGetCurrentClocks": ("reasons of clocks", "why clocks are held down is not known"),
    "NVML_FI_DEV_PERF_POLICY": ("time at held-down clocks", "reasons are known at each look, not in between"),
    "NVML_FI_DEV_CLOCKS_EVENT": ("time at held-down clocks", "reasons are known at each look, not in between"),
    "nvmlDeviceGetSamples": ("samples of the SM clock", "the clock is known at each look, not in between"),
    "nvmlDeviceGetMemoryInfo": ("memory", "a device whose memory is full is not known"),
    "nvmlDeviceRegisterEvents": ("events", "XIDs are not heard of"),
    "nvmlEventSet": ("events", "XIDs are not heard of"),
    "nvmlDeviceGetTotalEccErrors": ("ECC errors", "memory errors are not counted"),
    "nvmlGpm": ("performance monitoring", "how busy SMs and tensor cores are is not known"),
    "NVML_FI_DEV_PCIE_COUNT": ("PCIe bytes", "traffic of the link is not known"),
    "NVML_FI_DEV_NVLINK": ("NVLink", "its traffic and errors are not known"),
}


@dataclass(frozen=True, slots=True)
class ProbeReport:
    name: str
    state: State
    default: bool  #: attached at start
    required: bool
    answers: str
    why: str  #: why it is missing; "" otherwise
    without: str  #: what is unknowable without it
    mend: str
    cost: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact about the machine. ``ok`` is None where neither answer is a problem."""

    name: str
    value: str
    ok: bool | None = None
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    probes: tuple[ProbeReport, ...]
    environment: tuple[Fact, ...]
    error: str = ""  #: why no probe could be loaded at all
    gpus: GpuHost = field(default_factory=GpuHost)

    @property
    def missing(self) -> list[str]:
        """Default probes that are not there."""
        return [probe.name for probe in self.probes if probe.default and probe.state == "missing"]


def as_text(report: Report, width: int = 80, colour: bool = False) -> str:
    width = max(width, MIN_WIDTH)
    blocks = [["probes"], *(_probe(probe, width, colour) for probe in report.probes)]
    blocks.append(["", "environment", *_environment(report.environment, width, colour), ""])
    blocks.append(["gpus", *_gpus(report.gpus, width, colour), ""])
    blocks.append(wrap(_summary(report), width))
    return "\n".join(line for block in blocks for line in block)


def as_json(report: Report) -> dict[str, Any]:
    return {
        "ok": not report.missing and not report.error,
        "missing": report.missing,
        "error": report.error,
        "probes": [asdict(probe) for probe in report.probes],
        "environment": [asdict(fact) for fact in report.environment],
        "gpus": {
            "state": report.gpus.state,
            "why": report.gpus.why,
            "driver": report.gpus.driver,
            "devices": [asdict(gpu) for gpu in report.gpus.gpus],
        },
    }


def _probe(probe: ProbeReport, width: int, colour: bool) -> list[str]:
    word, style = _MARKS[probe.state]
    first = f"{GAP}{paint(f'{word:<3}', style, colour)}  {probe.name:<10} "
    indent = " " * 18
    lines = wrap(probe.answers, width, indent)
    lines[0] = first + lines[0].removeprefix(indent)
    said = {"why": probe.why, "unknowable": probe.without, "mend": probe.mend} if probe.state == "missing" else {}
    for label, text in {**said, "cost": probe.cost}.items():
        if text:
            lines += wrap(f"{label}: {plain(text)}", width, indent, GAP)
    return lines


def _environment(facts: Sequence[Fact], width: int, colour: bool) -> list[str]:
    widest = max((len(fact.name) for fact in facts), default=0)
    lines = []
    for fact in facts:
        word, style = {True: ("ok", Style.GOOD), False: ("NO", Style.BAD), None: ("", Style.DIM)}[fact.ok]
        indent = " " * (widest + 9)
        text = fact.value + (f": {fact.mend}" if fact.mend else "")
        wrapped = wrap(plain(text), width, indent) or [""]
        wrapped[0] = f"{GAP}{paint(f'{word:<3}', style, colour)}  {fact.name:<{widest}}{GAP}" + wrapped[0].lstrip()
        lines += wrapped
    return lines


def _gpus(host: GpuHost, width: int, colour: bool) -> list[str]:
    if host.state is not NvmlState.WORKS:
        return wrap(f"none to read: {host.state}: {plain(host.why)}", width, GAP)
    lines = wrap(f"driver {plain(host.driver) or '-'}", width, GAP)
    for gpu in host.gpus:
        lines += _gpu(gpu, width, colour)
    return lines


def _gpu(gpu: GpuReading, width: int, colour: bool) -> list[str]:
    """A MIG instance stands below its GPU, and further in."""
    outer = GAP * (2 if gpu.parent else 1)
    indent = outer + " " * 5
    word, style = ("NO", Style.BAD) if gpu.lost else ("ok", Style.GOOD)
    lines = wrap(f"{gpu.index}: {plain(gpu.name)} ({plain(gpu.uuid)})", width, indent)
    lines[0] = f"{outer}{paint(f'{word:<3}', style, colour)}  " + lines[0].lstrip()
    if gpu.lost:
        return lines + wrap(f"lost: {plain(gpu.lost)}", width, indent, GAP)
    lines += wrap(", ".join(_values(gpu)) or "nothing is readable", width, indent, GAP)
    for text in _unreadable(gpu):
        lines += wrap(f"not readable: {plain(text)}", width, indent, GAP)
    return lines


def _values(gpu: GpuReading) -> list[str]:
    values, said = gpu.values, []
    if "memory_used" in values:
        said.append(f"memory {values['memory_used'] / 2**30:.1f} of {values['memory_total'] / 2**30:.1f} GiB")
    for label, name in (("SM", "sm_clock"), ("memory clock", "memory_clock")):
        if name in values:
            limit = values.get(f"{name}_limit")
            said.append(f"{label} {values[name] / 1e6:.0f}" + (f" of {limit / 1e6:.0f} MHz" if limit else " MHz"))
    return said


def _unreadable(gpu: GpuReading) -> list[str]:
    """A line a fact; what no request is explained by is named as NVML calls it."""
    said: dict[str, None] = {}
    for name, why in gpu.unreadable.items():
        fact = next((fact for prefix, fact in _GPU_FACTS.items() if name.startswith(prefix)), None)
        said[f"{fact[0]}: {why}: {fact[1]}" if fact else f"{name}: {why}"] = None
    return list(said)


def _summary(report: Report) -> str:
    if report.error:
        return f"tailspan cannot run here: {plain(report.error)}"
    if report.missing:
        return f"Missing: {', '.join(report.missing)}. What depends on it is shown as unknowable, never as zero."
    return "Every default probe works."
