"""The registry as text: Prometheus 0.0.4, and OpenMetrics 1.0 with exemplars.

A line is ``name{labels} value``. All but the value is the same in every scrape, so it is made once and kept; a
scrape only writes numbers. That matters, as whoever writes holds the interpreter, and the daemon's thread waits.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from itertools import accumulate

from tailspan.export.families import Distribution, Exemplar, Labels, Number, Registry, Snapshot
from tailspan.export.semconv import Metric

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

#: From here on numbers are written with an exponent.
_PLAIN_BELOW = 1_000_000


class Exposition:
    """Thread-safe; scrapes at the same time are written one after the other."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._starts: dict[str, dict[Labels, tuple[str, ...]]] = {}  # metric -> its series -> starts of its lines

    def render(self, openmetrics: bool = False) -> bytes:
        with self._lock:
            lines: list[str] = []
            for snapshot in self._registry.collect():
                lines += _head(snapshot.metric, openmetrics)
                lines += self._body(snapshot, openmetrics)
            if openmetrics:
                lines.append("# EOF\n")
            return "".join(lines).encode()

    def _body(self, snapshot: Snapshot, openmetrics: bool) -> list[str]:
        metric = snapshot.metric
        before, now = self._starts.get(metric.name, {}), {}  # those that are gone are forgotten
        lines: list[str] = []
        for series in snapshot.series:
            starts = before.get(series.labels)
            if starts is None:
                starts = _starts(metric, series.labels)
            now[series.labels] = starts
            if isinstance(series, Number):
                lines.append(f"{starts[0]}{_number(series.value)}\n")
            else:
                lines += _distribution(starts, series, openmetrics)
        self._starts[metric.name] = now
        return lines


def _head(metric: Metric, openmetrics: bool) -> tuple[str, str]:
    name = metric.name.removesuffix("_total") if openmetrics else metric.name
    meaning = metric.meaning.replace("\\", r"\\").replace("\n", r"\n")
    if openmetrics:
        meaning = meaning.replace('"', r"\"")
    return f"# HELP {name} {meaning}\n", f"# TYPE {name} {metric.kind}\n"


def _starts(metric: Metric, labels: Labels) -> tuple[str, ...]:
    """Of a histogram: of its buckets, then of its count and its sum."""
    named = dict(zip(metric.labels, labels, strict=True))
    if metric.kind != "histogram":
        return (_start(metric.name, named),)
    bounds = [*map(_number, metric.buckets), "+Inf"]
    return (
        *(_start(f"{metric.name}_bucket", named | {"le": bound}) for bound in bounds),
        *(_start(f"{metric.name}_{part}", named) for part in ("count", "sum")),
    )


def _start(name: str, labels: dict[str, str]) -> str:
    return f"{name}{_labels(sorted(labels.items()))} " if labels else f"{name} "


def _labels(pairs: Sequence[tuple[str, str]]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _distribution(starts: Sequence[str], series: Distribution, openmetrics: bool) -> list[str]:
    counts = [*accumulate(series.counts)]
    counts.append(counts[-1])
    if counts[-1] < _PLAIN_BELOW:
        lines = [f"{start}{count}.0\n" for start, count in zip(starts, counts, strict=False)]
    else:
        lines = [f"{start}{_number(count)}\n" for start, count in zip(starts, counts, strict=False)]
    lines.append(f"{starts[-1]}{_number(series.total)}\n")
    if openmetrics:
        for place, exemplar in series.exemplars.items():
            lines[place] = f"{lines[place][:-1]}{_exemplar(exemplar)}\n"
    return lines


def _exemplar(exemplar: Exemplar) -> str:
    return f" # {_labels(sorted(exemplar.labels))} {_number(exemplar.value)} {exemplar.unix_s}"


def _number(value: float) -> str:
    """As Go writes it: with an exponent from 1e6 on, where Python does so from 1e16."""
    value = float(value)
    if not math.isfinite(value):
        return "NaN" if value != value else "+Inf" if value > 0 else "-Inf"
    text = repr(value)
    if value < _PLAIN_BELOW or "e" in text:
        return text
    whole, _, fraction = text.partition(".")
    digits = f"{whole[0]}.{whole[1:]}{fraction}".rstrip("0.")
    return f"{digits}e+{len(whole) - 1:02d}"
