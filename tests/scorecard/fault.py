"""What a fault is, and what a right verdict about it says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import Culprit, CulpritKind, Verdict
from tests.discovery import faults_of
from tests.scorecard.load import CONNECTIONS, THINK_S
from tests.scorecard.scene import Scene
from tests.scorecard.truth import Truth


@dataclass(frozen=True)
class Who:
    """Words for the report, and whether a culprit is the one that was injected."""

    words: str
    is_it: Callable[[Culprit], bool]

    def __or__(self, other: Who) -> Who:
        return Who(f"{self.words} or {other.words}", lambda culprit: self.is_it(culprit) or other.is_it(culprit))


def process(pid: int) -> Who:
    return Who(f"pid {pid}", lambda culprit: culprit.pid == pid)


def kind(wanted: CulpritKind) -> Who:
    return Who(f"kind {wanted}", lambda culprit: culprit.kind is wanted)


def thread(comm: str) -> Who:
    """A thread of the worker's, by its name."""
    return Who(f"thread {comm}", lambda culprit: culprit.comm == comm)


def kernel_thread(prefix: str) -> Who:
    return Who(f"kernel thread {prefix}", lambda culprit: culprit.comm.startswith(prefix))


def labelled(label: str) -> Who:
    return Who(label, lambda culprit: culprit.label == label)


def peer(address: str) -> Who:
    return Who(f"peer {address}", lambda culprit: culprit.label == address)


@dataclass(frozen=True)
class Expected:
    """What is right about the slow requests of one stretch. ``causes``: usually one.

    ``who``: None where nobody need be named. ``concerns``: whether a slow request has met the fault at all, told
    by something else than what its verdict names; those that it does not hold for are not scored.
    """

    causes: frozenset[Cause]
    who: Who | None
    concerns: Callable[[Verdict], bool] = lambda verdict: True

    @property
    def words(self) -> str:
        return self.who.words if self.who else "anybody"

    def cause_is_right(self, verdict: Verdict) -> bool:
        return verdict.cause in self.causes

    def culprit_is_right(self, verdict: Verdict) -> bool:
        return self.who is None or (verdict.culprit is not None and self.who.is_it(verdict.culprit))


@dataclass(frozen=True)
class Fault:
    """``inject``: makes the fault on a scene, as long as its context is open, and knows who is to blame."""

    name: str
    what: str  #: one line
    stage: str  #: of the worker: the load asks for ``/v1/infer/<stage>``
    inject: Callable[[Scene], AbstractContextManager[Expected]]
    truth: Truth | None = None  #: what the kernel's own counters say of it
    seconds: float = 2.5  #: of one stretch
    think_s: tuple[float, float] = THINK_S  #: of the load between two requests of a connection, at least and most
    connections: int = CONNECTIONS  #: of the load; one, where requests would get in each other's way
    fresh: bool = False  #: every request comes on a connection of its own
    short: bool = False  #: part of the short form


def blame(cause: Cause | Iterable[Cause], who: Who | None) -> Expected:
    return Expected(frozenset([cause] if isinstance(cause, Cause) else cause), who)


def discover() -> dict[str, Fault]:
    """Every fault of the folder, by name."""
    from tests.scorecard import faults

    return faults_of(faults)
