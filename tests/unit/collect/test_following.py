"""Who is followed, as long as something asks for it: against a kernel that only remembers."""

from __future__ import annotations

import numpy as np
import pytest

from tailspan.collect.following import OTLP, PEER, SOCKET, Following, Table
from tailspan.collect.targets import Reason, Target
from tailspan.errors import ProbeError
from tailspan.timeline.threads import Threads
from tailspan.wire.events import THREAD_EVENT, THREAD_STATE, ThreadEventKind

UNIT = Reason("unit", "a.service")
PORT = Reason("port", "8000")


class Kernel:
    """Follows one thread of each process that there is."""

    def __init__(self, *there: int) -> None:
        self.there = set(there)
        self.followed: set[int] = set()
        self.without_children: set[int] = set()
        self.failing = False

    def follow(self, tgids: list[int], only_threads: bool = False) -> Table:
        if self.failing:
            raise ProbeError("no")
        self.followed |= self.there & set(tgids)
        if only_threads:
            self.without_children |= set(tgids)
        states = np.zeros(len(self.followed), THREAD_STATE)
        states["tid"] = states["tgid"] = sorted(self.followed)
        return states

    def unfollow(self, tgids: list[int]) -> None:
        if self.failing:
            raise ProbeError("no")
        self.followed -= set(tgids)


class Scene:
    def __init__(self, *there: int) -> None:
        self.kernel, self.threads = Kernel(*there), Threads()
        self.following = Following(self.kernel, self.threads)

    def fit(self, *fits: tuple[int, Reason], rules: tuple[Reason, ...] = (UNIT, PORT), started: int = 1) -> None:
        self.following.fit({pid: Target(started, reason) for pid, reason in fits}, set(rules))

    def born(self, pid: int, parent: int, tid: int | None = None) -> None:
        self.kernel.followed.add(pid)
        self._event(ThreadEventKind.BORN, tid or pid, pid, parent)

    def ended(self, pid: int) -> None:
        self.kernel.followed.discard(pid)
        self._event(ThreadEventKind.EXIT, pid, pid, 0)
        self.following.forget_ended()

    def _event(self, kind: ThreadEventKind, tid: int, tgid: int, parent: int) -> None:
        events = np.zeros(1, THREAD_EVENT)
        events["kind"], events["tid"], events["tgid"], events["parent_tgid"] = kind, tid, tgid, parent
        self.threads.apply(events)
        self.following.born(events)

    def holds(self, *pids: int) -> None:
        """These and no others are followed, by everybody's account."""
        assert self.kernel.followed == self.threads.processes() == set(pids)
        assert self.following.counts().total() == len(pids)


def test_what_fits_is_followed_until_it_does_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    scene = Scene(23, 29)
    scene.fit((23, UNIT))
    scene.holds(23)
    scene.fit((23, UNIT), (29, PORT))
    scene.holds(23, 29)
    assert scene.following.counts() == {"unit": 1, "port": 1}
    scene.fit((29, PORT))
    scene.holds(29)
    assert caplog.messages == [
        "following pid 23 (unit a.service, 1 threads)",
        "following pid 29 (port 8000, 1 threads)",
        "no longer following pid 23 (unit a.service)",
    ]


def test_another_reason_keeps_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    scene = Scene(23)
    scene.fit((23, UNIT))
    scene.fit((23, PORT))
    scene.holds(23)
    assert scene.following.counts() == {"port": 1}
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("reason", [SOCKET, OTLP, PEER])
def test_who_has_connected_or_ended_a_wait_stays_when_no_rule_fits(reason: Reason) -> None:
    scene = Scene(23)
    scene.following.heard([23], reason)
    scene.fit((23, UNIT))
    scene.fit()
    scene.holds(23)
    assert scene.following.counts() == {reason.kind: 1}
    assert scene.kernel.without_children == ({23} if reason is PEER else set())


def test_a_wait_that_it_has_ended_does_not_hide_that_it_has_connected() -> None:
    scene = Scene(23)
    scene.following.heard([23], SOCKET)
    scene.following.heard([23], PEER)
    assert scene.following.counts() == {"socket": 1}


def test_a_peer_that_fits_a_rule_is_followed_anew_and_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    scene = Scene(23)
    scene.following.heard([23], PEER)
    for _ in range(3):
        scene.fit((23, UNIT))
    assert caplog.messages == [
        "following pid 23 (peer, 1 threads)",
        "following pid 23 (unit a.service, 1 threads)",
    ]


def test_one_that_is_not_there_is_said_once_and_tried_again_when_its_number_is_anothers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene()
    for _ in range(3):
        scene.fit((23, UNIT))
    assert caplog.messages == ["pid 23 (unit a.service) is not there to follow"]
    scene.kernel.there.add(23)
    scene.fit((23, UNIT), started=2)
    scene.holds(23)


def test_children_go_with_their_parent() -> None:
    scene = Scene(23, 29)
    scene.fit((23, UNIT), (29, UNIT))
    scene.born(31, parent=23)
    scene.born(37, parent=31)
    scene.born(41, parent=29)
    scene.born(29, parent=1, tid=43)  # a thread, no process
    assert scene.following.counts() == {"unit": 5}
    scene.fit((29, UNIT))
    assert scene.kernel.followed == scene.threads.processes() == {29, 41}


def test_a_child_with_a_reason_of_its_own_stays() -> None:
    scene = Scene(23, 31, 37)
    scene.fit((23, UNIT))
    scene.born(31, parent=23)
    scene.following.heard([31], SOCKET)
    scene.born(37, parent=23)
    scene.fit((23, UNIT), (37, PORT))
    scene.fit((37, PORT))
    scene.holds(31, 37)


def test_children_outlive_their_parent_as_long_as_there_is_its_rule() -> None:
    scene = Scene(23, 29)
    scene.fit((23, UNIT))
    scene.following.heard([29], SOCKET)
    scene.born(31, parent=23)
    scene.born(37, parent=29)
    scene.ended(23)
    scene.ended(29)
    scene.fit()
    scene.holds(31, 37)
    scene.fit(rules=(PORT,))
    scene.holds(37)


def test_a_child_that_is_heard_of_after_its_parent_was_let_go_of_goes_too() -> None:
    scene = Scene(23)
    scene.fit((23, UNIT))
    scene.fit()
    scene.born(31, parent=23)
    scene.born(37, parent=31)
    scene.holds()


def test_a_child_that_was_let_go_of_late_may_be_followed_again() -> None:
    scene = Scene(23)
    scene.fit((23, UNIT))
    scene.fit()
    scene.fit((23, UNIT))
    scene.born(31, parent=23)
    scene.holds(23, 31)


def test_a_process_whose_parents_number_is_anothers_now_is_not_its_child() -> None:
    scene = Scene(23)
    scene.fit((23, UNIT))
    scene.born(31, parent=23)
    scene.ended(23)
    scene.fit((23, PORT), started=2)
    scene.fit()
    scene.holds(31)


def test_numbers_that_were_given_anew_make_nobody_his_own_ancestor() -> None:
    scene = Scene(10)
    scene.fit((10, UNIT))
    scene.born(11, parent=10)
    scene.born(10, parent=11)  # the first 10 has ended, and nobody has looked since
    scene.fit()
    assert scene.kernel.followed == set()


def test_a_kernel_that_cannot_is_said_and_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(23, 29)
    scene.fit((23, UNIT))
    scene.kernel.failing = True
    scene.fit((29, UNIT))
    scene.following.heard([29], SOCKET)
    assert scene.kernel.followed == {23}
    scene.kernel.failing = False
    scene.fit((29, UNIT))
    scene.holds(29)
    assert any("cannot follow pids [29]: no" in message for message in caplog.messages)
