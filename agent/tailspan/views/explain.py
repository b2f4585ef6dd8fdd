"""One request: the sentence, the ledger, the waterfall, and how far all of it can be trusted."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from tailspan.attribute.causes import CAUSES, Cause
from tailspan.attribute.culprits import place
from tailspan.attribute.verdict import Alternative, Culprit, CulpritKind, Hop, Outcome, Part, Step, Verdict
from tailspan.export.semconv import cause_name
from tailspan.views.table import (
    GAP,
    MIN_WIDTH,
    Style,
    bar,
    clip,
    duration,
    grid,
    ms,
    paint,
    percent,
    pieces,
    plain,
    stretch,
    wrap,
)

#: Lines of the waterfall; beyond it the shortest steps are folded.
MAX_LINES = 25
_SHOWN_CULPRITS = 3


def as_text(verdict: Verdict, width: int = 80, colour: bool = False) -> str:
    """Lines of at most ``width`` characters, without a newline at the end."""
    width = max(width, MIN_WIDTH)
    blocks = [
        _headline(verdict, width, colour) + _sentence(verdict, width, colour),
        _ledger(verdict, width, colour),
        _waterfall(verdict, width, colour),
        [*_trust(verdict, width), *_reasoning(verdict, width)],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Plain JSON types, in an order that never changes. The ledger's ``ns`` sum to ``request.wall_ns``."""
    return {
        "request": asdict(verdict.request),
        "like": asdict(verdict.like),
        "verdict": {
            "outcome": str(verdict.outcome),
            "cause": cause_name(verdict.cause) if verdict.cause is not None else None,
            "culprit": _culprit_json(verdict.culprit),
            "sentence": verdict.sentence,
            "confidence": verdict.confidence,
            "excess_ns": verdict.excess_ns,
            "alternatives": [_alternative_json(alternative) for alternative in verdict.alternatives],
            "ruled_out": list(verdict.ruled_out),
            "chain": [_hop_json(hop) for hop in verdict.chain],
            "facts": list(verdict.facts),
        },
        "ledger": [
            {
                "cause": cause_name(part.cause),
                "ns": part.ns,
                "normal_ns": part.normal_ns,
                "culprits": [_culprit_json(culprit) for culprit in part.culprits],
            }
            for part in verdict.ledger
        ],
        "waterfall": [
            {
                "start_ns": step.start_ns,
                "end_ns": step.end_ns,
                "span": step.span,
                "tid": step.tid,
                "comm": step.comm,
                "cause": cause_name(step.cause),
                "note": step.note,
                "chain": [_hop_json(hop) for hop in step.chain],
            }
            for step in verdict.waterfall
        ],
        "trust": {
            **asdict(verdict.trust),
            "notes": list(verdict.trust.notes),
            "shed": [asdict(one) for one in verdict.trust.shed],
        },
    }


def _culprit_json(culprit: Culprit | None) -> dict[str, Any] | None:
    if culprit is None:
        return None
    return {**asdict(culprit), "kind": str(culprit.kind), "identity": dict(culprit.identity)}


def _hop_json(hop: Hop) -> dict[str, Any]:
    return {**asdict(hop), "cause": cause_name(hop.cause)}


def _alternative_json(alternative: Alternative) -> dict[str, Any]:
    return {
        "cause": cause_name(alternative.cause),
        "culprit": _culprit_json(alternative.culprit),
        "excess_ns": alternative.excess_ns,
        "why_not": alternative.why_not,
    }


def _headline(verdict: Verdict, width: int, colour: bool) -> list[str]:
    request, like = verdict.request, verdict.like
    model = f"model={request.model}" if request.model else ""
    if model and request.model_version:
        model += f" v{request.model_version.removeprefix('v')}"
    batch = f"batch {request.batch_size} of {request.batch_capacity}" if request.batch_id else ""
    parts = [
        f"request {request.request_id or request.span_id}",
        f"trace {request.trace_id}",
        request.name,
        model,
        batch,
        f"on {request.provider.removesuffix('ExecutionProvider')}" if request.provider else "",
        "" if request.status in ("", "ok") else f"status {request.status}",
        duration(request.wall_ns),
        f"(like requests: p50 {duration(like.p50_ns)}, n={like.n})" if like.n else "(no like requests)",
    ]
    lines = pieces([clip(plain(part), width) for part in parts], width)
    return [paint(line, Style.BOLD, colour) for line in lines]


def _sentence(verdict: Verdict, width: int, colour: bool) -> list[str]:
    lines = wrap(plain(verdict.sentence), width)
    style = {Outcome.NAMED: Style.BAD, Outcome.NORMAL: Style.GOOD}.get(verdict.outcome)
    return [paint(line, style, colour) for line in lines] if style else lines


def _ledger(verdict: Verdict, width: int, colour: bool) -> list[str]:
    wall = verdict.request.wall_ns
    cells = min(max(width - 68, 6), 24)
    lines = []
    for part in verdict.ledger:
        label, filled = CAUSES[part.cause].label, bar(part.ns, wall, cells)
        head = f"{GAP}{label:<15}  {ms(part.ns):>8} ms  {percent(part.ns, wall):>7}  {filled:<{cells}}"
        indent = " " * len(head)
        room = width - len(head) - len(GAP)
        beside = pieces(_culprits(part, room), room) or [""]
        if part.cause is verdict.cause:
            head = paint(head, Style.BAD if verdict.outcome is Outcome.NAMED else Style.BOLD, colour)
        lines.append((head + GAP + beside[0]).rstrip())
        lines += [indent + GAP + more for more in beside[1:]]
    return lines


def _culprits(part: Part, width: int) -> list[str]:
    shown = [_culprit(culprit, width) for culprit in part.culprits[:_SHOWN_CULPRITS]]
    more = len(part.culprits) - len(shown)
    return [*shown, f"+{more} more"] if more else shown


def _culprit(culprit: Culprit, width: int) -> str:
    """Also where it runs, if there is room."""
    alone, where = f"{ms(culprit.ns)} {plain(culprit.label)}", plain(place(dict(culprit.identity)))
    told = where and culprit.kind is not CulpritKind.OWN and len(alone) + len(where) + len(" in ") <= width
    return f"{alone} in {where}" if told else clip(alone, width)


@dataclass(frozen=True, slots=True)
class _Line:
    steps: tuple[Step, ...]  #: one, or neighbours that were folded into one line


def _waterfall(verdict: Verdict, width: int, colour: bool) -> list[str]:
    if not verdict.waterfall:
        return []
    cells = width // 8
    rows: list[tuple[str, ...]] = [("at", "for ms", "", "span", "thread", "cause")]
    rows += [_row(line, verdict.request.wall_ns, cells) for line in _folded(verdict.waterfall)]
    lines = [GAP + line for line in grid(rows, width - len(GAP), right=(0, 1))]
    return [paint(lines[0], Style.DIM, colour), *lines[1:]]


def _row(line: _Line, wall_ns: int, cells: int) -> tuple[str, ...]:
    first, last = line.steps[0], line.steps[-1]
    at = (ms(first.start_ns), ms(last.end_ns - first.start_ns))
    place = stretch(first.start_ns, last.end_ns, wall_ns, cells).ljust(cells)
    if len(line.steps) > 1:
        return (*at, place, "…", "", _summary(line.steps))
    thread = f"{first.tid} {plain(first.comm)}" if first.tid else ""
    what = GAP.join(filter(None, (CAUSES[first.cause].label, plain(first.note))))
    return (*at, place, clip(plain(first.span), 12), clip(thread, 16), what)


def _summary(steps: tuple[Step, ...]) -> str:
    by_cause: Counter[Cause] = Counter()
    for step in steps:
        by_cause[step.cause] += step.end_ns - step.start_ns
    largest = ", ".join(f"{CAUSES[cause].label} {ms(ns)}" for cause, ns in by_cause.most_common(3))
    return f"{len(steps)} short: {largest}"


def _folded(steps: tuple[Step, ...]) -> list[_Line]:
    """As many of the longest steps as fit, in time order; what lies between two of them is one line."""
    longest = sorted(range(len(steps)), key=lambda at: (steps[at].start_ns - steps[at].end_ns, at))
    for shown in range(min(len(steps), MAX_LINES), 0, -1):
        kept = set(longest[:shown])
        lines = []
        for is_kept, group in groupby(range(len(steps)), key=kept.__contains__):
            run = tuple(steps[at] for at in group)
            lines += [_Line((step,)) for step in run] if is_kept else [_Line(run)]
        if len(lines) <= MAX_LINES:
            return lines
    return []


def _trust(verdict: Verdict, width: int) -> list[str]:
    trust = verdict.trust
    age = trust.gpu_sample_age_ns
    parts = [
        # Rounded down: 100 % is said only where nothing is unknown.
        f"coverage {math.floor(trust.coverage * 1000) / 10:.1f} %",
        f"lost {trust.lost}",
        f"clock ±{duration(trust.clock_error_ns)}",
        "no GPU facts" if age is None else f"GPU sample age {duration(age)}",
        f"confidence {verdict.confidence:.2f}",
    ]
    return pieces(parts, width, indent=GAP)


def _reasoning(verdict: Verdict, width: int) -> list[str]:
    alternatives = [
        f"{CAUSES[a.cause].label}{f' ({a.culprit.label})' if a.culprit else ''}: {a.why_not}"
        for a in verdict.alternatives
    ]
    # Each thread, and why it did not go on; all but the last waited for the next.
    chain = [f"{hop.comm}[{hop.tid}] {CAUSES[hop.cause].label}" for hop in verdict.chain]
    info = CAUSES[verdict.cause] if verdict.outcome is Outcome.NAMED and verdict.cause is not None else None
    lists = {
        "chain": " -> ".join(chain),
        "facts": "; ".join(verdict.facts),
        "alternatives": "; ".join(alternatives),
        "ruled out (below 1 ms)": ", ".join(verdict.ruled_out),
        "notes": "; ".join(verdict.trust.notes),
        "do": info.action.replace("`", "") if info else "",
    }
    return [
        line
        for label, text in lists.items()
        if text
        for line in wrap(f"{label}: {plain(text)}", width, indent=GAP, hanging=GAP)
    ]
