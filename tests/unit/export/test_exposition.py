"""Our text is prometheus_client's, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.utils import floatToGoString

from tailspan.export.exposition import Exposition, _number
from tailspan.export.families import Distribution, Exemplar, Number, Registry, Snapshot
from tailspan.export.semconv import Metric
from tests.unit.export.exposed import exposed

FORMATS = pytest.mark.parametrize(
    ("openmetrics", "reference"),
    [(False, generate_latest), (True, generate_openmetrics)],
    ids=["text", "openmetrics"],
)
#: All that UTF-8 has, and more often what has a meaning in the format.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\\\n"{},= #'), max_size=8)
VALUES = st.floats(allow_nan=True, allow_infinity=True) | st.integers(0, 2**63).map(float)
COUNTER = Metric("tailspan.some_things", "counter", "s", ("zeta", "alpha"), 'Things, "so\nto" \\ say', "test")
GAUGE = Metric("tailspan.level", "gauge", "1", (), "Level", "test")
HISTOGRAM = Metric(
    "tailspan.duration", "histogram", "s", ("zone", "kind"), "Durations", "test", buckets=(1e-05, 0.5, 2e6)
)


class Held:
    """A source of what it is given."""

    def __init__(self, *snapshots: Snapshot) -> None:
        self.snapshots = snapshots

    def collect(self) -> Iterator[Snapshot]:
        yield from self.snapshots


def held(*snapshots: Snapshot) -> Registry:
    registry = Registry()
    registry.add(Held(*snapshots))
    return registry


def label_sets(count: int) -> st.SearchStrategy[list[tuple[str, ...]]]:
    return st.lists(st.tuples(*[TEXTS] * count), max_size=4, unique=True)


@st.composite
def exemplars(draw: st.DrawFn) -> Exemplar:
    labels = tuple(draw(st.dictionaries(st.sampled_from(["trace_id", "span_id"]), TEXTS, min_size=1)).items())
    return Exemplar(labels, draw(VALUES), draw(st.floats(0, 4e9)))


@st.composite
def registries(draw: st.DrawFn) -> Registry:
    counter = [Number(labels, draw(VALUES)) for labels in draw(label_sets(2))]
    gauge = [Number((), draw(VALUES))]
    places = len(HISTOGRAM.buckets) + 1
    histogram = [
        Distribution(
            labels,
            tuple(draw(st.lists(st.integers(0, 2**53), min_size=places, max_size=places))),
            draw(VALUES),
            draw(st.dictionaries(st.integers(0, places - 1), exemplars(), max_size=places)),
        )
        for labels in draw(label_sets(2))
    ]
    return held(Snapshot(COUNTER, [*counter]), Snapshot(GAUGE, [*gauge]), Snapshot(HISTOGRAM, [*histogram]))


@FORMATS
@given(registry=registries())
def test_it_is_what_prometheus_client_would_write(
    openmetrics: bool, reference: Callable[..., bytes], registry: Registry
) -> None:
    exposition = Exposition(registry)
    expected = reference(exposed(registry))
    assert exposition.render(openmetrics) == expected
    # AND so it is when the lines' beginnings are known
    assert exposition.render(openmetrics) == expected


@given(value=VALUES | st.integers(-(2**53), 2**53))
def test_numbers_are_written_as_go_does(value: float) -> None:
    assert _number(value) == floatToGoString(value)


@FORMATS
def test_a_later_text_has_the_later_values_and_series(openmetrics: bool, reference: Callable[..., bytes]) -> None:
    source = Held(Snapshot(COUNTER, [Number(("a", "b"), 1.0), Number(("c", "d"), 2.0)]))
    registry = Registry()
    registry.add(source)
    exposition = Exposition(registry)
    first = exposition.render(openmetrics)

    source.snapshots = (Snapshot(COUNTER, [Number(("c", "d"), 3.0), Number(("e", "f"), 4.0)]),)

    assert exposition.render(openmetrics) == reference(exposed(registry)) != first
    # AND what has gone is forgotten
    assert set(exposition._starts[COUNTER.name]) == {("c", "d"), ("e", "f")}


@FORMATS
def test_a_metric_without_series_leaves_nothing(openmetrics: bool, reference: Callable[..., bytes]) -> None:
    assert Exposition(held(Snapshot(COUNTER, []))).render(openmetrics) == (b"# EOF\n" if openmetrics else b"")


def test_an_exemplar_with_both_ids_is_within_openmetrics_limit() -> None:
    ids = (("trace_id", "ab" * 16), ("span_id", "cd" * 8))
    series = Distribution(("eu", "read"), (0, 1, 0, 0), 0.4, {1: Exemplar(ids, 0.4, 1_700_000_000.25)})
    text = Exposition(held(Snapshot(HISTOGRAM, [series]))).render(openmetrics=True).decode()

    found = [sample.exemplar for family in parse_openmetrics(text) for sample in family.samples if sample.exemplar]

    assert [(one.labels, one.value) for one in found] == [(dict(ids), 0.4)]
    assert sum(len(name) + len(value) for name, value in ids) <= 128
