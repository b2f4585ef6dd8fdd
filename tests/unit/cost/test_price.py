"""What is answered about the price, one measurement at a time, and when what was shed."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import pytest

from tailspan.attribute.shedding import STEPS
from tailspan.config import Budget
from tailspan.cost import price as module
from tailspan.cost.ladder import Pace
from tailspan.cost.meter import Meter
from tailspan.cost.price import Intervals, Price
from tailspan.errors import ProbeError

SECOND = 1_000_000_000


class FakeAgent:
    def __init__(self) -> None:
        self.switched: list[bool] = []
        self.shed_now: frozenset[str] = frozenset()
        self.workers = {8100: 0}
        self.ran = {"on_switch": (0, 0)}
        self.refuses = ""

    def switch_probes(self, on: bool) -> None:
        if self.refuses:
            raise ProbeError(self.refuses)
        self.switched.append(on)

    def worker_cpu_ns(self) -> dict[int, int]:
        return self.workers

    def shed(self, steps: frozenset[str]) -> None:
        self.shed_now = steps

    def idle_steps(self) -> Collection[str]:
        return ()

    def run_times(self) -> dict[str, tuple[int, int]]:
        return self.ran


@pytest.fixture
def agent() -> FakeAgent:
    return FakeAgent()


def now(price: Price, **request: Any) -> Any:
    return price.answer({"do": "cost", **request})()


def test_the_answer_has_all_of_it(agent: FakeAgent) -> None:
    price = Price(agent, Budget(cpu=0.5), 30)
    price.meter.took({"cycle": 23})
    price.meter.lost("slice", 7)
    pending = price.answer({"do": "cost", "seconds": 0})
    agent.ran = {"on_switch": (2300, 23), "on_exec": (0, 0)}
    answer = pending()

    assert answer is not None and answer["ok"]
    assert answer["agent"]["rss"] <= answer["agent"]["peak_rss"]
    assert answer["agent"]["threads"] >= 1 and answer["agent"]["files"] >= 3
    assert answer["records_per_s"]["cycle"] > 0
    assert answer["lost"] == {"60s": {"slice": 7}, "total": {"slice": 7}}
    assert [(row["program"], row["ns_per_run"]) for row in answer["bpf"]["programs"]] == [("on_switch", 100.0)]
    assert answer["budget"] == {"cpu": 0.5, "rss_mib": 256}
    assert (answer["shed"], answer["measured"], answer["measuring"]) == ([], None, False)
    # without statistics of the kernel there is nothing to say of programs
    agent.ran = {"on_switch": (2300, 23)}
    assert now(price)["bpf"] is None


@pytest.mark.parametrize("seconds", [0, -1, 15.9, 600.1, "60", None, True, float("nan")])
def test_a_time_that_is_none_is_refused(agent: FakeAgent, seconds: object) -> None:
    price = Price(agent, Budget(), 30)
    assert now(price, measure=seconds) == {"ok": False, "error": "measure: seconds, 16 to 600"}
    assert not agent.switched


@pytest.mark.parametrize("seconds", [-1, 61, "3", True])
def test_a_look_that_is_too_long_is_refused(agent: FakeAgent, seconds: object) -> None:
    assert not now(Price(agent, Budget(), 30), seconds=seconds)["ok"]


def test_one_measurement_at_a_time_and_none_without_a_worker(agent: FakeAgent) -> None:
    price = Price(agent, Budget(), 30)
    agent.workers = {}
    assert "no worker is followed" in now(price, measure=20)["error"]
    agent.workers = {8100: 0}
    first = price.answer({"do": "cost", "measure": 20})
    assert first() is None
    assert "one at a time" in now(price, measure=20)["error"]
    assert now(price)["measuring"]
    # WHEN its asker goes, THEN the next may ask
    first.gone()  # type: ignore[attr-defined]
    assert not now(price)["measuring"]
    assert price.answer({"do": "cost", "measure": 20})() is None
    price.stop()
    assert not agent.switched or agent.switched[-1]


def test_probes_that_cannot_be_switched_end_it_with_the_reason(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailspan.cost.trial.TURN_S", 0.001)
    price = Price(agent, Budget(), 30)
    pending = price.answer({"do": "cost", "measure": 20})
    agent.refuses = "the kernel refuses"
    while pending() is None:
        price.poll()
    assert pending() == {"ok": False, "error": "the kernel refuses"}
    assert price.measured is None and price.take_measured() is None


def test_what_is_shed_is_told_to_the_agent_and_when_is_kept(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module.time, "monotonic_ns", lambda: int(clock[0] * SECOND))
    monkeypatch.setattr(Meter, "cpu", lambda self, seconds: 0.5)
    price = Price(agent, Budget(cpu=0.1), 30, Pace(above_s=2))
    for _ in range(5):
        clock[0] += 1
        price.turn()
    names = [step.name for step in STEPS]
    assert agent.shed_now == {names[0]}
    clock[0] += 3
    price.turn()
    assert agent.shed_now == set(names[:2])
    assert [step["step"] for step in now(price)["shed"]] == names[:2]

    since = {key: intervals[0][0] for key, intervals in price.shed_when(int(clock[0] * SECOND)).items()}
    assert list(since) == [f"{name}/cpu" for name in names[:2]]
    price.change(Budget(cpu=0))
    assert agent.shed_now == set()
    clock[0] += 7
    kept = price.shed_when(int(clock[0] * SECOND))
    assert {key: intervals[0][0] for key, intervals in kept.items()} == since
    assert all(intervals[0][1] == int((clock[0] - 7) * SECOND) for intervals in kept.values())
    assert price.shed_when(int((clock[0] + 60) * SECOND)) == {}
    assert price.changes == {"shed": 2, "restored": 2}
    assert "records of system calls are shed: the agent is above its budget (cpu)" in caplog.text
    assert "CUDA calls are back" in caplog.text


def test_intervals_reach_back_as_far_as_the_window() -> None:
    intervals = Intervals(10)
    intervals.set(True, 5)
    intervals.set(True, 6)
    assert intervals.recent(9) == [[5, 9]]
    intervals.set(False, 12)
    intervals.set(False, 13)
    intervals.set(True, 20)
    assert intervals.recent(21) == [[5, 12], [20, 21]]
    assert intervals.recent(23) == [[20, 23]]
