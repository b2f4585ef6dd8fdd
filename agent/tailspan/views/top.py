"""What made requests slow lately, and who: index rows added up by cause, by culprit and by route."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tailspan.export.segment import IndexRow
from tailspan.views.table import MIN_WIDTH, bar, grid, ms, plain

#: Lines of each table; the JSON has all.
MAX_LINES = 10


@dataclass(frozen=True, slots=True)
class Sum:
    name: str
    requests: int
    total_ns: int  #: time of the named cause; of a route: wall time above normal
    worst_ns: int  #: largest of the same, of one request


@dataclass(frozen=True, slots=True)
class Top:
    requests: int
    causes: tuple[Sum, ...]  #: each largest total first
    culprits: tuple[Sum, ...]
    routes: tuple[Sum, ...]


def add_up(rows: Iterable[IndexRow]) -> Top:
    rows = list(rows)
    named = [row for row in rows if row.cause != "none"]
    return Top(
        len(rows),
        # What no cause could be named for is a line too, by its outcome: it must not vanish from the sums.
        _sums(rows, lambda row: row.cause if row.cause != "none" else row.outcome, _lost_ns),
        _sums([row for row in named if row.culprit], lambda row: row.culprit, _lost_ns),
        _sums(rows, lambda row: row.name, lambda row: row.wall_ns - row.normal_ns),
    )


def as_text(top: Top, width: int = 80) -> str:
    width = max(width, MIN_WIDTH)
    blocks = [
        _table("cause", "ms", top.causes, width),
        _table("culprit", "ms", top.culprits, width),
        _table("route", "ms above normal", top.routes, width),
    ]
    head = f"{top.requests} slow request{'s' if top.requests != 1 else ''}"
    return "\n\n".join([head, *("\n".join(block) for block in blocks if block)])


def as_json(top: Top) -> dict[str, Any]:
    body = asdict(top)
    return {
        "requests": body["requests"],
        **{name: list(body[name]) for name in ("causes", "culprits", "routes")},
    }


def _lost_ns(row: IndexRow) -> int:
    """Time of the named cause; where none is named, all that is above normal."""
    return row.cause_ns if row.cause != "none" else row.wall_ns - row.normal_ns


def _sums(
    rows: Sequence[IndexRow], name: Callable[[IndexRow], str], ns: Callable[[IndexRow], int]
) -> tuple[Sum, ...]:
    found: dict[str, list[int]] = {}
    for row in rows:
        found.setdefault(name(row), []).append(ns(row))
    sums = [Sum(key, len(all_ns), sum(all_ns), max(all_ns)) for key, all_ns in found.items()]
    return tuple(sorted(sums, key=lambda s: (-s.total_ns, s.name)))


def _table(title: str, unit: str, sums: Sequence[Sum], width: int) -> list[str]:
    if not sums:
        return []
    shown, rest = sums[:MAX_LINES], sums[MAX_LINES:]
    whole = sum(s.total_ns for s in sums)
    cells = width // 5
    rows = [(title, "requests", unit, "worst", "")]
    rows += [
        (plain(s.name) or "-", str(s.requests), ms(s.total_ns), ms(s.worst_ns), bar(s.total_ns, whole, cells))
        for s in shown
    ]
    if rest:
        rest_ns = sum(s.total_ns for s in rest)
        others = (f"{len(rest)} others", str(sum(s.requests for s in rest)), ms(rest_ns))
        rows.append((*others, ms(max(s.worst_ns for s in rest)), bar(rest_ns, whole, cells)))
    return grid(rows, width, right=(1, 2, 3), elastic=0)
