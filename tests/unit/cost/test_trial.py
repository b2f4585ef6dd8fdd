"""The turns of a measurement, on a clock that is set: what is switched when, and whose requests count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tailspan.cost import trial as module
from tailspan.cost.trial import MARGIN_S, TURN_S, Trial
from tailspan.errors import ProbeError
from tailspan.timeline.evidence import Table
from tailspan.timeline.tables import REQUEST
from tests.conftest import eventually


class Scene:
    """Requests of 5 ms, one each 10 ms; 8 ms with probes on. All of the time is CPU time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 40, silent: bool = False) -> None:
        self.now_ns, self.switched, self.cpu_ns, self.silent = 10**12, [], 0, silent
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now_ns / 1e9)
        monkeypatch.setattr(module.time, "monotonic_ns", lambda: self.now_ns)
        self.is_on = True
        self.trial = Trial(seconds, 23, self.switch, lambda: {1: self.cpu_ns})

    def switch(self, on: bool) -> None:
        assert on is not self.is_on
        self.is_on = on
        self.switched.append((self.now_ns, on))
        self.now_ns += 30_000_000  # it takes a while

    def run(self, seconds: float) -> dict[str, Any] | None:
        until = self.now_ns + int(seconds * 1e9)
        while self.now_ns < until:
            if not self.silent:
                wall_ns = 8_000_000 if self.is_on else 5_000_000
                self.trial.served(request(self.now_ns, self.now_ns + wall_ns))
                self.cpu_ns += wall_ns
            self.now_ns += 10_000_000
            if (answer := self.trial.poll()) is not None:
                return answer
        return None


def request(start: int, end: int) -> Table:
    rows = np.zeros(1, REQUEST)
    rows["start_mono_ns"], rows["end_mono_ns"] = start, end
    return rows


def test_both_kinds_come_in_pairs_of_random_order_and_probes_are_on_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch)
    assert scene.run(10 * 2 * TURN_S + 2) is None  # it is being compared, on another thread
    assert scene.is_on
    found: list[dict[str, Any]] = []
    eventually(lambda: found.extend(filter(None, [scene.trial.poll()])) or found, "it is compared")
    (answer,) = found

    assert answer["ok"]
    assert (answer["turns"], answer["pairs"]) == (20, 10)
    order = scene.trial._order
    assert all(a is not b for a, b in zip(order[::2], order[1::2], strict=True))
    assert len({tuple(order[at : at + 2]) for at in range(0, 20, 2)}) == 2
    # the edges of a turn do not count
    most = 10 * (TURN_S - MARGIN_S) * 100
    assert 0.9 * most < answer["requests"]["on"] < most + 10
    p50, cpu = answer["differences"]["p50"], answer["differences"]["cpu"]
    assert p50["estimate_s"] == pytest.approx(0.003)
    assert (p50["told_apart"], p50["on_s"]) == (True, pytest.approx(0.008))
    assert cpu["estimate_s"] == pytest.approx(0.003, rel=0.05)


def test_a_request_that_reaches_out_of_its_turn_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.run(TURN_S / 2)
    (turn,) = scene.trial._turns
    before = turn.inside, turn.served
    scene.trial.served(request(turn.start_mono_ns - 1, scene.now_ns))
    assert (turn.inside, turn.served) == (before[0], before[1] + 1)
    scene.trial.served(request(turn.start_mono_ns - 9, turn.start_mono_ns - 1))
    assert turn.served == before[1] + 1


def test_without_requests_it_gives_up_early_with_probes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, seconds=600, silent=True)
    answer = scene.run(30)
    assert answer is not None
    assert not answer["ok"]
    assert answer["error"].startswith("no request has come for 12 s: too little traffic")
    assert scene.is_on


def test_many_requests_of_a_turn_are_kept_by_lot(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, seconds=600)
    scene.run(TURN_S / 2)
    (turn,) = scene.trial._turns
    for first in range(0, 20_000, 100):
        rows = np.zeros(100, REQUEST)
        rows["start_mono_ns"] = turn.start_mono_ns
        rows["end_mono_ns"] = turn.start_mono_ns + np.arange(first, first + 100)
        scene.trial.served(rows)
    assert turn.inside >= 20_000
    assert len(turn.walls) == scene.trial._cap < 1000
    # as many of the first half as of the second
    assert 0.35 < (turn.walls < 10_000e-9).mean() < 0.65


def test_ended_early_it_leaves_probes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    while scene.is_on:
        scene.run(0.01)
    scene.trial.stop()
    assert scene.is_on
    scene.trial.stop()


def test_probes_that_cannot_be_switched_are_told_by_who_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    def switch(on: bool) -> None:
        raise ProbeError("refused")

    scene = Scene(monkeypatch)
    scene.trial._switch = switch
    with pytest.raises(ProbeError, match="refused"):
        scene.run(2 * 2 * TURN_S)
