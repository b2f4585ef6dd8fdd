"""Columns, units and bars. Every text that comes from outside goes through :func:`plain` before it is shown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum

#: Narrower than this a table says nothing: what is rendered is then as wide as this all the same.
MIN_WIDTH = 60
GAP = "  "

_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Style(StrEnum):
    """Terminal attributes, by their SGR number."""

    BOLD = "1"
    DIM = "2"
    BAD = "31"
    GOOD = "32"


def paint(text: str, style: Style, colour: bool) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if colour else text


def plain(text: str) -> str:
    """Without control characters: a process may call itself an escape sequence."""
    return "".join(c if c.isprintable() else "?" for c in text)


def clip(text: str, width: int) -> str:
    """At most ``width`` characters; an ellipsis says that there was more."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def ms(ns: int) -> str:
    return f"{ns / 1e6:.1f}"


def duration(ns: int) -> str:
    """In the unit that fits: ``450 ns``, ``12 µs``, ``412.3 ms``, ``23.00 s``."""
    if ns < 1_000:
        return f"{ns} ns"
    if ns < 100_000:
        return f"{ns / 1e3:.0f} µs"
    return f"{ms(ns)} ms" if ns < 10_000_000_000 else f"{ns / 1e9:.2f} s"


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def utc(unix_ns: int) -> str:
    """``2026-02-03 04:05:06.789``; no local time, so that two hosts' lists can be compared."""
    at = datetime.fromtimestamp(unix_ns // 1_000_000_000, UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}.{unix_ns // 1_000_000 % 1000:03d}"


def bar(part: float, whole: float, cells: int) -> str:
    """``part`` of ``whole`` in at most ``cells`` cells, to an eighth of a cell; nothing is shown as nothing."""
    eighths = round(8 * cells * part / whole) if whole > 0 else 0
    full, rest = divmod(min(max(eighths, 0), 8 * cells), 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")


def stretch(start: float, end: float, whole: float, cells: int) -> str:
    """A bar from ``start`` to ``end`` of ``whole``, at its place; at least one cell, however short it is."""
    if whole <= 0:
        return ""
    first = min(int(cells * start / whole), cells - 1)
    past = min(max(round(cells * end / whole), first + 1), cells)
    return " " * first + "█" * (past - first)


def pieces(parts: Sequence[str], width: int, indent: str = "") -> list[str]:
    """Parts with gaps between them, on as few lines as they need; a part is never broken."""
    lines: list[str] = []
    for part in filter(None, parts):
        if lines and len(lines[-1]) + len(GAP) + len(part) <= width:
            lines[-1] += GAP + part
        else:
            lines.append(indent + part)
    return lines


def wrap(text: str, width: int, indent: str = "", hanging: str = "") -> list[str]:
    """A text on lines of at most ``width``; broken at spaces, since names such as ``stress-ng`` have hyphens."""
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent + hanging, break_on_hyphens=False
    )


def grid(rows: Sequence[Sequence[str]], width: int, right: Sequence[int] = (), elastic: int = -1) -> list[str]:
    """Rows of cells as aligned lines. Columns in ``right`` are aligned right; ``elastic`` gives way to the width.

    The elastic column keeps at least 8 characters; where that is too much still, lines are cut.
    """
    if not rows:
        return []
    wide = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    elastic %= len(wide)
    spare = width - sum(wide) - len(GAP) * (len(wide) - 1)
    wide[elastic] = max(wide[elastic] + min(spare, 0), min(wide[elastic], 8))
    right = [column % len(wide) for column in right]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(wide[column]) if column in right else clip(cell, wide[column]).ljust(wide[column])
            for column, cell in enumerate(row)
        ]
        lines.append(clip(GAP.join(cells).rstrip(), width))
    return lines
