"""Turns of judging: one at a time, in slices, and nothing that comes meanwhile is lost or judged twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from tailspan import judging as module
from tailspan.judging import LATE_SLICE_S, MAX_WAITING, Judging
from tailspan.pipeline import SLICE_S, Judged, Moment, Pipeline
from tailspan.timeline.evidence import Meta, Table
from tailspan.timeline.inbox import Received
from tailspan.timeline.tables import LOSS
from tailspan.wire.spans import Drops
from tests.builders import table

MOMENT = Moment(table("open_threads", rows=0), Meta(), lambda cgroup_id: "")
STEPS = 400


class Steps(Pipeline):
    """Takes so many steps to judge whatever there is."""

    def __init__(self) -> None:
        self.inbox = SimpleNamespace(dropped=Counter(), forget=self._forget)  # type: ignore[assignment]
        self.turns: list[list[Received]] = []
        self.steps = 0
        self.forgotten: list[tuple[int, int]] = []  # tgid, and in which turn
        self.fails = False

    def judging(self, received: list[Received], moment: Moment) -> Iterator[Judged | None]:
        self.turns.append(received)
        for _ in range(STEPS):
            self.steps += 1
            yield None
        if self.fails:
            raise ValueError("what a worker sent")
        yield turn_of(len(received))

    def lose(self, losses: Table) -> None:
        pass

    def _forget(self, tgid: int) -> None:
        self.forgotten.append((tgid, len(self.turns)))


def turn_of(size: int) -> Judged:
    nothing = np.empty(0, np.int64)
    return Judged(np.empty(size), [], nothing.astype(bool), nothing, nothing, nothing, None, {})  # type: ignore


def messages(number: int, tgid: int = 1) -> list[Received]:
    return [Received(tgid, Drops(1), at) for at in range(number)]


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Each look at the clock is about a ms of CPU time after the last."""
    ticking = count()
    monkeypatch.setattr(module, "time", SimpleNamespace(thread_time=lambda: next(ticking) / 1024))
    return Steps()


@pytest.fixture
def settled() -> list[Received]:
    return []


@pytest.fixture
def published() -> list[int]:
    return []


@pytest.fixture
def judging(pipeline: Steps, settled: list[Received], published: list[int]) -> Judging:
    def settle(received: Iterable[Received]) -> Table:
        settled.extend(received)
        return np.empty(0, LOSS)

    return Judging(pipeline, lambda judged: published.append(len(judged.requests)), settle)


def test_a_turn_goes_on_in_slices_and_what_comes_meanwhile_waits_for_its_own(
    judging: Judging, pipeline: Steps, settled: list[Received], published: list[int]
) -> None:
    first, second, others = messages(3), messages(5), messages(7, tgid=2)
    judging.take(first, of_socket=True)
    assert judging.waits and judging.is_due()
    judging.begin(MOMENT)
    judging.go_on()
    judging.take(second, of_socket=True)
    judging.take(others, of_socket=False)

    assert judging.is_on and judging.waits and not published and not settled
    assert pipeline.steps <= SLICE_S * 1024
    judging.finish()
    assert not judging.is_on and published == [3] and settled == first
    assert judging.is_due()
    judging.begin(MOMENT)
    judging.finish()
    assert not judging.waits and published == [3, 12] and settled == first + second
    assert pipeline.turns == [first, second + others]


def test_a_turn_that_is_late_hurries_and_still_lets_go_in_between(judging: Judging, pipeline: Steps) -> None:
    judging.begin(MOMENT)
    judging.go_on()
    slow = pipeline.steps
    assert not judging.is_due()
    judging.go_on()
    fast = pipeline.steps - slow
    assert 5 * slow < fast <= LATE_SLICE_S * 1024 and judging.is_on

    # AND the one after it does not
    judging.finish()
    assert judging.is_due()
    judging.begin(MOMENT)
    before = pipeline.steps
    judging.go_on()
    assert pipeline.steps - before == slow


def test_a_process_is_forgotten_after_the_turn_with_its_last_words(judging: Judging, pipeline: Steps) -> None:
    judging.gone({9})
    assert pipeline.forgotten == [(9, 0)]  # it never said anything
    judging.take(messages(1), of_socket=True)
    judging.begin(MOMENT)
    judging.take(messages(1, tgid=7), of_socket=True)
    judging.gone({7})
    judging.finish()
    assert pipeline.forgotten == [(9, 0)]
    judging.begin(MOMENT)
    judging.finish()
    assert pipeline.forgotten == [(9, 0), (7, 2)]


def test_beyond_what_may_wait_messages_are_counted_and_are_settled_all_the_same(
    judging: Judging, pipeline: Steps, settled: list[Received], published: list[int]
) -> None:
    judging.take(messages(MAX_WAITING - 2), of_socket=True)
    judging.take(messages(5), of_socket=True)
    assert pipeline.inbox.dropped == {"backlog": 3}
    judging.begin(MOMENT)
    judging.finish()
    assert published == [MAX_WAITING] and len(settled) == MAX_WAITING + 3


def test_a_turn_that_fails_is_counted_and_the_next_one_is_judged(
    judging: Judging, pipeline: Steps, settled: list[Received], published: list[int]
) -> None:
    pipeline.fails = True
    judging.take(messages(3), of_socket=True)
    judging.begin(MOMENT)
    judging.finish()
    assert pipeline.inbox.dropped == {"judge_failed": 3} and len(settled) == 3 and not published
    pipeline.fails = False
    judging.take(messages(2), of_socket=True)
    judging.begin(MOMENT)
    judging.finish()
    assert published == [2]
