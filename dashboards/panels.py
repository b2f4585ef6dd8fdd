"""What a dashboard is made of, and the PromQL that its panels share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tailspan.export.semconv import Metric, SpanName


@dataclass(frozen=True, slots=True)
class Foreign:
    """A metric that is not ours."""

    name: str


#: Prometheus's own: it says of each agent whether it could be scraped.
UP = Foreign("up")


class Look(StrEnum):
    STAT = "stat"  #: the latest value, large
    LINES = "lines"
    STACK = "stack"  #: lines whose sum means something
    TABLE = "table"  #: a row a series, as they are now


@dataclass(frozen=True, slots=True)
class Panel:
    question: str
    answer: str  #: the description; the metric's name is put after it
    metric: Metric | Foreign  #: the one that it is about
    unit: str  #: Grafana's id of it
    queries: dict[str, str]  #: legend -> PromQL
    look: Look = Look.LINES
    exemplars: bool = False


@dataclass(frozen=True, slots=True)
class TracePanel:
    """Asks the trace store. A table of spans, or lines where the query is one of TraceQL metrics."""

    question: str
    answer: str  #: the description; the span's name is put after it
    span: SpanName  #: the one that it is about
    unit: str
    query: str  #: TraceQL
    look: Look


@dataclass(frozen=True, slots=True)
class View:
    """One dashboard. The first of its rows is what one looks at first."""

    name: str  #: of the file
    title: str
    about: str
    rows: dict[str, tuple[Panel | TracePanel, ...]]
    by_request_name: bool = False  #: a variable chooses names of requests


def uid(name: str) -> str:
    """Of the view of that name: links to it stay good."""
    return f"tailspan-{name}"


#: A matcher for metrics that carry the names of requests, where the view lets one choose.
CHOSEN_NAMES = 'name=~"$name"'


def series(metric: Metric | Foreign, where: str = "", part: str = "") -> str:
    """The metric of the chosen instances. ``part``: ``_bucket``, ``_count`` or ``_sum`` of a histogram."""
    chosen = 'job=~"$job", instance=~"$instance"'
    return f"{metric.name}{part}{{{chosen}{', ' + where if where else ''}}}"


def rate(metric: Metric | Foreign, by: str = "", where: str = "", part: str = "") -> str:
    return f"sum{_by(by)} (rate({series(metric, where, part)}[$__rate_interval]))"


def latest(metric: Metric | Foreign, by: str = "", where: str = "") -> str:
    return f"sum{_by(by)} ({series(metric, where)})"


def highest(metric: Metric | Foreign, by: str = "", where: str = "") -> str:
    return f"max{_by(by)} ({series(metric, where)})"


def quantile(share: float, metric: Metric | Foreign, by: str = "", where: str = "") -> str:
    """A series without an observation meanwhile has no quantile: it is left out, not drawn as NaN."""
    return f"histogram_quantile({share}, {rate(metric, f'le, {by}' if by else 'le', where, '_bucket')}) >= 0"


def quantiles(metric: Metric) -> dict[str, str]:
    return {f"p{share * 100:.0f}": quantile(share, metric) for share in (0.5, 0.95, 0.99)}


def or_zero(query: str) -> str:
    """For a counter whose series begin with the first event: until then it is 0."""
    return f"({query} or vector(0))"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""
