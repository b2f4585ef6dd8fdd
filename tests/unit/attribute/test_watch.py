"""What each process did lately: nothing counts twice, nothing that goes on is missed, and all of it is bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from tailspan import config
from tailspan.attribute import watch
from tailspan.attribute.health import GPU_MEMORY, LATENCY, LOAD, Grade, HostHealth, State
from tailspan.attribute.watch import MAX_PROCESSES, UNNAMED, Watch
from tailspan.timeline.evidence import Table
from tailspan.timeline.gpus import GpuProcess, GpuReading
from tailspan.wire.events import CycleFlags, ThreadMode
from tests.builders import table
from tests.gpus import UUID, S, sample_gpu

MS = 1_000_000
START = 1000 * S
WEB, CHAT = 8100, 8200
SERVICES = {WEB: "web", CHAT: "chat"}
STOPPED = 4


def cycle(tgid: int, run_ms: float, off_ms: float, ready_ms: float, on_ms: float, **columns: object) -> Table:
    """A turn of a thread, in ms since START."""
    names = ("run_mono_ns", "off_mono_ns", "ready_mono_ns", "on_mono_ns")
    times = {name: START + int(at * MS) for name, at in zip(names, (run_ms, off_ms, ready_ms, on_ms), strict=True)}
    return table("cycles", tgid=tgid, tid=tgid, **{**times, **columns})


def open_(tgid: int, at_ms: float, run_ms: float, off_ms: float = 0, ready_ms: float = 0, state: int = 1) -> Table:
    """A thread as a look finds it; ``off_ms`` and ``ready_ms`` 0: it is on a CPU, or asleep."""
    times = {"taken_mono_ns": at_ms, "run_mono_ns": run_ms, "off_mono_ns": off_ms, "ready_mono_ns": ready_ms}
    mode = ThreadMode.RUNNABLE if ready_ms else ThreadMode.BLOCKED if off_ms else ThreadMode.RUNNING
    rows = {name: START + int(at * MS) if at else 0 for name, at in times.items()}
    return table("open_threads", tgid=tgid, tid=tgid, mode=mode, state=state, **rows)


def asleep(at_ms: float, *tgids: int) -> Table:
    """Threads that have slept since long ago."""
    look = np.concatenate([open_(tgid, at_ms, 0, 1) for tgid in tgids])
    look["run_mono_ns"], look["off_mono_ns"] = START - 60 * S, START - 50 * S
    return look


def requests(tgid: int, walls_ms: Sequence[float], **columns: object) -> Table:
    rows = table("requests", rows=len(walls_ms), tgid=tgid, **columns)
    rows["start_mono_ns"] = START
    rows["end_mono_ns"] = START + (np.array(walls_ms) * MS).astype(np.int64)
    return rows


class Host:
    """A watch, a second at a time."""

    def __init__(self, weights: config.Health | None = None, slo_ms: float = 0.0, window_s: int = 30) -> None:
        self.watch = Watch(weights or config.Health(), slo_ms, window_s)
        assert not self.watch.due(START)
        self.now_ms = 0

    def second(
        self,
        *looks: Table,
        services: Mapping[int, str] | None = None,
        gpus: Sequence[GpuReading] = (),
    ) -> HostHealth:
        self.now_ms += 1000
        now = START + self.now_ms * MS
        assert self.watch.due(now)
        look = np.concatenate(looks) if looks else asleep(self.now_ms, *SERVICES)
        return self.watch.turn(look, SERVICES if services is None else services, gpus, now)

    def serve(self, tgid: int, slow: int, of: int) -> None:
        self.watch.served(requests(tgid, [1.0] * of), [""], np.arange(of) < slow)


@pytest.fixture
def host() -> Host:
    return Host()


def part(grade: Grade, name: str) -> float | None:
    return next((each.value for each in grade.parts if each.name == name), None)


def of(report: HostHealth, service: str) -> Grade:
    return next(each.grade for each in report.workers if each.service == service)


def test_a_worker_that_sleeps_is_well(host: Host) -> None:
    report = host.second()
    assert [each.service for each in report.workers] == ["chat", "web"]
    assert of(report, "web") == Grade(State.HEALTHY, 100.0, of(report, "web").parts, "")
    assert part(of(report, "web"), LOAD) == 1.0
    assert report.host.state is State.HEALTHY


def test_what_a_thread_waited_and_ran_is_its_processes_load(host: Host) -> None:
    # GIVEN a second in which web ran for 600 ms and was ready for 200 ms more, and chat ran alone
    host.watch.took(cycle(WEB, 0, 300, 300, 400))
    host.watch.took(cycle(WEB, 400, 700, 750, 850))
    host.watch.took(cycle(CHAT, 0, 900, 900, 900))
    report = host.second()
    assert part(of(report, "web"), LOAD) == pytest.approx(1 - 200 / 800 / 0.5, abs=0.01)
    assert part(of(report, "chat"), LOAD) == 1.0
    assert part(report.host, LOAD) == pytest.approx(1 - 200 / 1700 / 0.5, abs=0.01)
    # AND the host is as well as the worker that is worse
    assert report.host.score == of(report, "web").score
    assert report.host.why.startswith("web: its threads waited for a CPU for 25%")


def test_short_waits_are_taken_from_the_turn_that_they_fell_into(host: Host) -> None:
    host.watch.took(cycle(WEB, 0, 900, 900, 900, short_blocked_ns=300 * MS, short_runq_ns=200 * MS))
    assert part(of(host.second(), "web"), LOAD) == pytest.approx(1 - 200 / 600 / 0.5, abs=0.01)


@pytest.mark.parametrize("flag", [CycleFlags.SEEDED, CycleFlags.BORN])
def test_a_thread_that_was_just_found_did_not_run_before(host: Host, flag: CycleFlags) -> None:
    host.watch.took(cycle(WEB, -9000, 0, 800, 900, flags=flag))
    assert part(of(host.second(), "web"), LOAD) == 0.0


def test_a_thread_that_gets_no_cpu_at_all_is_load_before_its_wait_is_over(host: Host) -> None:
    grades = [of(host.second(open_(WEB, 1000 * n, 0, 100, 100)), "web") for n in (1, 2, 3)]
    assert [grade.state for grade in grades] == [State.CRITICAL] * 3
    # AND when it is over, only what was not yet counted is
    host.watch.took(cycle(WEB, 0, 100, 100, 3500))
    host.watch.took(cycle(WEB, 3500, 3900, 3990, 3990))
    done = host.watch
    host.second(open_(WEB, 4000, 3990))
    row = done._done[done._rows[WEB]].sum(axis=0)
    assert row[:2].tolist() == [3400 * MS, 510 * MS]


def test_a_turn_that_ends_between_the_look_and_the_drain_is_counted_once(host: Host) -> None:
    # GIVEN a look that finds the thread running, and a record of that turn's end, drained after the look
    host.watch.took(cycle(WEB, 0, 1001, 1001, 1003))
    host.second(open_(WEB, 1000, 0))
    # THEN the second after has only what came after the look
    host.second(open_(WEB, 2000, 1003))
    done = host.watch
    assert done._done[done._rows[WEB]].sum(axis=0)[:2].tolist() == [2 * MS, 1998 * MS]


def test_more_turns_than_are_kept_are_added_up_before(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MANY_CYCLES", 23)
    for at in range(101):
        host.watch.took(cycle(WEB, at, at + 0.5, at + 0.5, at + 1))
        assert host.watch._n_cycles <= 23
    assert part(of(host.second(), "web"), LOAD) == 0.0
    assert host.watch._done[host.watch._rows[WEB]].sum(axis=0)[:2].tolist() == [101 * MS // 2, 101 * MS // 2]


def test_a_stopped_process_is_critical(host: Host) -> None:
    report = host.second(open_(WEB, 1000, 0, 100, state=STOPPED))
    assert of(report, "web").state is State.CRITICAL
    assert of(host.second(open_(WEB, 2000, 0, 100, state=STOPPED)), "web").state is State.CRITICAL


def test_slow_requests_are_latency_of_the_worker_that_served_them(host: Host) -> None:
    host.serve(WEB, slow=10, of=40)
    host.serve(CHAT, slow=0, of=40)
    report = host.second()
    assert part(of(report, "web"), LATENCY) == 0.2
    assert part(of(report, "chat"), LATENCY) == 1.0
    assert part(report.host, LATENCY) == pytest.approx(1 - 10 / 90 / 0.25, abs=0.001)


def test_with_an_objective_slow_is_what_misses_it() -> None:
    host = Host(slo_ms=200)
    host.watch.served(requests(WEB, [100] * 30 + [201] * 10), [""], np.zeros(40, np.bool_))
    assert part(of(host.second(), "web"), LATENCY) == 0.2


def test_what_is_older_than_the_window_does_not_count() -> None:
    host = Host(window_s=3)
    host.serve(WEB, slow=40, of=40)
    host.watch.took(cycle(WEB, 0, 100, 100, 1000))
    states = [of(host.second(), "web") for _ in range(4)]
    assert [grade.state for grade in states] == [State.CRITICAL] * 3 + [State.HEALTHY]
    assert part(states[-1], LATENCY) is None


def test_processes_of_one_service_are_graded_together_and_each() -> None:
    host, services = Host(), {WEB: "web", CHAT: "web"}
    host.watch.took(cycle(WEB, 0, 300, 300, 900))
    host.watch.took(cycle(CHAT, 0, 900, 900, 900))
    report = host.second(services=services)
    (worker,) = report.workers
    assert part(worker.grade, LOAD) == pytest.approx(1 - 600 / 1800 / 0.5, abs=0.01)
    assert [part(worker.processes[tgid], LOAD) for tgid in (WEB, CHAT)] == [0.0, 1.0]


def test_a_worker_without_a_name_has_one_all_the_same(host: Host) -> None:
    assert [each.service for each in host.second(services={WEB: ""}).workers] == [UNNAMED]


def test_a_worker_that_is_not_followed_has_no_load(host: Host) -> None:
    host.serve(WEB, slow=0, of=40)
    report = host.second(asleep(1000, CHAT))
    assert [each.name for each in of(report, "web").parts] == [LATENCY]


def test_followed_processes_that_serve_nothing_count_for_the_host_alone(host: Host) -> None:
    host.watch.took(cycle(9000, 0, 100, 100, 900))
    report = host.second(asleep(1000, 9000), services={})
    assert report.workers == ()
    assert report.host.state is State.CRITICAL


def test_nobody_followed_is_unknown(host: Host) -> None:
    assert host.second(np.empty(0, table("open_threads").dtype), services={}).host == Grade()


def gpu(uuid: str, used: float, *tgids: int, **changes: object) -> GpuReading:
    processes = tuple(GpuProcess(tgid, "worker", 1, 0.5) for tgid in tgids)
    values = {"memory_used": used, "memory_total": 100.0}
    return sample_gpu(uuid=uuid, values=values, processes=processes, taken_mono_ns=START, **changes)


def test_a_worker_has_the_gpus_that_it_uses(host: Host) -> None:
    gpus = [gpu("GPU-1", 98.0, WEB), gpu("GPU-2", 50.0)]
    report = host.second(gpus=gpus)
    assert part(of(report, "web"), GPU_MEMORY) == pytest.approx(0.4)
    assert part(of(report, "chat"), GPU_MEMORY) is None
    assert part(report.host, GPU_MEMORY) == pytest.approx(0.4)


def test_where_nobody_says_who_uses_a_gpu_all_of_them_count(host: Host) -> None:
    report = host.second(gpus=[gpu("GPU-1", 98.0), gpu("GPU-2", 50.0)])
    assert part(of(report, "web"), GPU_MEMORY) == part(of(report, "chat"), GPU_MEMORY) == pytest.approx(0.4)


def test_a_gpu_that_its_requests_name_is_the_workers(host: Host) -> None:
    host.watch.served(requests(CHAT, [1.0], device=1), ["", UUID], np.zeros(1, np.bool_))
    report = host.second(gpus=[gpu(UUID, 98.0), gpu("GPU-2", 50.0, WEB)])
    assert part(of(report, "chat"), GPU_MEMORY) == pytest.approx(0.4)
    assert part(of(report, "web"), GPU_MEMORY) == 1.0


def test_of_a_split_gpu_its_instances_count(host: Host) -> None:
    whole, instance = gpu("GPU-1", 99.9), gpu("MIG-1", 50.0, parent="GPU-1")
    assert part(host.second(gpus=[whole, instance]).host, GPU_MEMORY) == 1.0


def test_a_process_that_is_gone_leaves_nothing_behind(host: Host) -> None:
    host.serve(WEB, slow=40, of=40)
    host.second()
    host.second(asleep(2000, CHAT), services={CHAT: "chat"})
    report = host.second()
    assert part(of(report, "web"), LATENCY) is None
    assert of(report, "web").state is State.HEALTHY


def test_processes_beyond_the_bound_count_for_the_host(host: Host) -> None:
    many = range(10_000, 10_000 + MAX_PROCESSES + 23)
    for tgid in many:
        host.serve(tgid, slow=1, of=1)
    report = host.second(asleep(1000, *many), services=dict.fromkeys(many, "web"))
    assert (len(report.workers[0].processes), report.ungraded) == (MAX_PROCESSES, 23)
    assert "279 of 279 requests" in report.host.parts[-1].reason
    assert host.watch._done.shape == (MAX_PROCESSES + 1, watch.LONGEST_S, 4)
    # AND there is room again when they are gone
    host.second(asleep(2000, WEB), services={WEB: "web"})
    assert list(host.watch._rows) == [WEB]
