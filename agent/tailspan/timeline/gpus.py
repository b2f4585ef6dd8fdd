"""What NVML said last of every GPU: for metrics and ``tailspan check``. The history is in the GPU tables.

All in base units: seconds, bytes, hertz, watts, joules, degrees Celsius, shares of 1. What a card or its driver
does not say is absent from ``values``, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class NvmlState(StrEnum):
    OFF = "off"  #: by configuration
    NO_LIBRARY = "no library"  #: libnvidia-ml.so.1 is not there
    NO_DRIVER = "no driver"  #: it is, and the kernel's part is not loaded, or is of another version
    NO_PERMISSION = "no permission"
    NO_DEVICE = "no device"
    WORKS = "works"


#: Names of ``GpuReading.values``. Those of the second group only grow, from the driver's load.
GAUGES = (
    *("utilization", "memory_utilization", "encoder_utilization", "decoder_utilization"),
    *("memory_used", "memory_total", "memory_reserved"),
    *("sm_clock", "sm_clock_limit", "memory_clock", "memory_clock_limit", "performance_state"),
    *("power", "power_limit", "temperature", "memory_temperature"),
    *("pcie_generation", "pcie_generation_limit", "pcie_width", "pcie_width_limit"),
    *("remapped_rows_pending", "remapped_rows_failed"),
    *("gpm_sm_utilization", "gpm_sm_occupancy", "gpm_tensor_utilization", "gpm_dram_utilization"),
)
TOTALS = (
    *("energy", "pcie_transmitted", "pcie_received", "pcie_replays"),
    *("nvlink_transmitted", "nvlink_received", "nvlink_errors"),
    *("ecc_corrected", "ecc_uncorrected", "remapped_rows_corrected", "remapped_rows_uncorrected"),
)
#: Why clocks were held down: names of ``GpuReading.clock_events``, in NVIDIA's words.
CLOCK_EVENTS = (
    *("power", "thermal", "sync_boost", "board_limit", "low_utilization", "reliability"),
    *("sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake"),
)


@dataclass(frozen=True, slots=True)
class GpuProcess:
    tgid: int
    comm: str
    memory_bytes: int | None
    sm: float | None  #: share of time in which a kernel of its ran


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU, or one MIG instance."""

    uuid: str  #: ``GPU-…`` or ``MIG-…``
    name: str
    index: int  #: NVML's; of a MIG instance within its GPU
    parent: str = ""  #: uuid of the GPU of a MIG instance
    taken_mono_ns: int = 0
    values: Mapping[str, float] = field(default_factory=dict)  #: by GAUGES and TOTALS
    clock_events: Mapping[str, float] = field(default_factory=dict)  #: seconds in all, by CLOCK_EVENTS
    xids: Mapping[int, int] = field(default_factory=dict)  #: how often each was reported, since the agent started
    processes: tuple[GpuProcess, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)  #: NVML function -> what it said
    lost: str = ""  #: why nothing of it can be read any more; "" while it can


@dataclass(frozen=True, slots=True)
class GpuHost:
    state: NvmlState = NvmlState.OFF
    why: str = ""  #: in NVML's words; "" where it works
    driver: str = ""  #: its version
    gpus: tuple[GpuReading, ...] = ()
    calls: int = 0  #: into NVML, in all
    call_s: float = 0.0  #: time in those
    failures: Mapping[str, int] = field(default_factory=dict)  #: NVML error -> how often, in all
    attempts: int = 0  #: to (re)connect to the driver
