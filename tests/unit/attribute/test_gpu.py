"""What a thread waited for in a CUDA call, what made it longer, and who is named for it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan.attribute.causes import Cause
from tailspan.attribute.judge import judge
from tailspan.attribute.verdict import Culprit, CulpritKind, Verdict
from tailspan.timeline.tables import GpuEventKind
from tailspan.wire.events import CycleFlags, GpuCallKind, ObjectKind
from tailspan.wire.spans import SpanKind
from tailspan.wire.syscalls import SYSCALLS
from tests.timelines import MS, Timeline

NVIDIA = 195  # NV_MAJOR_DEVICE_NUMBER of the driver
FAST = {"sm_mhz": 1980, "sm_max_mhz": 1980, "reasons": 0}
SLOW = {"sm_mhz": 495, "sm_max_mhz": 1980}
POWER, THERMAL, IDLE = 0x4, 0x40, 0x1
GIB = 1 << 30


def _verdict(timeline: Timeline) -> Verdict:
    return judge(timeline.evidence())[0]


def _ms(verdict: Verdict) -> dict[Cause, float]:
    return {part.cause: part.ns / MS for part in verdict.ledger}


def _culprit(verdict: Verdict, cause: Cause) -> Culprit:
    return next(part.culprits[0] for part in verdict.ledger if part.cause is cause)


def _request(call: GpuCallKind = GpuCallKind.SYNC, **fields: object) -> Timeline:
    """100 ms, of which its thread spins from 10 to 90 in one call."""
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.runs(1)
    launched = {"launch_at": 9} if call == GpuCallKind.SYNC else {}
    timeline.gpu_call(call, 10, 90, tid=1, **{**launched, **fields})
    return timeline


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (GpuCallKind.SYNC, Cause.GPU),
        (GpuCallKind.COPY, Cause.GPU_COPY),
        (GpuCallKind.ALLOC, Cause.GPU_ALLOC),
        (GpuCallKind.FREE, Cause.GPU_ALLOC),
        (GpuCallKind.LOAD, Cause.GPU_LOAD),
    ],
)
def test_the_time_of_a_call_is_its_cause(kind: GpuCallKind, cause: Cause) -> None:
    assert _ms(_verdict(_request(kind))) == {Cause.ON_CPU: 20, cause: 80}


class TestCopies:
    def test_until_another_threads_work_is_done_a_copy_waits_for_the_device(self) -> None:
        timeline = _request(GpuCallKind.COPY)
        timeline.gpu_call(GpuCallKind.SYNC, 6, 70, tid=2, launch_at=5, launches=3)
        timeline.gpu_sample(0, 100, **SLOW, reasons=POWER)

        assert _ms(_verdict(timeline)) == {
            Cause.ON_CPU: 20,
            Cause.GPU: 15,
            Cause.GPU_CLOCKS: 45,
            Cause.GPU_COPY: 20,
        }

    def test_of_its_own_work_it_waits_for_all_but_what_the_link_takes(self) -> None:
        timeline = _request(GpuCallKind.COPY, bytes=10_000_000, launches=3)
        timeline.gpu_sample(0, 100, pcie_gen=1, pcie_width=4)  # 1 GB/s

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU: 60, Cause.GPU_COPY: 20}


def test_a_call_that_sleeps_is_the_same_as_one_that_spins() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 11, 89, 89, syscall="poll")
    timeline.gpu_call(GpuCallKind.SYNC, 10, 90, tid=1, launch_at=9)

    assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU: 80}


def test_what_hinders_the_thread_in_a_call_is_not_the_device() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 20, 50, 50, syscall="futex", waker=2)  # a lock of the driver's library that thread 2 had
    timeline.gpu_call(GpuCallKind.SYNC, 10, 90, tid=1, launch_at=9)

    assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU: 50, Cause.FUTEX: 30}


class TestWaitsForACpuInACall:
    def test_while_the_device_is_busy_they_cost_nothing(self) -> None:
        timeline = Timeline()
        timeline.request(0, 100, tid=1)
        timeline.waits(1, 20, 60)
        timeline.slice(0, 20, 60, tgid=900, comm="hog")
        timeline.gpu_call(GpuCallKind.SYNC, 10, 90, tid=1, launch_at=9)

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU: 80}

    def test_the_last_one_does_if_the_call_returns_right_after(self) -> None:
        timeline = Timeline()
        timeline.request(0, 100, tid=1)
        timeline.waits(1, 20, 50)
        timeline.waits(1, 60, 89.95)
        timeline.slice(0, 60, 89.95, tgid=900, comm="hog")
        timeline.gpu_call(GpuCallKind.SYNC, 10, 90, tid=1, launch_at=9)

        verdict = _verdict(timeline)

        assert _ms(verdict) == pytest.approx({Cause.ON_CPU: 20, Cause.GPU: 50.05, Cause.RUN_QUEUE: 29.95})
        assert _culprit(verdict, Cause.RUN_QUEUE).pid == 900

    def test_in_an_allocation_the_thread_itself_works(self) -> None:
        timeline = Timeline()
        timeline.request(0, 100, tid=1)
        timeline.waits(1, 20, 60)
        timeline.gpu_call(GpuCallKind.ALLOC, 10, 90, tid=1)

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU_ALLOC: 40, Cause.RUN_QUEUE: 40}


class TestSleepsOnTheDriversDevices:
    def _sleep(self, syscall: str, **fields: object) -> Verdict:
        timeline = Timeline()
        timeline.meta.gpu_majors = [NVIDIA]
        timeline.request(0, 10, tid=1)
        device = {"object_kind": ObjectKind.CHAR_DEVICE, "object_dev": NVIDIA << 20 | 255}
        timeline.blocks(1, 2, 9, 9, syscall=syscall, **(device | fields))
        return _verdict(timeline)

    @pytest.mark.parametrize("syscall", ["ioctl", "poll"])
    def test_are_waits_for_the_gpu(self, syscall: str) -> None:
        assert _ms(self._sleep(syscall)) == {Cause.ON_CPU: 3, Cause.GPU: 7}

    def test_on_another_device_are_not(self) -> None:
        assert Cause.GPU not in _ms(self._sleep("ioctl", object_dev=136 << 20))

    def test_that_another_caller_ends_are_waits_for_a_lock_of_the_driver(self) -> None:
        verdict = self._sleep("ioctl", waker=77, waker_tgid=700)

        assert _ms(verdict) == {Cause.ON_CPU: 3, Cause.GPU_DRIVER: 7}
        assert _culprit(verdict, Cause.GPU_DRIVER).pid == 700

    @pytest.mark.parametrize(
        "fields",
        [{"waker_comm": b"irq/77-nvidia"}, {"waker_comm": b"nv_queue"}, {"flags": CycleFlags.WAKER_IRQ}],
    )
    def test_that_the_device_ends_are_not(self, fields: dict[str, object]) -> None:
        timeline = Timeline()
        timeline.meta.gpu_majors = [NVIDIA]
        timeline.request(0, 10, tid=1)
        sleep = {"object_kind": ObjectKind.CHAR_DEVICE, "object_dev": NVIDIA << 20, "waker_tid": 77, **fields}
        timeline.cycle(1, 2, 9, 9, state=1, syscall_nr=SYSCALLS.index("ioctl"), **sleep)

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 3, Cause.GPU: 7}


class TestClocks:
    def test_a_quarter_of_the_clock_is_three_quarters_of_the_wait(self) -> None:
        timeline = _request()
        timeline.gpu_sample(0, 100, **SLOW, reasons=POWER, power_ns=90 * MS)

        verdict = _verdict(timeline)

        assert _ms(verdict) == {Cause.ON_CPU: 20, Cause.GPU: 20, Cause.GPU_CLOCKS: 60}
        assert _culprit(verdict, Cause.GPU_CLOCKS) == Culprit(
            CulpritKind.GPU, 60 * MS, "the power cap of GPU 0", owner="GPU-0"
        )
        assert "GPU 0 (Test GPU): SM clock 495 of 1980 MHz (the power cap)" in verdict.facts

    @pytest.mark.parametrize(
        ("fields", "who"),
        [
            ({"thermal_ns": 5 * MS, "reasons": POWER}, "the heat of GPU 0"),
            ({"reasons": THERMAL}, "the heat of GPU 0"),
            ({"brake_ns": 5 * MS}, "the power brake of GPU 0"),
            ({"reasons": 0x2}, "the set clocks of GPU 0"),
            ({"reasons": 0x8}, "the hardware slowdown of GPU 0"),
        ],
    )
    def test_the_reason_is_named(self, fields: dict[str, int], who: str) -> None:
        timeline = _request()
        timeline.gpu_sample(0, 100, **SLOW, **fields)

        assert _culprit(_verdict(timeline), Cause.GPU_CLOCKS).label == who

    def test_the_highest_clock_takes_nothing_whatever_the_reasons(self) -> None:
        timeline = _request()
        timeline.gpu_sample(0, 100, **FAST | {"reasons": POWER})

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU: 80}

    def test_a_clock_that_is_absent_is_not_zero(self) -> None:
        timeline = _request()
        timeline.gpu_sample(0, 100, reasons=POWER, sm_max_mhz=1980)

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU: 80}

    def test_the_last_sample_holds_for_a_while_and_says_how_old_it_is(self) -> None:
        timeline = _request()
        timeline.gpu_sample(-300, -200, **SLOW, reasons=POWER)

        verdict = _verdict(timeline)

        assert _ms(verdict)[Cause.GPU_CLOCKS] == 60
        assert verdict.trust.gpu_sample_age_ns == 300 * MS

    def test_copies_do_not_depend_on_the_sm_clock(self) -> None:
        timeline = _request(GpuCallKind.COPY)
        timeline.gpu_sample(0, 100, **SLOW, reasons=POWER)

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU_COPY: 80}


class TestColdAfterIdle:
    def test_low_clocks_without_a_reason_after_a_gap_in_the_calls(self) -> None:
        timeline = _request()
        timeline.gpu_call(GpuCallKind.SYNC, -900, -800, tid=1)
        timeline.gpu_sample(0, 100, **SLOW, reasons=IDLE)

        verdict = _verdict(timeline)

        assert _ms(verdict) == {Cause.ON_CPU: 20, Cause.GPU: 20, Cause.GPU_COLD: 60}
        assert _culprit(verdict, Cause.GPU_COLD).label == "GPU 0"

    def test_without_a_gap_they_are_the_devices_own_affair(self) -> None:
        timeline = _request()
        for start in range(-700, 0, 50):
            timeline.gpu_call(GpuCallKind.SYNC, start, start + 49, tid=1, launch_at=start)
        timeline.gpu_sample(0, 100, **SLOW, reasons=0)

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU: 80}

    def test_a_reason_to_cap_them_comes_first(self) -> None:
        timeline = _request()
        timeline.gpu_sample(0, 100, **SLOW, reasons=IDLE | POWER)

        assert Cause.GPU_COLD not in _ms(_verdict(timeline))

    def test_without_probes_the_samples_say_that_it_was_idle(self) -> None:
        timeline = Timeline()
        timeline.meta.gpu_majors = [NVIDIA]
        timeline.request(0, 100, tid=1)
        device = {"object_kind": ObjectKind.CHAR_DEVICE, "object_dev": NVIDIA << 20}
        timeline.blocks(1, 10, 90, 90, syscall="poll", **device)
        timeline.gpu_sample(-200, 0, **SLOW, reasons=IDLE, busy_percent=0)
        timeline.gpu_sample(0, 100, **SLOW, reasons=0, busy_percent=80)

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU: 20, Cause.GPU_COLD: 60}


class TestCoTenants:
    def test_their_share_of_the_time_is_theirs(self) -> None:
        timeline = _request()
        timeline.gpu_sample(0, 100, **FAST)
        timeline.gpu_process(0, 100, tgid=100, comm="worker", sm=50, memory=4 * GIB)
        timeline.gpu_process(0, 100, tgid=812, comm="train", sm=40, memory=30 * GIB)
        timeline.gpu_process(0, 100, tgid=813, comm="other", sm=10)

        verdict = _verdict(timeline)

        assert _ms(verdict) == {Cause.ON_CPU: 20, Cause.GPU: 40, Cause.GPU_SHARED: 40}
        culprit = _culprit(verdict, Cause.GPU_SHARED)
        assert (culprit.kind, culprit.pid, culprit.label) == (CulpritKind.PROCESS, 812, "train[812]")
        assert "also on GPU 0: train[812] (30.0 GiB, 40 %), other[813] (10 %)" in verdict.facts

    def test_one_whose_share_cannot_be_read_is_told_and_not_accused(self) -> None:
        timeline = _request()
        timeline.gpu_process(0, 100, tgid=812, comm="train", memory=30 * GIB)

        verdict = _verdict(timeline)

        assert _ms(verdict) == {Cause.ON_CPU: 20, Cause.GPU: 80}
        assert any("its share of the time cannot be read" in fact for fact in verdict.facts)

    def test_together_with_low_clocks_no_ms_is_counted_twice(self) -> None:
        timeline = _request()
        timeline.gpu_sample(0, 100, **SLOW, reasons=POWER)
        timeline.gpu_process(0, 100, tgid=812, comm="train", sm=50)

        assert _ms(_verdict(timeline)) == {
            Cause.ON_CPU: 20,
            Cause.GPU: 10,
            Cause.GPU_SHARED: 40,
            Cause.GPU_CLOCKS: 30,
        }

    def test_one_that_has_gone_takes_nothing_any_more(self) -> None:
        timeline = _request()
        timeline.gpu_process(-900, 0, tgid=812, comm="train", sm=40)
        timeline.gpu_process(0, 100, tgid=100, comm="worker", sm=50)

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU: 80}

    def test_on_another_device_they_do_not_matter(self) -> None:
        timeline = _request()
        timeline.gpu_process(0, 100, tgid=100, comm="worker", gpu=0)
        timeline.gpu_process(0, 100, tgid=812, comm="train", gpu=1, sm=100)

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU: 80}


def test_requests_that_are_seconds_apart_are_judged_together() -> None:
    timeline = Timeline()
    for start in (0, 9_000):
        timeline.request(start, start + 100, tid=1)
        timeline.gpu_call(GpuCallKind.SYNC, start + 10, start + 90, tid=1, launch_at=start + 9)
        timeline.gpu_sample(start, start + 100, gpu=0, **SLOW, reasons=POWER)
        timeline.gpu_process(start, start + 100, 812, "train", gpu=0, sm=50)
    timeline.runs(1)

    expected = {Cause.ON_CPU: 20, Cause.GPU: 10, Cause.GPU_SHARED: 40, Cause.GPU_CLOCKS: 30}
    assert [_ms(verdict) for verdict in judge(timeline.evidence())] == [expected, expected]


class TestMemory:
    def test_hardly_any_left(self) -> None:
        timeline = _request(GpuCallKind.ALLOC)
        timeline.gpu_sample(0, 100, memory_used_bytes=78 * GIB, memory_total_bytes=80 * GIB)
        timeline.gpu_process(0, 100, tgid=100, comm="worker", memory=10 * GIB)
        timeline.gpu_process(0, 100, tgid=812, comm="train", memory=68 * GIB)

        verdict = _verdict(timeline)

        assert _ms(verdict) == {Cause.ON_CPU: 20, Cause.GPU_FULL: 80}
        assert _culprit(verdict, Cause.GPU_FULL).pid == 812

    def test_its_own(self) -> None:
        timeline = _request(GpuCallKind.ALLOC)
        timeline.gpu_sample(0, 100, memory_used_bytes=78 * GIB, memory_total_bytes=80 * GIB)
        timeline.gpu_process(0, 100, tgid=100, comm="worker", memory=70 * GIB)

        assert _culprit(_verdict(timeline), Cause.GPU_FULL).kind is CulpritKind.OWN

    def test_an_allocation_that_failed_says_so_without_a_sample(self) -> None:
        timeline = _request(GpuCallKind.FREE)  # a caching allocator gives back what it has
        timeline.gpu_call(GpuCallKind.ALLOC, 5, 6, tid=2, result=2)

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU_FULL: 80}

    def test_enough_left(self) -> None:
        timeline = _request(GpuCallKind.ALLOC)
        timeline.gpu_sample(0, 100, memory_used_bytes=40 * GIB, memory_total_bytes=80 * GIB)

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU_ALLOC: 80}


class TestFaults:
    def test_from_the_xid_on(self) -> None:
        timeline = _request()
        timeline.gpu_event(30, GpuEventKind.XID, 79)

        verdict = _verdict(timeline)

        assert _ms(verdict) == {Cause.ON_CPU: 20, Cause.GPU: 20, Cause.GPU_FAULT: 60}
        assert _culprit(verdict, Cause.GPU_FAULT).label == "XID 79 (fallen off the bus) on GPU 0"
        assert "at +30.0 ms XID 79 (fallen off the bus) on GPU 0" in verdict.facts

    def test_one_that_the_driver_has_lost(self) -> None:
        timeline = _request()
        timeline.gpu_event(-5000, GpuEventKind.LOST)

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU_FAULT: 80}

    def test_one_that_is_back_explains_nothing_any_more(self) -> None:
        timeline = _request()
        timeline.gpu_event(-5000, GpuEventKind.LOST)
        timeline.gpu_event(30, GpuEventKind.BACK)

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU_FAULT: 20, Cause.GPU: 60}

    def test_an_old_xid_explains_nothing(self) -> None:
        timeline = _request()
        timeline.gpu_event(-5000, GpuEventKind.XID, 31)

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU: 80}

    def test_that_of_another_device_neither(self) -> None:
        timeline = _request()
        timeline.gpu_process(0, 100, tgid=100, comm="worker", gpu=0)
        timeline.gpu_event(30, GpuEventKind.XID, 79, gpu=1)

        assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 20, Cause.GPU: 80}


class TestLateLaunches:
    def _scene(self, launch_at: float) -> Verdict:
        timeline = Timeline()
        timeline.request(0, 100, tid=1)
        timeline.waits(1, 20, 70)
        timeline.slice(0, 20, 70, tgid=900, comm="hog")
        timeline.gpu_call(GpuCallKind.SYNC, 5, 15, tid=1, launch_at=4)
        timeline.gpu_call(GpuCallKind.SYNC, 75, 90, tid=1, launch_at=launch_at, launches=2)
        return _verdict(timeline)

    def test_what_held_the_thread_is_the_cause_and_the_idle_device_a_fact(self) -> None:
        verdict = self._scene(launch_at=72)

        assert _ms(verdict) == {Cause.ON_CPU: 25, Cause.GPU: 25, Cause.RUN_QUEUE: 50}
        assert _culprit(verdict, Cause.RUN_QUEUE).pid == 900
        assert (
            "late launches: the GPU had nothing to do for 50.0 ms in which the thread was held up" in verdict.facts
        )

    def test_a_device_that_had_work_meanwhile_was_not_idle(self) -> None:
        verdict = self._scene(launch_at=30)

        assert (
            "late launches: the GPU had nothing to do for 10.0 ms in which the thread was held up" in verdict.facts
        )

    def test_what_comes_after_the_last_launch_delays_none(self) -> None:
        assert not any("late launches" in fact for fact in self._scene(launch_at=16).facts)


def test_behind_another_batch_its_time_on_the_device_is_queueing() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.batch(7, 0, 60, tid=2)
    timeline.runs(1)
    timeline.runs(2)
    timeline.span(0, "queue", 0, 60, tid=2, kind=SpanKind.QUEUED)
    timeline.gpu_call(GpuCallKind.SYNC, 10, 50, tid=2, launch_at=9)

    assert _ms(_verdict(timeline)) == {Cause.ON_CPU: 40, Cause.QUEUED: 60}


class TestWhichDevice:
    def test_the_one_that_the_request_names(self) -> None:
        timeline = Timeline()
        timeline.request(0, 100, tid=1, device="GPU-1")
        timeline.runs(1)
        timeline.gpu_call(GpuCallKind.SYNC, 10, 90, tid=1, launch_at=9)
        timeline.gpu_sample(0, 100, gpu=0, **SLOW, reasons=POWER)
        timeline.gpu_sample(0, 100, gpu=1, **FAST)

        verdict = _verdict(timeline)

        assert _ms(verdict) == {Cause.ON_CPU: 20, Cause.GPU: 80}
        assert verdict.request.device == "GPU-1"

    def test_of_several_none_is_guessed(self) -> None:
        timeline = _request()
        timeline.gpu_sample(0, 100, gpu=0, **SLOW, reasons=POWER)
        timeline.gpu_sample(0, 100, gpu=1, **SLOW, reasons=POWER)

        verdict = _verdict(timeline)

        assert _ms(verdict) == {Cause.ON_CPU: 20, Cause.GPU: 80}
        assert verdict.trust.gpu_sample_age_ns is None

    def test_a_mig_instance_rather_than_its_card(self) -> None:
        timeline = _request()
        timeline.gpu_process(0, 100, tgid=100, comm="worker", gpu=0)
        timeline.gpu_process(0, 100, tgid=100, comm="worker", gpu=1)
        timeline.meta.gpus[1] |= {"uuid": "MIG-1", "parent": "GPU-0", "index": "3"}
        timeline.gpu_sample(0, 100, gpu=1, **SLOW, reasons=POWER)

        assert _culprit(_verdict(timeline), Cause.GPU_CLOCKS).label == "the power cap of MIG 3 of GPU 0"


def test_a_worker_without_a_gpu_is_told_nothing_of_it() -> None:
    timeline = Timeline()
    timeline.request(0, 10, tid=1)
    timeline.runs(1)
    timeline.gpu_sample(0, 100, gpu=0, **SLOW, reasons=POWER)

    verdict = _verdict(timeline)

    assert verdict.facts == ()
    assert verdict.trust.gpu_sample_age_ns is None
    assert not [label for label in verdict.ruled_out if label.startswith("gpu ") and label != "gpu driver lock"]


@given(st.data())
def test_whatever_nvml_and_the_calls_say_the_ledger_sums_to_the_wall_time(data: st.DataObject) -> None:
    number = st.integers(-50, 150)
    timeline = Timeline()
    timeline.meta.gpu_majors = [NVIDIA]
    timeline.request(0, 100, tid=1)
    at = 0.0
    for _ in range(data.draw(st.integers(0, 5))):
        off = at + data.draw(st.integers(0, 10))
        ready = off + data.draw(st.integers(0, 10))
        at = ready + data.draw(st.integers(0, 10))
        kind = data.draw(st.sampled_from([ObjectKind.NONE, ObjectKind.CHAR_DEVICE]))
        fields = {"object_kind": kind, "object_dev": NVIDIA << 20, "waker": data.draw(st.integers(0, 2))}
        timeline.blocks(1, off, ready, at, syscall=data.draw(st.sampled_from(["ioctl", "futex"])), **fields)
    for _ in range(data.draw(st.integers(0, 5))):
        start = data.draw(number)
        end = start + data.draw(st.integers(0, 50))
        kind = data.draw(st.sampled_from([*GpuCallKind]))
        timeline.gpu_call(kind, start, end, tid=data.draw(st.integers(1, 2)), result=data.draw(st.integers(0, 2)))
    for _ in range(data.draw(st.integers(0, 4))):
        start, gpu = data.draw(number), data.draw(st.integers(0, 1))
        clock = data.draw(st.integers(-1, 3000))
        fields = {"sm_mhz": clock, "sm_max_mhz": data.draw(st.integers(-1, 2000)), "reasons": data.draw(number)}
        timeline.gpu_sample(start, start + data.draw(st.integers(0, 90)), gpu, **fields)
        sm = data.draw(st.integers(-1, 250))
        timeline.gpu_process(start, start + 30, data.draw(st.integers(99, 102)), "p", gpu, sm=sm)
    for _ in range(data.draw(st.integers(0, 3))):
        timeline.gpu_event(data.draw(number), data.draw(st.sampled_from([*GpuEventKind])), 79)

    verdict = _verdict(timeline)

    assert sum(part.ns for part in verdict.ledger) == 100 * MS
    assert all(part.ns > 0 for part in verdict.ledger)
    ends = np.array([(step.start_ns, step.end_ns) for step in verdict.waterfall])
    assert (ends[1:, 0] == ends[:-1, 1]).all()
