"""The sampler over the real pynvml and our libnvidia-ml.so.1: states, rows, events, and what it costs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tailspan.collect.nvml import GpuSampler, Taken, calls, events, outbox, session
from tailspan.collect.nvml.outbox import Outbox
from tailspan.timeline.gpus import GpuReading, NvmlState
from tailspan.timeline.tables import ABSENT, GPU_EVENT, GPU_PROCESS, GPU_SAMPLE, GpuEventKind
from tests.conftest import eventually
from tests.fakes import build
from tests.fakes.device import FakeGpu
from tests.unit.collect.nvml_driver import SONAME, Driver, driver, make_driver

__all__ = ["driver", "make_driver"]

UUID = "GPU-00000000-0000-4000-8000-00000000000{}"
Make = Callable[..., "Sampler"]


class Sampler(GpuSampler):
    """Keeps what it gave."""

    def __init__(self, sample_ms: int = 23, budget: float = 1.0) -> None:
        self.taken: list[Taken] = []
        super().__init__(sample_ms, budget)

    def collect(self) -> Sampler:
        self.taken.append(self.take())
        return self

    def rows(self, table: str, gpu: int = 0) -> np.ndarray:
        self.collect()
        rows = np.concatenate([getattr(taken, table) for taken in self.taken])
        return rows[rows["gpu"] == gpu]

    def reading(self, at: int = 0) -> GpuReading:
        return self.host().gpus[at]

    def looks(self, count: int) -> None:
        """Wait for so many more."""
        for _ in range(count):
            before = self.host()
            eventually(lambda before=before: self.host() is not before, "another look")


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Samplers that look often, have short seconds, and lose no time with waiting for what is not there."""
    monkeypatch.setattr(session, "SECOND_NS", 50_000_000)
    monkeypatch.setattr(session, "HALF_MINUTE_NS", 200_000_000)
    monkeypatch.setattr(session.Backoff, "FIRST_S", 0.02)
    monkeypatch.setattr(events, "_WAIT_MS", 53)  # who closes waits for so long
    made: list[Sampler] = []

    def make(**options: float) -> Sampler:
        made.append(Sampler(**options))  # type: ignore[arg-type]
        assert made[-1].settled(10)
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_without_the_library_it_is_a_state_and_tried_again(sample: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "LIBRARY", "libnvidia-ml-of-nobody.so.1")
    gpus = sample()
    host = gpus.host()
    assert (host.state, host.gpus, gpus.gpus()) == (NvmlState.NO_LIBRARY, (), [])
    assert "libnvidia-ml-of-nobody.so.1" in host.why
    eventually(lambda: gpus.host().attempts > 2, "more attempts")
    assert len(gpus.take().samples) == 0


def in_a_process(tmp_path: Path, code: str, **environment: str) -> str:
    """Found by the loader, as the agent finds it."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


ASK = """
import sys
from tailspan.collect.nvml import GpuSampler, calls
calls.LIBRARY = '{}'
gpus = GpuSampler()
assert gpus.settled(20)
print(gpus.host().state, [gpu.uuid for gpu in gpus.host().gpus], 'pynvml' in sys.modules)
gpus.close()
"""


def test_the_loader_finds_the_library_and_pynvml_is_imported_for_it(tmp_path: Path) -> None:
    gpu = FakeGpu(tmp_path / "gpu")
    library = build.library("nvml.c", SONAME)
    said = in_a_process(tmp_path, ASK.format(SONAME), LD_LIBRARY_PATH=str(library), FAKE_GPU=str(gpu.path))
    assert said == f"works ['{UUID.format(0)}'] True\n"


def test_a_host_without_the_library_does_not_pay_for_pynvml(tmp_path: Path) -> None:
    said = in_a_process(tmp_path, ASK.format("libnvidia-ml-of-nobody.so.1"))
    assert said == "no library [] False\n"


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("error nvmlInitWithFlags DRIVER_NOT_LOADED", NvmlState.NO_DRIVER),
        ("error nvmlInitWithFlags LIB_RM_VERSION_MISMATCH", NvmlState.NO_DRIVER),
        ("error nvmlInitWithFlags NO_PERMISSION", NvmlState.NO_PERMISSION),
        ("error nvmlDeviceGetHandleByIndex_v2 NO_PERMISSION", NvmlState.NO_PERMISSION),
        ("error nvmlDeviceGetHandleByIndex_v2 UNKNOWN", NvmlState.NO_DEVICE),
        ("value count 0", NvmlState.NO_DEVICE),
    ],
)
def test_what_was_missing_and_comes_is_read(sample: Make, driver: Driver, said: str, state: NvmlState) -> None:
    # GIVEN a host on which something is missing
    driver.say(said)
    gpus = sample()
    assert (gpus.host().state, gpus.gpus()) == (state, [])
    assert gpus.host().why
    # WHEN it comes
    driver.say()
    # THEN it is found
    eventually(lambda: gpus.host().state is NvmlState.WORKS, "the driver")
    eventually(lambda: len(gpus.rows("samples")) > 3, "rows")
    assert gpus.host().driver == "580.95.05"
    assert gpus.gpus() == [{"uuid": UUID.format(0), "name": "NVIDIA H100 80GB HBM3", "index": "0"}]


def test_rows_tile_and_say_what_the_card_says(sample: Make, driver: Driver) -> None:
    driver.say("value temperature_c 67", "value power_mw 353000", "value utilization 41", "value reasons 68")
    gpus = sample()
    gpus.looks(11)
    rows = gpus.rows("samples")
    assert (rows["start_mono_ns"][1:] == rows["end_mono_ns"][:-1]).all()
    assert (rows["end_mono_ns"] > rows["start_mono_ns"]).all()
    told = {"temperature_c": 67, "power_mw": 353_000, "busy_percent": 41, "reasons": 68, "power_limit_mw": 700_000}
    told |= {"sm_mhz": 1980, "sm_before_mhz": 1980, "sm_max_mhz": 1980}
    told |= {"memory_mhz": 2619, "memory_max_mhz": 2619, "memory_used_bytes": 0, "memory_total_bytes": 80 << 30}
    told |= {"pcie_gen": 5, "pcie_gen_max": 5, "pcie_width": 16, "pcie_width_max": 16}
    assert {name: set(rows[name].tolist()) for name in told} == {name: {value} for name, value in told.items()}
    values = gpus.reading().values
    assert (values["temperature"], values["power"], values["utilization"]) == (67, 353, 0.41)
    assert (values["sm_clock"], values["memory_total"]) == (1980e6, 80 << 30)


def test_counters_of_all_rows_sum_to_what_the_driver_counted(sample: Make, driver: Driver) -> None:
    driver.say(
        "rate field:74 500000000", "rate field:197 1000000007", "rate field:94 5003", "rate field:270 100000000"
    )
    gpus = sample()
    first = gpus.reading()
    gpus.looks(23)
    gpus.close()
    rows, last = gpus.rows("samples"), gpus.reading()
    held = last.clock_events["power"] - first.clock_events["power"]
    assert rows["power_ns"].sum() == pytest.approx(held * 1e9, abs=2)
    assert rows["thermal_ns"].sum() > 0
    for column, name in (("pcie_tx_bytes", "pcie_transmitted"), ("pcie_replays", "pcie_replays")):
        assert rows[column].sum() == last.values[name] - first.values[name]
    assert (rows["brake_ns"] == 0).all()


def test_a_driver_that_was_loaded_again_counts_from_0_and_no_row_is_negative(sample: Make, driver: Driver) -> None:
    driver.say("rate field:74 500000000")
    gpus = sample()
    gpus.looks(5)
    before = gpus.gpus()
    driver.say("rate field:74 500000000", "reload 1")
    eventually(lambda: gpus.host().attempts > 1 and gpus.host().state is NvmlState.WORKS, "the driver")
    gpus.looks(5)
    rows = gpus.rows("samples")
    assert rows["power_ns"].min() >= ABSENT
    assert rows["power_ns"].max() < 1_000_000_000
    assert gpus.gpus() == before


def test_a_counter_that_goes_back_is_absent_for_that_row(sample: Make, driver: Driver) -> None:
    driver.say("value field:74 1000003")
    gpus = sample()
    gpus.looks(3)
    driver.say("value field:74 11")
    eventually(lambda: (gpus.rows("samples")["power_ns"] == ABSENT).any(), "a row that does not know")
    gpus.looks(3)
    assert set(gpus.rows("samples")["power_ns"].tolist()) == {0, ABSENT}


def test_the_drivers_own_samples_split_rows_where_the_clock_changes(sample: Make, driver: Driver) -> None:
    # GIVEN looks far apart, and a clock that falls and rises in between
    gpus = sample(sample_ms=401)
    gpus.looks(1)
    driver.say("value sm_mhz 1980", "value sm_mhz 345 0 100", "value sm_mhz 1980 0 200")
    gpus.looks(2)
    # THEN fall and rise have a row each, as short as the driver's samples are apart
    rows = gpus.rows("samples")
    falls = rows[(rows["sm_before_mhz"] == 1980) & (rows["sm_mhz"] == 345)]
    rises = rows[(rows["sm_before_mhz"] == 345) & (rows["sm_mhz"] == 1980)]
    assert (len(falls), len(rises)) == (1, 1)
    low_ns = int(rises["start_mono_ns"][0] - falls["end_mono_ns"][0])
    assert 0 < low_ns < 200_000_000
    assert falls["end_mono_ns"][0] - falls["start_mono_ns"][0] < 200_000_000
    assert (rows["start_mono_ns"][1:] == rows["end_mono_ns"][:-1]).all()


def test_what_a_card_refuses_is_absent_and_told_and_asked_again_seldom(sample: Make, driver: Driver) -> None:
    refused = ("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetTemperature", "field:197")
    driver.say(*(f"error {name} NOT_SUPPORTED" for name in refused))
    gpus = sample(sample_ms=11)
    gpus.looks(31)
    rows, reading = gpus.rows("samples"), gpus.reading()
    for column in ("busy_percent", "temperature_c", "pcie_tx_bytes"):
        assert set(rows[column].tolist()) == {ABSENT}
    assert not {"utilization", "temperature", "pcie_transmitted"} & reading.values.keys()
    assert reading.unreadable == {
        "nvmlDeviceGetUtilizationRates": "Not Supported",
        "nvmlDeviceGetTemperature": "Not Supported",
        "NVML_FI_DEV_PCIE_COUNT_TX_BYTES": "Not Supported",
    }
    assert gpus.host().failures["Not Supported"] < 15
    driver.say()
    eventually(lambda: not gpus.reading().unreadable, "it to be asked again")


def test_an_older_driver_answers_under_the_older_name(sample: Make, driver: Driver) -> None:
    newer = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetComputeRunningProcesses_v3")
    driver.say(*(f"error {name} FUNCTION_NOT_FOUND" for name in newer), "value reasons 4")
    driver.runs(os.getpid(), memory_bytes=4099)
    gpus = sample()
    gpus.looks(7)
    assert set(gpus.rows("samples")["reasons"].tolist()) == {4}
    assert gpus.reading().unreadable == {}
    assert [process.memory_bytes for process in gpus.reading().processes] == [4099]


def test_processes_have_memory_name_and_share(sample: Make, driver: Driver) -> None:
    # GIVEN two processes, of which one works
    own, other = os.getpid(), os.getppid()
    driver.runs(own, place=0, memory_bytes=2**30)
    driver.runs(other, place=1, memory_bytes=2**20)
    gpus = sample()
    device = driver.gpu.devices[0]

    def works() -> None:
        now = time.monotonic_ns()
        device.processes[0].busy_ns += max(now + 40_000_000 - max(device.free_at_mono_ns, now), 0)
        device.free_at_mono_ns = now + 40_000_000

    def is_seen() -> bool:
        works()
        return any(process.sm for process in gpus.reading().processes)

    eventually(is_seen, "a share")
    gpus.looks(4)
    rows = gpus.rows("processes")
    mine = rows[rows["tgid"] == own]
    assert set(mine["memory_bytes"].tolist()) == {2**30}
    assert set(mine["comm"].tolist()) == {Path("/proc/self/comm").read_bytes().strip()}
    assert (mine["start_mono_ns"][1:] == mine["end_mono_ns"][:-1]).all()
    # THEN the other has 0 where the driver had samples of somebody, and nothing where it had of nobody
    shared = rows[rows["sm_percent"] > 0]
    assert set(shared["tgid"].tolist()) == {own}
    assert set(rows["sm_percent"][rows["tgid"] == other].tolist()) <= {0, ABSENT}
    assert 0 in rows["sm_percent"][rows["tgid"] == other]


def test_processes_without_memory_or_share_are_seen(sample: Make, driver: Driver) -> None:
    driver.runs(os.getpid())
    driver.say("value process_memory_unknown 1", "error nvmlDeviceGetProcessUtilization NO_PERMISSION")
    gpus = sample()
    eventually(lambda: len(gpus.rows("processes")) > 3, "rows")
    rows = gpus.rows("processes")
    assert set(rows["memory_bytes"].tolist()) == set(rows["sm_percent"].tolist()) == {ABSENT}
    assert gpus.reading().processes[0].memory_bytes is gpus.reading().processes[0].sm is None
    assert gpus.reading().unreadable == {"nvmlDeviceGetProcessUtilization": "Insufficient Permissions"}


def test_an_xid_is_an_event_of_its_gpu(sample: Make, make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(2)
    gpus = sample()
    began = time.monotonic_ns()
    driver.say("xid 1 79", "xid 1 31 20")
    eventually(lambda: len(gpus.rows("events", 1)) == 2, "two events")
    found = gpus.rows("events", 1)
    assert sorted(found["code"].tolist()) == [31, 79]
    assert set(found["kind"].tolist()) == {GpuEventKind.XID}
    assert found["mono_ns"].min() >= began
    eventually(lambda: gpus.reading(1).xids == {79: 1, 31: 1}, "the count")
    assert gpus.reading(0).xids == {}


def test_without_events_there_is_no_thread_that_waits_for_them(sample: Make, driver: Driver) -> None:
    driver.say("error nvmlEventSetCreate NOT_SUPPORTED")
    gpus = sample()
    gpus.looks(3)
    assert gpus.reading().unreadable == {"nvmlEventSetCreate": "Not Supported"}
    assert "nvml-events" not in [thread.name for thread in threading.enumerate()]


def test_memory_errors_are_events_with_their_count(sample: Make, driver: Driver) -> None:
    driver.say("value ecc_uncorrected 5")
    gpus = sample()
    gpus.looks(2)
    assert len(gpus.rows("events")) == 0
    driver.say("value ecc_uncorrected 8")
    eventually(lambda: len(gpus.rows("events")), "the event")
    event = gpus.rows("events")[0]
    assert (event["kind"], event["code"]) == (GpuEventKind.ECC, 3)
    eventually(lambda: gpus.reading().values["ecc_uncorrected"] == 8, "the total")
    # a report of one is an event even where they are not counted
    driver.say("error nvmlDeviceGetTotalEccErrors NOT_SUPPORTED", "dbe 0")
    eventually(lambda: len(gpus.rows("events")) == 2, "the event")
    assert gpus.rows("events")[1]["code"] == 1


def test_a_gpu_that_is_lost_is_one_event_and_goes_on_when_it_answers(
    sample: Make, make_driver: Callable[..., Driver]
) -> None:
    # GIVEN two GPUs, of which one is lost
    driver = make_driver(2)
    gpus = sample()
    gpus.looks(3)
    driver.say("lost 0")
    eventually(lambda: gpus.reading().lost, "the loss")
    assert (gpus.reading().lost, gpus.reading().values) == ("GPU is lost", {})
    gpus.looks(7)
    until = gpus.rows("samples")["end_mono_ns"].max()
    found = gpus.rows("events")
    assert found["kind"].tolist() == [GpuEventKind.LOST]
    # WHEN it comes back
    driver.say()
    eventually(lambda: not gpus.reading().lost, "its return")
    gpus.looks(3)
    # THEN it has the number it had, no row of the time in between, and the other has all of its rows
    rows, other = gpus.rows("samples"), gpus.rows("samples", 1)
    assert len(rows[rows["start_mono_ns"] > until]) > 0
    assert not ((rows["start_mono_ns"] <= until) & (rows["end_mono_ns"] > until)).any()
    assert (other["start_mono_ns"][1:] == other["end_mono_ns"][:-1]).all()
    assert [gpu["uuid"] for gpu in gpus.gpus()] == [UUID.format(0), UUID.format(1)]
    assert gpus.rows("events")["kind"].tolist() == [GpuEventKind.LOST, GpuEventKind.BACK]


def test_a_gpu_that_is_no_longer_listed_is_lost(sample: Make, make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(2)
    gpus = sample()
    driver.say("value count 1", "reload 2")
    eventually(lambda: gpus.host().attempts > 1 and gpus.host().state is NvmlState.WORKS, "the driver")
    assert [bool(gpu.lost) for gpu in gpus.host().gpus] == [False, True]
    assert gpus.reading(1).uuid == UUID.format(1)


def test_a_gpu_that_was_not_there_is_looked_for_while_the_others_work(
    sample: Make, make_driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "AGAIN_NS", 211_000_000)
    driver = make_driver(2)
    driver.say("lost 0")
    gpus = sample()
    assert [gpu.uuid for gpu in gpus.host().gpus] == [UUID.format(1)]
    driver.say()
    states = set()

    def is_found() -> bool:
        states.add(gpus.host().state)
        return len(gpus.host().gpus) == 2

    eventually(is_found, "the other")
    assert states == {NvmlState.WORKS}
    assert [gpu["uuid"] for gpu in gpus.gpus()] == [UUID.format(1), UUID.format(0)]


def test_several_gpus_are_told_apart(sample: Make, make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(4)
    for number, device in enumerate(driver.gpu.devices):
        device.set(sm_mhz=1000 + number)
    gpus = sample()
    gpus.looks(5)
    for number in range(4):
        assert set(gpus.rows("samples", number)["sm_mhz"].tolist()) == {1000 + number}
        assert gpus.gpus()[number]["uuid"] == UUID.format(number)


def test_mig_instances_are_gpus_with_a_parent(sample: Make, driver: Driver) -> None:
    # GIVEN a GPU in MIG mode, and a process in its second instance
    driver.say("mig 0 2 10000000000", "rate field:74 500000000")
    driver.runs(os.getpid(), place=1, memory_bytes=4099)
    gpus = sample()
    eventually(lambda: len(gpus.rows("processes", 2)) > 2, "rows of the process")
    gpus.close()
    # THEN each has rows, with memory of its own and the clocks and counters of the GPU
    parent, first, second = (gpus.rows("samples", number) for number in range(3))
    assert (parent["start_mono_ns"][1:] == parent["end_mono_ns"][:-1]).all()
    assert set(second["memory_used_bytes"].tolist()) == {4099}
    assert set(first["memory_total_bytes"].tolist()) == {10_000_000_000}
    assert set(parent["memory_total_bytes"].tolist()) == {80 << 30}
    assert set(first["sm_mhz"].tolist()) == {1980}
    assert first["power_ns"].sum() == parent["power_ns"].sum() > 0
    assert set(first["busy_percent"].tolist()) == {ABSENT}
    assert (len(gpus.rows("processes", 0)), len(gpus.rows("processes", 1))) == (0, 0)
    assert [gpu.get("parent") for gpu in gpus.gpus()] == [None, UUID.format(0), UUID.format(0)]
    assert [gpu.uuid[:4] for gpu in gpus.host().gpus] == ["GPU-", "MIG-", "MIG-"]
    assert [process.tgid for process in gpus.reading(2).processes] == [os.getpid()]


def test_instances_that_are_made_later_come_and_go(sample: Make, driver: Driver) -> None:
    gpus = sample()
    driver.say("mig 0 3 10000000000")
    eventually(lambda: len(gpus.host().gpus) == 4, "the instances")
    driver.say()
    eventually(lambda: len(gpus.host().gpus) == 1, "their end")
    assert len(gpus.gpus()) == 4
    assert gpus.host().state is NvmlState.WORKS


def test_a_card_that_can_says_how_busy_its_sms_are(sample: Make, driver: Driver) -> None:
    driver.say("value gpm:2 73", "value gpm:10 41")
    gpus = sample()
    eventually(lambda: "gpm_sm_utilization" in gpus.reading().values, "GPM")
    values = gpus.reading().values
    assert (values["gpm_sm_utilization"], values["gpm_dram_utilization"]) == (0.73, 0.41)
    driver.say("value gpm 0")
    eventually(lambda: "gpm_sm_utilization" not in gpus.reading().values, "its end")
    assert gpus.reading().unreadable == {"nvmlGpmQueryDeviceSupport": "Not Supported"}


def test_time_inside_nvml_is_held_to_the_budget(sample: Make, driver: Driver) -> None:
    # GIVEN calls that take 5 ms each
    driver.say("delay * 5")
    gpus = sample(sample_ms=20, budget=0.2)
    before, began = gpus.host(), time.monotonic()
    gpus.looks(5)
    took, after = time.monotonic() - began, gpus.host()
    # THEN looks are as far apart as the budget wants; the last one's pause is not in the time
    spent = after.call_s - before.call_s
    assert spent > 5 * 5 * 0.005
    assert spent / took < 0.2 * 1.25
    print(f"{(after.calls - before.calls) / took:.0f} calls/s, {100 * spent / took:.1f} % of the time inside NVML")


def test_a_call_that_hangs_holds_up_nobody(sample: Make, driver: Driver) -> None:
    gpus = sample()
    driver.say("delay nvmlDeviceGetFieldValues 60000")
    eventually(lambda: is_stale(gpus), "the hang")
    began = time.monotonic()
    gpus.take()
    assert gpus.host().gpus
    assert time.monotonic() - began < 0.1
    gpus.close()
    assert time.monotonic() - began < 2.5
    driver.say()
    eventually(lambda: not gpus._thread.is_alive(), "its end, after the call")


def is_stale(gpus: Sampler) -> bool:
    return time.monotonic_ns() - gpus.reading().taken_mono_ns > 300_000_000


def test_what_nobody_takes_is_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "LIMIT", 11)
    box = Outbox()
    box.put(np.zeros(7, GPU_SAMPLE))
    box.put(np.zeros(7, GPU_SAMPLE))
    box.put(np.zeros(5, GPU_PROCESS))
    taken = box.take()
    assert (len(taken.samples), len(taken.processes), len(taken.events), taken.dropped) == (11, 5, 0, 3)
    assert (taken.samples.dtype, taken.events.dtype) == (GPU_SAMPLE, GPU_EVENT)
    assert box.take().dropped == 0
