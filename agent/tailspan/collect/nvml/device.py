"""One GPU and its MIG instances: what they say at each look, each second, and twice a minute."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tailspan import clock
from tailspan.collect.nvml import fields, processes, rows
from tailspan.collect.nvml.book import Book, Name
from tailspan.collect.nvml.calls import Asked, DisconnectedError, LostError, Nvml, NvmlError
from tailspan.collect.nvml.gpm import Gpm
from tailspan.collect.nvml.outbox import Outbox
from tailspan.collect.nvml.processes import Processes
from tailspan.collect.nvml.rows import Look
from tailspan.timeline.gpus import GpuProcess, GpuReading
from tailspan.timeline.tables import ABSENT, GpuEventKind

_MHZ = 1_000_000
#: nvmlClockType_t, nvmlMemoryErrorType_t, nvmlEccCounterType_t, nvmlSamplingType_t, nvmlTemperatureSensors_t.
_SM, _MEMORY = 1, 2
_CORRECTED, _UNCORRECTED, _SINCE_LOAD = 0, 1, 0
_PROCESSOR_CLOCK = 5
_OF_GPU = 0
_MEMORY_INFO_V2 = 0x02000028
_UNSIGNED_INT = 1
_MIG_ENABLED = 1
_WORD_MAX = 2**32 - 1  # what NVML says where a number of 32 bits is not available


@dataclass(frozen=True, slots=True)
class Due:
    """What of a look is to be read, beside that which always is."""

    second: bool
    half_minute: bool
    again: bool  #: what was refused, too
    ecc: bool = False


#: Of a GPU's memory: when so much was taken or given back since the last look, it is asked at once by whom.
JUMP = 0.02


class _Memory:
    """Memory and processes: what a GPU and a MIG instance are asked alike; the processes each second."""

    def __init__(self, asked: Asked, gpm: Gpm) -> None:
        self.asked, self.gpm = asked, gpm
        self._processes = Processes(asked)
        self._read_mono_ns = 0
        self._gpm_values: dict[str, float] = {}
        self.values: dict[str, float] = {}
        self.columns: dict[str, int] = {}
        self.jumped = False  # it is much fuller or emptier than at the last look: somebody has come or gone
        self.processes: tuple[GpuProcess, ...] = ()

    def read(self) -> None:
        """At every look: how full it is tells a full memory from slow allocations."""
        before = self.columns.get("memory_used_bytes")
        self.values, self.columns, self.jumped = dict(self._gpm_values), {}, False
        memory = self.asked.ask("nvmlDeviceGetMemoryInfo", _MEMORY_INFO_V2)
        if memory is not None:
            self.columns = {"memory_used_bytes": int(memory.used), "memory_total_bytes": int(memory.total)}
            self.values |= {
                "memory_used": float(memory.used),
                "memory_total": float(memory.total),
                "memory_reserved": float(memory.reserved),
            }
            self.jumped = before is not None and abs(memory.used - before) > JUMP * memory.total

    def read_second(self, row: int, outbox: Outbox, who: bool = True) -> None:
        """``who``: the processes too."""
        self._gpm_values = self.gpm.read()
        before, self._read_mono_ns = self._read_mono_ns, time.monotonic_ns()
        self.processes = self._processes.read() if who else ()
        if before and self.processes:
            outbox.put(processes.rows(row, before, self._read_mono_ns, self.processes))

    def forget(self) -> None:
        self._read_mono_ns = 0
        self._gpm_values, self.values, self.columns, self.processes = {}, {}, {}, ()


class Instance:
    """A MIG instance. It has memory and processes of its own; all else is its GPU's."""

    def __init__(self, name: Name, asked: Asked, gpu: Asked) -> None:
        self.name, self.asked = name, asked
        self._number = asked.ask("nvmlDeviceGetGpuInstanceId")
        self.own = _Memory(asked, Gpm(asked, gpu, self._number))


class Device:
    """A GPU. The caller says what is due; rows and events go to the outbox."""

    def __init__(self, nvml: Nvml, handle: Any, name: Name, book: Book) -> None:
        self.name = name
        self.asked = Asked(nvml, handle)
        self.instances: list[Instance] = []
        self.lost = ""
        self._book = book
        self._own = _Memory(self.asked, Gpm(self.asked, self.asked))
        self._in_mig_mode = False
        self._before: Look | None = None
        self._looked_at: set[str] = set()  # instances that were there at that look
        self._taken_mono_ns = 0
        self._sampled_us = 0
        self._uncorrected: int | None = None
        self._values: dict[str, float] = {}
        self._clock_events: dict[str, float] = {}
        self._of_second: tuple[dict[str, float], dict[str, int]] = ({}, {})
        self._of_half_minute: tuple[dict[str, float], dict[str, int]] = ({}, {})
        self._ecc: dict[str, float] = {}

    def look(self, due: Due, outbox: Outbox) -> None:
        """Raises LostError and DisconnectedError."""
        for asked in (self.asked, *(instance.asked for instance in self.instances)):
            asked.again = due.again
        if due.half_minute:
            self._read_half_minute()
        if due.half_minute or due.ecc:
            self._read_ecc(due.ecc, outbox)
        memories = (self._own, *(instance.own for instance in self.instances))
        for own in memories:
            own.read()
        if due.second or any(own.jumped for own in memories):
            self._read_second(outbox)
        self._put_rows(self._read(), outbox)

    def lose(self, why: str) -> None:
        """It has no row until it was looked at twice again."""
        self.lost = why
        self._before = None
        for own in (self._own, *(instance.own for instance in self.instances)):
            own.forget()

    def is_back(self) -> bool:
        """Of a lost one. Raises DisconnectedError."""
        try:
            back = bool(self.asked.nvml.call("nvmlDeviceGetUUID", self.asked.handle) == self.name.uuid)
        except DisconnectedError:
            raise
        except NvmlError:
            return False
        if back:
            self.lost = ""
        return back

    def readings(self, xids: Mapping[int, int]) -> Iterable[GpuReading]:
        yield self._reading(self.name, self._own, self.asked, xids)
        for instance in self.instances:
            yield self._reading(instance.name, instance.own, instance.asked, {})

    def close(self) -> None:
        for own in (self._own, *(instance.own for instance in self.instances)):
            own.gpm.close()

    # -- one look

    def _read(self) -> Look:
        asked = self.asked
        at_mono_ns = time.monotonic_ns()
        said = fields.read(asked)
        columns: dict[str, int] = {}
        values = dict(said.values)
        power_w = values.pop("power_now", None)
        if power_w is None:
            power_mw = _number(asked.ask("nvmlDeviceGetPowerUsage"))
            power_w = None if power_mw is None else power_mw / 1e3
        else:
            asked.refused.pop("nvmlDeviceGetPowerUsage", None)
        _set(values, "power", power_w)
        _set_int(columns, "power_mw", None if power_w is None else power_w * 1e3)
        for column, gauge, kind in (("sm_mhz", "sm_clock", _SM), ("memory_mhz", "memory_clock", _MEMORY)):
            mhz = _number(asked.ask("nvmlDeviceGetClockInfo", kind, what=gauge))
            _set_int(columns, column, mhz)
            _set(values, gauge, mhz, _MHZ)
        reasons = asked.first(
            "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
        )
        _set_int(columns, "reasons", reasons)
        rates = asked.ask("nvmlDeviceGetUtilizationRates")
        if rates is not None and rates.gpu <= 100:
            columns["busy_percent"] = int(rates.gpu)
            values |= {"utilization": rates.gpu / 100, "memory_utilization": rates.memory / 100}
        for of_tier in (self._of_second, self._of_half_minute):
            values |= of_tier[0]
            columns |= of_tier[1]
        self._values, self._clock_events = values | self._ecc, said.clock_events
        self._taken_mono_ns = at_mono_ns
        return Look(at_mono_ns, said.raw, columns)

    def _read_second(self, outbox: Outbox) -> None:
        asked = self.asked
        values: dict[str, float] = {}
        columns: dict[str, int] = {}
        limit_mw = _number(asked.ask("nvmlDeviceGetEnforcedPowerLimit"))
        _set_int(columns, "power_limit_mw", limit_mw)
        _set(values, "power_limit", limit_mw, 1e-3)
        celsius = asked.first("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV", _OF_GPU)
        _set_int(columns, "temperature_c", _number(celsius))
        _set(values, "temperature", _number(celsius))
        for name, gauge in (
            ("nvmlDeviceGetEncoderUtilization", "encoder_utilization"),
            ("nvmlDeviceGetDecoderUtilization", "decoder_utilization"),
        ):
            said = asked.ask(name)
            _set(values, gauge, None if said is None else said[0], 0.01)
        state = asked.ask("nvmlDeviceGetPerformanceState")
        _set(values, "performance_state", state if state is not None and state < 32 else None)  # 32: unknown
        self._of_second = values, columns
        self._own.read_second(self.name.row, outbox, who=not self._in_mig_mode)
        for instance in self.instances:
            instance.own.read_second(instance.name.row, outbox)

    def _read_half_minute(self) -> None:
        asked = self.asked
        values: dict[str, float] = {}
        columns: dict[str, int] = {}
        for column, gauge, kind in (
            ("sm_max_mhz", "sm_clock_limit", _SM),
            ("memory_max_mhz", "memory_clock_limit", _MEMORY),
        ):
            mhz = _number(asked.ask("nvmlDeviceGetMaxClockInfo", kind, what=gauge))
            _set_int(columns, column, mhz)
            _set(values, gauge, mhz, _MHZ)
        for name, column, gauge in (
            ("nvmlDeviceGetCurrPcieLinkGeneration", "pcie_gen", "pcie_generation"),
            ("nvmlDeviceGetMaxPcieLinkGeneration", "pcie_gen_max", "pcie_generation_limit"),
            ("nvmlDeviceGetCurrPcieLinkWidth", "pcie_width", "pcie_width"),
            ("nvmlDeviceGetMaxPcieLinkWidth", "pcie_width_max", "pcie_width_limit"),
        ):
            said = _number(asked.ask(name))
            _set_int(columns, column, said)
            _set(values, gauge, said)
        remapped = asked.ask("nvmlDeviceGetRemappedRows")
        names = (
            "remapped_rows_corrected",
            "remapped_rows_uncorrected",
            "remapped_rows_pending",
            "remapped_rows_failed",
        )
        values |= dict(zip(names, map(float, remapped or ()), strict=False))
        self._of_half_minute = values, columns
        self._follow_instances()
        for own in (self._own, *(instance.own for instance in self.instances)):
            own.gpm.support()

    def _read_ecc(self, event: bool, outbox: Outbox) -> None:
        """Errors since the driver was loaded. An event that the driver told of has happened, counted or not."""
        self._ecc = {}
        corrected, uncorrected = (
            self.asked.ask("nvmlDeviceGetTotalEccErrors", kind, _SINCE_LOAD, what=what)
            for kind, what in ((_CORRECTED, "corrected"), (_UNCORRECTED, "uncorrected"))
        )
        _set(self._ecc, "ecc_corrected", corrected)
        _set(self._ecc, "ecc_uncorrected", uncorrected)
        grown = 0
        if uncorrected is not None:
            grown = max(uncorrected - self._uncorrected, 0) if self._uncorrected is not None else 0
            self._uncorrected = uncorrected
        if grown or event:
            self._event(outbox, GpuEventKind.ECC, max(grown, 1))

    # -- rows

    def _put_rows(self, now: Look, outbox: Outbox) -> None:
        before, self._before = self._before, now
        known, self._looked_at = self._looked_at, {instance.name.uuid for instance in self.instances}
        clocks = self._clocks()
        if before is None or now.at_mono_ns <= before.at_mono_ns:
            return
        gpu = Look(now.at_mono_ns, now.counters, {**now.columns, **self._own.columns})
        found = rows.between(self.name.row, before, gpu, clocks)
        outbox.put(found)
        for instance in self.instances:
            if instance.name.uuid in known:
                outbox.put(_of_instance(instance, found))

    def _clocks(self) -> list[tuple[int, int]]:
        """The driver's samples of the SM clock since the last look, where it keeps any: (mono ns, MHz)."""
        said = self.asked.ask("nvmlDeviceGetSamples", _PROCESSOR_CLOCK, self._sampled_us)
        if said is None or said[0] != _UNSIGNED_INT or not said[1]:
            return []
        offset_ns = clock.measure().offset_ns
        found = sorted((int(sample.timeStamp), int(sample.sampleValue.uiVal)) for sample in said[1])
        self._sampled_us = found[-1][0]
        return [(unix_us * 1000 - offset_ns, mhz) for unix_us, mhz in found]

    def _event(self, outbox: Outbox, kind: GpuEventKind, code: int) -> None:
        outbox.put_event(time.monotonic_ns(), self.name.row, kind, code)

    # -- MIG

    def _follow_instances(self) -> None:
        asked = self.asked
        mode = asked.ask("nvmlDeviceGetMigMode")
        self._in_mig_mode = mode is not None and mode[0] == _MIG_ENABLED
        known = {instance.name.uuid: instance for instance in self.instances}
        self.instances = []
        room = asked.ask("nvmlDeviceGetMaxMigDeviceCount") if self._in_mig_mode else 0
        for index in range(room or 0):
            handle = self._instance_handle(index)
            if handle is None:
                continue
            of_instance = Asked(asked.nvml, handle)
            uuid = of_instance.ask("nvmlDeviceGetUUID")
            if uuid in known:
                self.instances.append(known.pop(uuid))
            elif uuid:
                name = str(of_instance.ask("nvmlDeviceGetName") or self.name.name)
                called = self._book.name(uuid, name, index, self.name.uuid)
                if called is not None:
                    self.instances.append(Instance(called, of_instance, asked))
        for gone in known.values():
            gone.own.gpm.close()

    def _instance_handle(self, index: int) -> Any:
        """None where that place is empty."""
        try:
            return self.asked.nvml.call("nvmlDeviceGetMigDeviceHandleByIndex", self.asked.handle, index)
        except (LostError, DisconnectedError):
            raise
        except NvmlError:
            return None

    def _reading(self, name: Name, own: _Memory, asked: Asked, xids: Mapping[int, int]) -> GpuReading:
        if self.lost:
            return replace(name.reading(xids, self.lost), taken_mono_ns=self._taken_mono_ns)
        return replace(
            name.reading(xids),
            taken_mono_ns=self._taken_mono_ns,
            values=self._shared_values(name) | own.values,
            clock_events=self._clock_events,
            processes=own.processes,
            unreadable=asked.unreadable,
        )

    def _shared_values(self, name: Name) -> dict[str, float]:
        """What a MIG instance has of its GPU: not how busy that is."""
        if not name.parent:
            return self._values
        return {name: value for name, value in self._values.items() if name != "utilization"}


def _of_instance(instance: Instance, gpu: rows.Table) -> rows.Table:
    """The rows of its GPU, as they are of it."""
    own = gpu.copy()
    own["gpu"] = instance.name.row
    own["busy_percent"] = ABSENT
    for column in ("memory_used_bytes", "memory_total_bytes"):
        own[column] = instance.own.columns.get(column, ABSENT)
    return own


def _number(said: Any) -> float | None:
    return None if said is None or said >= _WORD_MAX else float(said)


def _set(values: dict[str, float], name: str, value: float | None, scale: float = 1) -> None:
    if value is not None:
        values[name] = float(value * scale)


def _set_int(columns: dict[str, int], name: str, value: float | None) -> None:
    if value is not None:
        columns[name] = round(value)
