"""The scorecard as text and as JSON, and which goals it misses."""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.scorecard.score import Card, Score, percentile


@dataclass(frozen=True)
class Goals:
    slow: int  #: requests of each fault, at least
    share: float  #: of them cause and culprit right, over all faults
    share_of_each: float  #: and of each fault
    false_blame: float
    unknown_p50: float
    unknown_p99: float
    verdict_p95_s: float


FULL = Goals(20, 0.95, 0.85, 0.02, 0.01, 0.05, 2.0)
#: Few requests of few faults, on a machine that others may use: a single one is several percent.
SHORT = Goals(8, 0.85, 0.60, 0.05, 0.01, 0.10, 2.0)

_EXAMPLES = 2


def missed(card: Card, goals: Goals) -> list[str]:
    """In words; empty when all goals are met."""
    found = [
        f"{score.fault.name}: {score.slow} slow requests, {goals.slow} are needed"
        for score in card.scores
        if score.slow < goals.slow
    ]
    found += [
        f"{score.fault.name}: {score.share:.0%} right, not {goals.share_of_each:.0%}"
        for score in card.scores
        if score.share < goals.share_of_each
    ]
    p50, p99 = percentile(card.unknown, 50), percentile(card.unknown, 99)
    checks = (
        (card.share < goals.share, f"{card.share:.1%} right over all, not {goals.share:.0%}"),
        (card.false_blame > goals.false_blame, f"{card.false_blame:.1%} of healthy requests accuse somebody"),
        (p50 >= goals.unknown_p50, f"median unknown {p50:.2%}, not below {goals.unknown_p50:.0%}"),
        (p99 >= goals.unknown_p99, f"p99 unknown {p99:.2%}, not below {goals.unknown_p99:.0%}"),
        (card.verdict_p95_s > goals.verdict_p95_s, f"p95 of the verdicts after {card.verdict_p95_s:.2f} s"),
        (card.errors > 0, f"{card.errors} requests failed"),
    )
    return found + [words for is_missed, words in checks if is_missed]


def text(card: Card, goals: Goals) -> str:
    failures = missed(card, goals)
    parts = [
        _table(
            ["fault", "healthy ms", "slow ms", "asked", "slow", "cause", "culprit", "both", "expected"],
            [_row(score) for score in card.scores],
        ),
        "Expected cause (down) and the one that was named (across), slow requests:\n" + _confusion(card),
        _truth(card),
        _figures(card),
        _examples(card),
        "Goals: " + ("all met." if not failures else "MISSED\n" + "\n".join(f"  {each}" for each in failures)),
    ]
    return "\n\n".join(part for part in parts if part)


def _row(score: Score) -> list[str]:
    slow = max(1, score.slow)
    return [
        score.fault.name,
        f"{score.healthy_ms:.1f}",
        f"{score.faulted_ms:.1f}",
        str(score.asked),
        f"{score.slow}" + (f" (+{score.spared})" if score.spared else ""),
        f"{score.cause_right / slow:.0%}",
        f"{score.culprit_right / slow:.0%}",
        f"{score.share:.0%}",
        f"{score.expected_causes}: {score.expected_culprit}",
    ]


def _confusion(card: Card) -> str:
    rows: dict[str, Counter[str]] = {}
    for score in card.scores:
        rows.setdefault(score.expected_causes, Counter()).update(score.named)
    named = sorted({cause for counts in rows.values() for cause in counts})
    return _table(
        ["", *named], [[name, *(str(rows[name][cause] or ".") for cause in named)] for name in sorted(rows)]
    )


def _truth(card: Card) -> str:
    rows = []
    for score in card.scores:
        truth = score.fault.truth
        if truth and score.kernel is not None and score.told is not None:
            off = f"{(score.told - score.kernel) / score.kernel:+.1%}" if score.kernel else "-"
            rows.append(
                [score.fault.name, truth.words, f"{score.kernel:.0f}", f"{score.told:.0f}", truth.unit, off]
            )
    return (rows and _table(["fault", "ground truth", "kernel", "tailspan", "", "difference"], rows)) or ""


def _figures(card: Card) -> str:
    slow = sum(score.slow for score in card.scores)
    p50, p99 = percentile(card.unknown, 50), percentile(card.unknown, 99)
    lost = ", ".join(f"{name} {count}" for name, count in card.lost.items()) or "none"
    return "\n".join(
        (
            f"cause and culprit right    {card.share:.1%} of {slow} slow requests",
            f"false blame                {card.false_blame:.2%} of {card.healthy} healthy requests",
            f"unknown                    median {p50:.2%}, p99 {p99:.2%} of a slow request's time",
            f"request end to verdict     p50 {card.verdict_p50_s:.2f} s, p95 {card.verdict_p95_s:.2f} s",
            f"records lost               {lost}",
            f"others on the worker's CPU {card.others:.0%} of the healthy time: what they did is no fault's doing",
        )
    )


def _examples(card: Card) -> str:
    lines = []
    for score in card.scores:
        if score.wrong:
            named = ", ".join(f"{label} {count}" for label, count in score.culprits.most_common(4))
            lines.append(f"{score.fault.name}: {len(score.wrong)} wrong (culprits: {named})")
            lines += [f"    {sentence}" for sentence in score.wrong[:_EXAMPLES]]
    lines += [f"healthy, accused: {sentence}" for sentence in card.accused[:5]]
    return "\n".join(textwrap.fill(line, 150, subsequent_indent="      ") for line in lines)


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [
            cell.ljust(width) if not cell[:1].isdigit() else cell.rjust(width)
            for cell, width in zip(row[1:], widths[1:], strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_json(card: Card, goals: Goals) -> dict[str, Any]:
    return {
        "faults": {
            score.fault.name: {
                "what": score.fault.what,
                "expected_cause": score.expected_causes,
                "expected_culprit": score.expected_culprit,
                "healthy_p50_ms": round(score.healthy_ms, 3),
                "slow_p50_ms": round(score.faulted_ms, 3),
                "asked": score.asked,
                "slow": score.slow,
                "not_concerned": score.spared,
                "cause_right": score.cause_right,
                "culprit_right": score.culprit_right,
                "both_right": score.both_right,
                "named": dict(score.named),
                "wrong": score.wrong,
                "truth": score.fault.truth
                and {
                    "of": score.fault.truth.words,
                    "unit": score.fault.truth.unit,
                    "kernel": score.kernel,
                    "tailspan": score.told,
                },
            }
            for score in card.scores
        },
        "share_right": card.share,
        "healthy": card.healthy,
        "false_blame": card.false_blame,
        "accused": card.accused,
        "unknown_p50": percentile(card.unknown, 50),
        "unknown_p99": percentile(card.unknown, 99),
        "verdict_p50_s": card.verdict_p50_s,
        "verdict_p95_s": card.verdict_p95_s,
        "errors": card.errors,
        "lost": card.lost,
        "others_on_its_cpu": card.others,
        "missed": missed(card, goals),
    }
