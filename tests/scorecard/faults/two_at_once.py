from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import Verdict
from tests.scorecard.fault import Expected, Fault, Who, process, thread
from tests.scorecard.scene import Scene

FLOOR_NS = 1_000_000
#: Whose ms come first is held against the verdict only where one stage took so many times the other's.
CLEARLY = 1.5


@dataclass(frozen=True)
class Both(Expected):
    """Each cause is in the ledger with its culprit, in the order of what the request's stages took."""

    whom: tuple[tuple[Cause, Who], ...] = ()

    def cause_is_right(self, verdict: Verdict) -> bool:
        ns = {part.cause: part.ns for part in verdict.ledger}
        waited, starved = ns.get(Cause.FUTEX, 0), ns.get(Cause.RUN_QUEUE, 0)
        locked, rest = stages_ns(verdict)
        in_order = (
            waited >= starved
            if locked > CLEARLY * rest
            else starved >= waited
            if rest > CLEARLY * locked
            else True
        )
        return min(waited, starved) >= FLOOR_NS and in_order

    def culprit_is_right(self, verdict: Verdict) -> bool:
        blamed = {part.cause: part.culprits for part in verdict.ledger}
        return all(
            any(who.is_it(culprit) and culprit.ns >= FLOOR_NS for culprit in blamed.get(cause, ()))
            for cause, who in self.whom
        )


def stages_ns(verdict: Verdict) -> tuple[int, int]:
    """In the span where it takes the lock, and in the rest, as the worker itself timed it."""
    locked = sum(step.end_ns - step.start_ns for step in verdict.waterfall if step.span == "lock")
    return locked, verdict.request.wall_ns - locked


def met_both(verdict: Verdict) -> bool:
    """Some requests find the lock free, or the CPU. Those that were freed together share a batch: up to twice."""
    locked, rest = stages_ns(verdict)
    normal = verdict.like.p50_ns
    return locked > 3 * FLOOR_NS and rest > 2 * normal


@contextmanager
def inject(scene: Scene) -> Iterator[Expected]:
    with scene.hog(scene.worker_cpu, threads=8) as pid, scene.switched("lock_holder"):
        whom = (Cause.RUN_QUEUE, process(pid)), (Cause.FUTEX, thread("lock-holder"))
        who = Who(" and ".join(who.words for _, who in whom), lambda culprit: False)
        yield Both(frozenset({Cause.RUN_QUEUE, Cause.FUTEX}), who, met_both, whom)


FAULT = Fault(
    name="two_at_once",
    what="a lock that another thread holds, and after it a neighbour on the worker's CPU",
    stage="lock",
    inject=inject,
    seconds=6,
)
