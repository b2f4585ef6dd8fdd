"""GPU_SAMPLE rows from two looks at a GPU and the driver's own samples of its clock in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tailspan.timeline.tables import ABSENT, GPU_SAMPLE

Table = npt.NDArray[np.void]

_FIELDS: Mapping[str, Any] = GPU_SAMPLE.fields or {}
#: Of every column that NVML fills.
_HIGHEST = {name: int(np.iinfo(kind[0]).max) for name, kind in _FIELDS.items() if name != "gpu"}
#: Columns with how much a counter grew. Each is the sum of its rows' shares.
COUNTED = (
    *("power_ns", "thermal_ns", "brake_ns", "board_ns"),
    *("pcie_tx_bytes", "pcie_rx_bytes", "pcie_replays"),
)
#: The driver counts heat under three names that include each other, in ways that differ by card: a row has the one
#: that grew most, which is less than the truth where two slow-downs took turns.
_THERMAL = ("thermal", "sw_thermal_slowdown", "hw_thermal_slowdown")
_COUNTERS = {
    "power_ns": ("power",),
    "thermal_ns": _THERMAL,
    "brake_ns": ("hw_power_brake",),
    "board_ns": ("board_limit",),
    "pcie_tx_bytes": ("pcie_transmitted",),
    "pcie_rx_bytes": ("pcie_received",),
    "pcie_replays": ("pcie_replays",),
}


@dataclass(frozen=True, slots=True)
class Look:
    """What was known of a GPU at one time. What it did not say is in neither mapping."""

    at_mono_ns: int
    counters: Mapping[str, int] = field(default_factory=dict)
    columns: Mapping[str, int] = field(default_factory=dict)  #: GPU_SAMPLE's, at the end of its row


def between(gpu: int, before: Look, now: Look, clocks: Sequence[tuple[int, int]]) -> Table:
    """Rows that tile [before, now); ``clocks``: (mono ns, MHz) by time."""
    edges = _edges(before, now, clocks)
    starts, ends = edges[:-1], edges[1:]
    rows = np.zeros(len(starts), GPU_SAMPLE)
    for name in _HIGHEST:
        rows[name] = _fitting(name, now.columns.get(name, ABSENT))
    rows["gpu"] = gpu
    rows["start_mono_ns"] = [at for at, _ in starts]
    rows["end_mono_ns"] = [at for at, _ in ends]
    rows["sm_before_mhz"] = [mhz for _, mhz in starts]
    rows["sm_mhz"] = [mhz for _, mhz in ends]
    length = now.at_mono_ns - before.at_mono_ns
    for name in COUNTED:
        grown = _grown(name, before.counters, now.counters)
        if grown != ABSENT:
            shares = [grown * (at - before.at_mono_ns) // length for at, _ in edges]
            rows[name] = np.diff(np.array(shares, np.int64))
        else:
            rows[name] = ABSENT
    return rows


def _edges(before: Look, now: Look, clocks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Both ends, and the samples in between where the clock was not what it is on both sides."""
    inside = {at: _fitting("sm_mhz", mhz) for at, mhz in clocks if before.at_mono_ns < at < now.at_mono_ns}
    inner = list(inside.items())
    first = (before.at_mono_ns, _fitting("sm_mhz", before.columns.get("sm_mhz", ABSENT)))
    last = (now.at_mono_ns, _fitting("sm_mhz", now.columns.get("sm_mhz", ABSENT)))
    edges = [first]
    for one, following in zip(inner, [*inner[1:], last], strict=False):
        if not edges[-1][1] == one[1] == following[1]:
            edges.append(one)
    return [*edges, last]


def _grown(column: str, before: Mapping[str, int], now: Mapping[str, int]) -> int:
    """ABSENT for a counter that was not there, or went back: the driver was loaded again in between."""
    names = [name for name in _COUNTERS[column] if name in before and name in now]
    grown = [now[name] - before[name] for name in names]
    if not grown or min(grown) < 0:
        return ABSENT
    return _fitting(column, max(grown))


def _fitting(column: str, value: int) -> int:
    """A driver's word for "not available" is the largest number of its type."""
    return value if 0 <= value < _HIGHEST[column] else ABSENT
