"""Curves on logarithmic scales as a small SVG: panels side by side, one legend below. No library, no font."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 300, 270  #: of a panel's plot
_LEFT, _TOP, _GAP, _BELOW = 62, 84, 58, 52
_LEGEND_ROW, _LEGEND_COLUMN = 24, 250
_MARK = 3.5

#: Told apart also without red and green; each has a mark of its own for print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#a6761d", "#444444", "#e6ab02")


@dataclass(frozen=True, slots=True)
class Panel:
    x: str  #: what its abscissa is
    held: str
    curves: Mapping[str, Sequence[Point]]  #: positive values only


@dataclass(frozen=True, slots=True)
class _Scale:
    """Whole powers of ten, from the first that is needed to the last."""

    low: int
    high: int
    length: float

    def at(self, value: float) -> float:
        return (math.log10(value) - self.low) / (self.high - self.low) * self.length

    @property
    def powers(self) -> range:
        return range(self.low, self.high + 1)


def picture(title: str, unit: str, panels: Sequence[Panel]) -> str:
    """The SVG. All panels have one ordinate; a dashed line shows what grows as its abscissa does."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    y = _scale([value for panel in panels for curve in panel.curves.values() for _, value in curve], HEIGHT)
    width = _LEFT + len(panels) * (WIDTH + _GAP)
    columns = max(1, (width - _LEFT) // _LEGEND_COLUMN)
    legend_top = _TOP + HEIGHT + _BELOW
    height = legend_top + -(-(len(names) + 1) // columns) * _LEGEND_ROW + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="12" fill="#333333">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(_LEFT, 28, f"{title}, {unit}", ' font-size="17" font-weight="bold" fill="#111111"'),
    ]
    for number, panel in enumerate(panels):
        left = _LEFT + number * (WIDTH + _GAP)
        parts += [f'<g transform="translate({left} {_TOP})">', *_plot(panel, names, y), "</g>"]
    for number, name in enumerate((*names, None)):
        x = _LEFT + number % columns * _LEGEND_COLUMN
        at = legend_top + number // columns * _LEGEND_ROW
        parts += _legend(x, at, names, name)
    return "\n".join((*parts, "</svg>")) + "\n"


def _plot(panel: Panel, names: Sequence[str], y: _Scale) -> list[str]:
    x = _scale([size for curve in panel.curves.values() for size, _ in curve], WIDTH)
    parts = [
        _text(0, -28, panel.x, ' font-size="13" font-weight="bold"'),
        _text(0, -11, panel.held, ' fill="#666666" font-size="11"'),
    ]
    for power in x.powers:
        at = x.at(10**power)
        parts += [_line(at, 0, at, HEIGHT, "#e5e5e5"), _power(at, HEIGHT + 18, power, "middle")]
    for power in y.powers:
        at = HEIGHT - y.at(10.0**power)
        parts += [_line(0, at, WIDTH, at, "#e5e5e5"), _power(-8, at + 4, power, "end")]
    parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999999"/>')
    parts += _linear(x, y)
    for name, curve in panel.curves.items():
        places = [(x.at(size), HEIGHT - y.at(value)) for size, value in curve]
        colour = COLOURS[names.index(name) % len(COLOURS)]
        line = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts += [_mark(*place, names.index(name), colour) for place in places]
    return parts


def _linear(x: _Scale, y: _Scale) -> list[str]:
    """Dashed, through the middle: as many powers of ten up as to the right."""
    rise = min(x.high - x.low, y.high - y.low)
    low = (y.low + y.high - rise) // 2
    right = x.at(10.0 ** (x.low + rise))
    ends = HEIGHT - y.at(10.0**low), HEIGHT - y.at(10.0 ** (low + rise))
    return [_line(0, ends[0], right, ends[1], "#999999", ' stroke-dasharray="5 4"')]


def _legend(x: float, y: float, names: Sequence[str], name: str | None) -> list[str]:
    if name is None:
        words = "as the size itself grows"
        return [_line(x, y - 4, x + 26, y - 4, "#999999", ' stroke-dasharray="5 4"'), _text(x + 34, y, words)]
    number = names.index(name)
    colour = COLOURS[number % len(COLOURS)]
    line = _line(x, y - 4, x + 26, y - 4, colour, ' stroke-width="1.8"')
    return [line, _mark(x + 13, y - 4, number, colour), _text(x + 34, y, name)]


def _scale(values: Sequence[float], length: float) -> _Scale:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return _Scale(low, max(high, low + 1), length)


def _mark(x: float, y: float, number: int, colour: str) -> str:
    if number % 3 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_MARK}" fill="{colour}"/>'
    if number % 3 == 1:
        side = 2 * _MARK
        return f'<rect x="{x - _MARK:.1f}" y="{y - _MARK:.1f}" width="{side}" height="{side}" fill="{colour}"/>'
    corners = (
        f"{x:.1f},{y - _MARK - 1:.1f} {x + _MARK + 1:.1f},{y + _MARK:.1f} {x - _MARK - 1:.1f},{y + _MARK:.1f}"
    )
    return f'<polygon points="{corners}" fill="{colour}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{more}/>'


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(text)}</text>'


def _power(x: float, y: float, power: int, anchor: str) -> str:
    words = f'10<tspan dy="-4" font-size="9">{power}</tspan>'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'
