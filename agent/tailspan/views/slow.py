"""The list of slow requests, from index rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from tailspan.export.segment import IndexRow
from tailspan.views.table import MIN_WIDTH, clip, grid, ms, plain, utc

#: Characters of a trace id that are shown; more where fewer would not tell two requests apart.
ID_LENGTH = 8


def is_slow(row: IndexRow) -> bool:
    """Above the threshold of its like; without one (too few like requests, and no SLO) nothing is slow."""
    return 0 < row.threshold_ns < row.wall_ns


def as_text(rows: Sequence[IndexRow], width: int = 80) -> str:
    """One line a request, in the order given, with an id that ``explain`` takes."""
    length = _id_length(rows)
    table = [("ended (UTC)", "ms", "normal", "cause", "culprit", "route", "trace")]
    table += [
        (
            utc(row.start_unix_ns + row.wall_ns)[5:-4],
            ms(row.wall_ns),
            ms(row.normal_ns) if row.normal_ns else "-",
            row.cause if row.cause != "none" else row.outcome,
            clip(plain(row.culprit) or "-", 18),
            plain(row.name),
            (row.trace_id or row.span_id)[:length],
        )
        for row in rows
    ]
    return "\n".join(grid(table, max(width, MIN_WIDTH), right=(1, 2), elastic=5))


def as_json(rows: Sequence[IndexRow]) -> dict[str, Any]:
    return {"requests": [asdict(row) for row in rows]}


def candidates(rows: Sequence[IndexRow]) -> list[str]:
    """What an ambiguous id may have meant, one line each. Span ids tell requests of one trace apart."""
    return grid(
        [(row.trace_id, row.span_id, f"{ms(row.wall_ns)} ms", clip(plain(row.request_id), 48)) for row in rows],
        width=120,
        right=(2,),
    )


def _id_length(rows: Sequence[IndexRow]) -> int:
    ids = sorted({row.trace_id for row in rows})
    length = ID_LENGTH
    for one, next_ in pairwise(ids):
        while length < len(one) and one[:length] == next_[:length]:
            length += 1
    return length
