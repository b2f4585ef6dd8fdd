"""Ten thousand looks at GPUs that refuse, fail, vanish and come back at random: no crash, and no wrong number."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import pytest

from tailspan.collect.nvml import events
from tailspan.collect.nvml.book import Book
from tailspan.collect.nvml.calls import DisconnectedError, Nvml, NvmlError
from tailspan.collect.nvml.outbox import Outbox
from tailspan.collect.nvml.session import Session
from tailspan.timeline.tables import ABSENT
from tests.unit.collect.nvml_driver import Driver, make_driver

__all__ = ["make_driver"]

LOOKS = 10_000
LOOK_NS = 250_000_000  # that the session believes to be between two looks
HALF_MINUTE_LOOKS = 120
#: What fails together -> columns that then must say so; those of the second group are read twice a minute or more.
OF_LOOK = {
    ("nvmlDeviceGetClockInfo",): ("sm_mhz", "memory_mhz"),
    ("nvmlDeviceGetUtilizationRates",): ("busy_percent",),
    ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"): ("reasons",),
    ("field:74",): ("power_ns",),
    ("field:75", "field:269", "field:270"): ("thermal_ns",),
    ("field:77",): ("board_ns",),
    ("field:271",): ("brake_ns",),
    ("field:94",): ("pcie_replays",),
    ("field:197",): ("pcie_tx_bytes",),
    ("field:198",): ("pcie_rx_bytes",),
    ("nvmlDeviceGetFieldValues",): ("power_ns", "thermal_ns", "brake_ns", "board_ns", "pcie_tx_bytes"),
    ("nvmlDeviceGetPowerUsage", "field:186"): ("power_mw",),
    ("nvmlDeviceGetSamples",): (),
}
OF_LATER = {
    ("nvmlDeviceGetMemoryInfo_v2",): ("memory_used_bytes", "memory_total_bytes"),
    ("nvmlDeviceGetEnforcedPowerLimit",): ("power_limit_mw",),
    ("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV"): ("temperature_c",),
    ("nvmlDeviceGetMaxClockInfo",): ("sm_max_mhz", "memory_max_mhz"),
    ("nvmlDeviceGetCurrPcieLinkWidth",): ("pcie_width",),
    ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"): (),
    ("nvmlDeviceGetProcessUtilization",): (),
    ("nvmlDeviceGetTotalEccErrors",): (),
    ("nvmlDeviceGetMigMode",): (),
    ("nvmlGpmSampleGet",): (),
    ("nvmlDeviceRegisterEvents",): (),
}
CODES = ("NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "NO_PERMISSION", "TIMEOUT", "UNKNOWN")
#: Of both cards, whatever else is wrong: 0 would be a wrong number.
NEVER_ZERO = (
    *("sm_mhz", "sm_before_mhz", "sm_max_mhz", "memory_mhz", "memory_max_mhz", "power_mw", "power_limit_mw"),
    *("temperature_c", "pcie_gen", "pcie_width", "memory_used_bytes", "memory_total_bytes", "busy_percent"),
    *("reasons",),
)
FIXED = ("value memory_used 1000003", "value utilization 37", "value reasons 4", "rate field:74 300000000")


class Chaos:
    """A script at random, and what it makes unreadable of which GPU."""

    def __init__(self, driver: Driver, seed: int) -> None:
        self._driver, self._random = driver, random.Random(seed)
        self._reloads = 0
        self.age = self._until = 0
        self.lost: set[int] = set()
        self.absent: dict[int, set[str]] = {}
        self.absent_later: dict[int, set[str]] = {}

    def step(self) -> None:
        self.age += 1
        if self.age >= self._until:
            self._change()

    def _change(self) -> None:
        chance = self._random
        self.age, self._until = 0, chance.choice((1, 3, 11, 47, 293))
        self.lost, self.absent, self.absent_later = set(), {0: set(), 1: set()}, {0: set(), 1: set()}
        lines = list(FIXED)
        for gpu in (0, 1):
            for facts, absent in ((OF_LOOK, self.absent), (OF_LATER, self.absent_later)):
                for names, columns in facts.items():
                    if chance.random() < 0.2:
                        code = chance.choice(CODES)
                        lines += [f"error {name} {code} {gpu}" for name in names]
                        absent[gpu].update(columns)
            if chance.random() < 0.1:
                self.lost.add(gpu)
                lines.append(f"lost {gpu}")
        if chance.random() < 0.05:
            lines.append(f"error * {chance.choice(CODES)}")
            for gpu in (0, 1):
                self.absent[gpu].update(("sm_mhz", "busy_percent", "reasons", "power_ns"))
        if chance.random() < 0.05:
            lines.append(
                f"error nvmlInitWithFlags {chance.choice(('DRIVER_NOT_LOADED', 'NO_PERMISSION', 'UNKNOWN'))}"
            )
        if chance.random() < 0.05:
            self._reloads += 1
        if self._reloads:
            lines.append(f"reload {self._reloads}")
        if chance.random() < 0.1:
            lines.append(f"xid {chance.randrange(2)} {chance.choice((31, 43, 79))}")
        self._driver.say(*lines)


@pytest.mark.parametrize("seed", [7919])
def test_ten_thousand_looks(
    make_driver: Callable[..., Driver],
    seed: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # GIVEN two GPUs, one of which a process uses
    driver = make_driver(2)
    driver.runs(os.getpid(), memory_bytes=1_000_003)
    monkeypatch.setattr(events, "_WAIT_MS", 11)  # who closes a session waits for so long
    chaos = Chaos(driver, seed)
    nvml, book, outbox = Nvml(), Book(), Outbox()
    session: Session | None = None
    last_end = {0: 0, 1: 0}
    looks = rows = sessions = heard = 0
    began = time.monotonic()
    for at in range(LOOKS):
        chaos.step()
        # WHEN it is looked at them, or tried to
        whole = session is not None
        try:
            if session is None:
                nvml.connect()
                session = Session(nvml, book, outbox)
                sessions += 1
            session.look(time.monotonic_ns() + at * LOOK_NS)
            looks += 1
        except (DisconnectedError, NvmlError):
            whole = False
            if session is not None:
                session.close()
                session = None
        # THEN what was made unreadable is absent, and what is there is right
        taken = outbox.take()
        heard += len(taken.events)
        assert taken.dropped == 0
        for row in taken.samples:
            which = int(row["gpu"])
            assert last_end[which] <= row["start_mono_ns"] < row["end_mono_ns"]
            last_end[which] = int(row["end_mono_ns"])
            assert -1 <= row["power_ns"] < 1_000_000_000
            assert not any(row[name] == 0 for name in NEVER_ZERO), (which, row)
            assert row["busy_percent"] in (ABSENT, 37)
            assert row["memory_used_bytes"] in (ABSENT, 1_000_003)
            if whole:
                absent = chaos.absent[which] | (
                    chaos.absent_later[which] if chaos.age > HALF_MINUTE_LOOKS else set()
                )
                last = row["end_mono_ns"] == taken.samples["end_mono_ns"][taken.samples["gpu"] == which].max()
                for name in absent if last else ():
                    assert row[name] == ABSENT, (name, which, chaos.age, row)
                assert which not in chaos.lost
        rows += len(taken.samples)
    if session is not None:
        session.close()
    took = time.monotonic() - began
    with capsys.disabled():
        print(
            f"\n{looks} looks, {rows} rows, {heard} events, {sessions} sessions: {nvml.calls} calls into NVML, "
            f"{nvml.call_ns / 1e9:.2f} s in them, {took:.2f} s in all"
        )
    assert (looks > LOOKS * 0.5, rows > LOOKS / 2, sessions > 10, heard > 10) == (True,) * 4
    assert nvml.failures["Not Supported"] > 100
