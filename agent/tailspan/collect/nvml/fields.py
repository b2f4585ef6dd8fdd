"""All that grows, and power, in one call: nvmlDeviceGetFieldValues."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tailspan.collect.nvml.calls import GPU_IS_LOST, Asked, LostError
from tailspan.timeline.gpus import CLOCK_EVENTS

_FUNCTION = "nvmlDeviceGetFieldValues"
_ALL_LINKS = 0xFFFFFFFF
_UNSIGNED_INT = 1
#: Members of nvmlValue_t by nvmlValueType_t.
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


@dataclass(frozen=True, slots=True)
class Field:
    name: str  #: NVML_FI_DEV_…
    number: int
    fact: str  #: a clock event, a total or a gauge of timeline.gpus
    scale: float  #: of its unit, in the base unit
    scope: int = 0
    wide: bool = False  #: in 32 bits it would go round between two looks, and a part be taken for all of it


FIELDS = (
    Field("PERF_POLICY_POWER", 74, "power", 1e-9),
    Field("PERF_POLICY_THERMAL", 75, "thermal", 1e-9),
    Field("PERF_POLICY_SYNC_BOOST", 76, "sync_boost", 1e-9),
    Field("PERF_POLICY_BOARD_LIMIT", 77, "board_limit", 1e-9),
    Field("PERF_POLICY_LOW_UTILIZATION", 78, "low_utilization", 1e-9),
    Field("PERF_POLICY_RELIABILITY", 79, "reliability", 1e-9),
    Field("CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN", 269, "sw_thermal_slowdown", 1e-9),
    Field("CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN", 270, "hw_thermal_slowdown", 1e-9),
    Field("CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN", 271, "hw_power_brake", 1e-9),
    Field("MEMORY_TEMP", 82, "memory_temperature", 1),
    Field("TOTAL_ENERGY_CONSUMPTION", 83, "energy", 1e-3),
    Field("PCIE_REPLAY_COUNTER", 94, "pcie_replays", 1),
    Field("POWER_INSTANT", 186, "power_now", 1e-3),
    Field("PCIE_COUNT_TX_BYTES", 197, "pcie_transmitted", 1, wide=True),
    Field("PCIE_COUNT_RX_BYTES", 198, "pcie_received", 1, wide=True),
    Field("NVLINK_THROUGHPUT_DATA_TX", 138, "nvlink_transmitted", 1024, _ALL_LINKS),
    Field("NVLINK_THROUGHPUT_DATA_RX", 139, "nvlink_received", 1024, _ALL_LINKS),
    Field("NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", 38, "nvlink_errors", 1),
    Field("NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", 45, "nvlink_errors", 1),
    Field("NVLINK_REPLAY_ERROR_COUNT_TOTAL", 52, "nvlink_errors", 1),
    Field("NVLINK_RECOVERY_ERROR_COUNT_TOTAL", 59, "nvlink_errors", 1),
)


@dataclass(frozen=True, slots=True)
class Said:
    raw: dict[str, int] = field(default_factory=dict)  #: by fact, in the driver's unit
    values: dict[str, float] = field(default_factory=dict)  #: in base units
    clock_events: dict[str, float] = field(default_factory=dict)


def read(asked: Asked) -> Said:
    """What the card says of those it has not refused."""
    wanted = [each for each in FIELDS if asked.wants(_key(each))]
    answers = asked.ask(_FUNCTION, [(each.number, each.scope) for each in wanted]) if wanted else None
    said = Said()
    unsure = set()
    for each, answer in zip(wanted, answers or (), strict=False):
        value = _value(asked, each, answer)
        if value is None:
            if _key(each) not in asked.refused:
                unsure.add(each.fact)
            continue
        said.raw[each.fact] = said.raw.get(each.fact, 0) + value
        values = said.clock_events if each.fact in CLOCK_EVENTS else said.values
        values[each.fact] = values.get(each.fact, 0.0) + value * each.scale
    for fact in unsure:  # without the part that failed this once, the sum would go back
        said.raw.pop(fact, None)
        said.values.pop(fact, None)
    return said


def _value(asked: Asked, each: Field, answer: Any) -> int | None:
    code = int(answer.nvmlReturn)
    if code == GPU_IS_LOST:
        raise LostError(code, asked.nvml.text(code))
    if code:
        asked.failed(_key(each), code, asked.nvml.text(code))
        return None
    kind = int(answer.valueType)
    if each.wide and kind == _UNSIGNED_INT:
        asked.refused[_key(each)] = "32 bits only, which go round between two looks"
        return None
    asked.refused.pop(_key(each), None)
    value = getattr(answer.value, _MEMBERS[kind]) if kind < len(_MEMBERS) else -1
    return int(value) if 0 <= value < math.inf else None


def _key(each: Field) -> str:
    return f"NVML_FI_DEV_{each.name}"
