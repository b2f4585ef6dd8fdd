"""What works on this machine, what does not, why, and what becomes unknowable without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tailspan.views.table import GAP, MIN_WIDTH, Style, paint, plain, wrap

#: ``off``: it would work, and is not attached unless asked for.
State = Literal["works", "off", "missing"]

_MARKS: dict[State, tuple[str, Style]] = {
    "works": ("ok", Style.GOOD),
    "off": ("off", Style.DIM),
    "missing": ("NO", Style.BAD),
}


@dataclass(frozen=True, slots=True)
class ProbeReport:
    name: str
    state: State
    default: bool  #: attached at start
    required: bool
    answers: str
    why: str  #: why it is missing; "" otherwise
    without: str  #: what is unknowable without it
    mend: str
    cost: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact about the machine. ``ok`` is None where neither answer is a problem."""

    name: str
    value: str
    ok: bool | None = None
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    probes: tuple[ProbeReport, ...]
    environment: tuple[Fact, ...]
    error: str = ""  #: why no probe could be loaded at all

    @property
    def missing(self) -> list[str]:
        """Default probes that are not there."""
        return [probe.name for probe in self.probes if probe.default and probe.state == "missing"]


def as_text(report: Report, width: int = 80, colour: bool = False) -> str:
    width = max(width, MIN_WIDTH)
    blocks = [["probes"], *(_probe(probe, width, colour) for probe in report.probes)]
    blocks.append(["", "environment", *_environment(report.environment, width, colour), ""])
    blocks.append(wrap(_summary(report), width))
    return "\n".join(line for block in blocks for line in block)


def as_json(report: Report) -> dict[str, Any]:
    return {
        "ok": not report.missing and not report.error,
        "missing": report.missing,
        "error": report.error,
        "probes": [asdict(probe) for probe in report.probes],
        "environment": [asdict(fact) for fact in report.environment],
    }


def _probe(probe: ProbeReport, width: int, colour: bool) -> list[str]:
    word, style = _MARKS[probe.state]
    first = f"{GAP}{paint(f'{word:<3}', style, colour)}  {probe.name:<10} "
    indent = " " * 18
    lines = wrap(probe.answers, width, indent)
    lines[0] = first + lines[0].removeprefix(indent)
    said = {"why": probe.why, "unknowable": probe.without, "mend": probe.mend} if probe.state == "missing" else {}
    for label, text in {**said, "cost": probe.cost}.items():
        if text:
            lines += wrap(f"{label}: {plain(text)}", width, indent, GAP)
    return lines


def _environment(facts: Sequence[Fact], width: int, colour: bool) -> list[str]:
    widest = max((len(fact.name) for fact in facts), default=0)
    lines = []
    for fact in facts:
        word, style = {True: ("ok", Style.GOOD), False: ("NO", Style.BAD), None: ("", Style.DIM)}[fact.ok]
        indent = " " * (widest + 9)
        text = fact.value + (f": {fact.mend}" if fact.mend else "")
        wrapped = wrap(plain(text), width, indent) or [""]
        wrapped[0] = f"{GAP}{paint(f'{word:<3}', style, colour)}  {fact.name:<{widest}}{GAP}" + wrapped[0].lstrip()
        lines += wrapped
    return lines


def _summary(report: Report) -> str:
    if report.error:
        return f"tailspan cannot run here: {plain(report.error)}"
    if report.missing:
        return f"Missing: {', '.join(report.missing)}. What depends on it is shown as unknowable, never as zero."
    return "Every default probe works."
