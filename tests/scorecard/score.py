"""From verdicts and stretches to scores. Pure: nothing here runs or reads anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import Verdict
from tailspan.export.semconv import cause_name
from tailspan.timeline.evidence import Table
from tests.scorecard.fault import Expected, Fault
from tests.scorecard.load import Asked
from tests.scorecard.truth import Seen

#: What a fault leaves behind, such as full queues, is over so long after it.
AFTER_NS = 700_000_000


class When(StrEnum):
    FAULTED = "faulted"
    HEALTHY = "healthy"
    NEITHER = "neither"  #: while a fault is set up or taken down, or what it left behind is worked off


@dataclass(frozen=True)
class Stretch:
    """A fault was being set up from ``before_ns``, was there in ``start_ns..end_ns``, was gone at ``after_ns``."""

    before_ns: int
    start_ns: int
    end_ns: int
    after_ns: int
    expected: Expected
    counted: float = 0.0  #: by the counter of the fault's truth


def when(asked: Asked, stretches: Iterable[Stretch]) -> tuple[When, Stretch | None]:
    """The stretch that it overlaps."""
    found: tuple[When, Stretch | None] = When.HEALTHY, None
    for stretch in stretches:
        if asked.answered_mono_ns > stretch.start_ns and asked.sent_mono_ns < stretch.end_ns:
            return When.FAULTED, stretch
        if asked.answered_mono_ns > stretch.before_ns and asked.sent_mono_ns < stretch.after_ns + AFTER_NS:
            found = When.NEITHER, None
    return found


@dataclass
class Score:
    """Of one fault."""

    fault: Fault
    expected_causes: str
    expected_culprit: str
    healthy_ms: float = 0.0  #: median of its stage
    faulted_ms: float = 0.0  #: median of the slow ones
    asked: int = 0  #: in faulted stretches
    slow: int = 0  #: of those, stored, and concerned
    spared: int = 0  #: slow and stored, and not concerned
    cause_right: int = 0
    culprit_right: int = 0
    both_right: int = 0
    named: Counter[str] = field(default_factory=Counter)  #: cause -> requests
    culprits: Counter[str] = field(default_factory=Counter)  #: of those whose verdict is wrong
    kernel: float | None = None
    told: float | None = None
    wrong: list[str] = field(default_factory=list)  #: sentences

    @property
    def share(self) -> float:
        return self.both_right / self.slow if self.slow else 0.0


@dataclass
class Card:
    scores: list[Score]
    healthy: int
    accused: list[str]  #: sentences about healthy requests
    unknown: list[float]  #: shares of slow requests in faulted stretches, in order
    verdict_p50_s: float
    verdict_p95_s: float
    others: float  #: share of the worker's CPU that others took while it was healthy
    errors: int  #: requests without a good answer
    lost: dict[str, int]  #: records and messages, by class

    @property
    def share(self) -> float:
        return sum(score.both_right for score in self.scores) / max(1, sum(score.slow for score in self.scores))

    @property
    def false_blame(self) -> float:
        return len(self.accused) / max(1, self.healthy)


def score(
    fault: Fault,
    stretches: Sequence[Stretch],
    asked: Sequence[Asked],
    verdicts: dict[str, Verdict],
    sockets: Table,
) -> Score:
    """``asked``: requests for the fault's stage, healthy or in its own stretches; ``verdicts``: by request id."""
    causes = sorted({cause_name(cause) for stretch in stretches for cause in stretch.expected.causes})
    culprits = sorted({stretch.expected.words for stretch in stretches})
    result = Score(fault, " or ".join(causes), culprits[0] if culprits else "")
    healthy, slow_ms = [], []
    for request in asked:
        phase, stretch = when(request, stretches)
        if phase is When.HEALTHY:
            healthy.append(request.ms)
        if stretch is None:
            continue
        result.asked += 1
        verdict = verdicts.get(request.request_id)
        if verdict is None:
            continue
        if not stretch.expected.concerns(verdict):
            result.spared += 1
            continue
        slow_ms.append(request.ms)
        _count(result, stretch.expected, verdict)
    result.healthy_ms, result.faulted_ms = percentile(healthy, 50), percentile(slow_ms, 50)
    if fault.truth:
        windows = [(stretch.start_ns, stretch.end_ns) for stretch in stretches]
        near = [each for each in asked if when(each, stretches)[0] is not When.HEALTHY]
        pairs = [(each, verdicts[each.request_id]) for each in near if each.request_id in verdicts]
        counted = sum(stretch.counted for stretch in stretches)
        result.kernel, result.told = fault.truth.compare(Seen(windows, counted, pairs, sockets))
    return result


def _count(result: Score, expected: Expected, verdict: Verdict) -> None:
    cause, culprit = expected.cause_is_right(verdict), expected.culprit_is_right(verdict)
    result.slow += 1
    result.cause_right += cause
    result.culprit_right += culprit
    result.both_right += cause and culprit
    result.named[cause_name(verdict.cause) if verdict.cause is not None else str(verdict.outcome)] += 1
    if not (cause and culprit):
        result.culprits[verdict.culprit.label if verdict.culprit else "nobody"] += 1
        result.wrong.append(verdict.sentence)


def unknown_share(verdict: Verdict) -> float:
    return sum(part.ns for part in verdict.ledger if part.cause is Cause.UNKNOWN) / max(1, verdict.request.wall_ns)


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that ``percent`` % of them do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0.0
