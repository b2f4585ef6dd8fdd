from __future__ import annotations

import sys
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as TheirHistogram

from tailspan.export.families import Distribution, Histogram, Number, Numbers, Registry
from tailspan.export.semconv import DURATION_BUCKETS, OTHER, Metric

TOTAL = Metric("tailspan.some_things", "counter", "{thing}", ("kind", "process"), "Things", "test", limit=8)
LEVEL = Metric("tailspan.level", "gauge", "{thing}", (), "Level", "test")
WAIT = Metric("tailspan.wait", "histogram", "s", (), "Waits", "test")


@pytest.fixture
def overflows() -> Counter[str]:
    return Counter()


def numbers(family: Numbers) -> dict[tuple[str, ...], float]:
    return {
        series.labels: series.value
        for one in family.collect()
        for series in one.series
        if isinstance(series, Number)
    }


def distribution(family: Histogram) -> Distribution:
    (series,) = (series for one in family.collect() for series in one.series)
    assert isinstance(series, Distribution)
    return series


def _ignore(metric: str) -> None:
    raise AssertionError(f"{metric} is full")


def test_open_labels_become_other_first_and_all_of_them_last(overflows: Counter[str]) -> None:
    # GIVEN room for 8 label sets, and 2 in which the process is other
    family = Numbers(TOTAL, lambda name: overflows.update([name]))

    # WHEN 23 processes come with each of three kinds, twice
    for _ in range(2):
        for kind in ("a", "b", "c"):
            for number in range(23):
                family.inc(kind, f"process{number}")

    # THEN the number of series is bounded and nothing is lost
    assert numbers(family) == {
        **{("a", f"process{number}"): 2 for number in range(8)},
        ("a", OTHER): 2 * 15,
        ("b", OTHER): 2 * 23,
        (OTHER, OTHER): 2 * 23,
    }
    assert overflows == {TOTAL.name: 2 * (3 * 23 - 8)}


def test_a_label_that_has_no_bytes_does_not_break_scrapes(overflows: Counter[str]) -> None:
    family = Numbers(TOTAL, lambda name: overflows.update([name]))
    family.inc("a", "half\ud800pair")
    family.inc("a", "half\ud800pair")
    assert numbers(family) == {("a", "half?pair"): 2}


def test_a_counter_without_labels_begins_at_0_and_a_gauge_does_not() -> None:
    counter = Metric("tailspan.things", "counter", "{thing}", (), "Things", "test")
    assert numbers(Numbers(counter, _ignore)) == {(): 0}
    assert numbers(Numbers(LEVEL, _ignore)) == {}


@given(values=st.lists(st.integers(-(10**9), 20 * 10**9).map(lambda ns: max(ns, 0) / 1e9), max_size=50))
def test_histogram_agrees_with_prometheus_clients_own(values: list[float]) -> None:
    reference = CollectorRegistry()
    theirs = TheirHistogram("wait_seconds", "Waits", registry=reference, buckets=DURATION_BUCKETS)
    ours = Histogram(WAIT, _ignore)
    ours.begin()
    for value in values:
        theirs.observe(value)
        ours.observe(value=value)

    found = distribution(ours)
    samples = {sample.labels.get("le"): sample.value for sample in next(iter(reference.collect())).samples}
    cumulated = np.cumsum(found.counts).tolist()
    assert cumulated == [samples[f"{bound}"] for bound in (*DURATION_BUCKETS, "+Inf")]
    assert found.total == pytest.approx(sum(values))


@given(durations_ns=st.lists(st.tuples(st.integers(-(10**9), 20 * 10**9), st.integers(1, 5)), max_size=50))
def test_all_at_once_is_the_same_as_one_by_one(durations_ns: list[tuple[int, int]]) -> None:
    at_once, one_by_one = Histogram(WAIT, _ignore), Histogram(WAIT, _ignore)
    for family in (at_once, one_by_one):
        family.begin()
    given_ns, times = np.array(durations_ns, np.int64).reshape(-1, 2).T
    at_once.observe_all(durations_ns=given_ns, times=times)
    for ns, count in durations_ns:
        for _ in range(count):
            one_by_one.observe(value=max(ns, 0) / 1e9)

    assert distribution(at_once).counts == distribution(one_by_one).counts
    assert distribution(at_once).total == pytest.approx(distribution(one_by_one).total)


def test_no_value_makes_no_series() -> None:
    family = Histogram(WAIT, _ignore)
    family.observe_all(durations_ns=np.empty(0, np.int64))
    registry = Registry()
    registry.add(family)
    assert list(registry.collect()) == []


def test_counts_and_total_that_are_read_together_belong_together() -> None:
    # GIVEN a thread that observes 1 s each time, and others get the interpreter as often as can be
    family = Histogram(WAIT, _ignore)
    family.begin()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    observer = threading.Thread(target=lambda: [family.observe(value=1.0) for _ in range(20_011)])
    try:
        observer.start()
        while observer.is_alive():
            found = distribution(family)
            assert sum(found.counts) == found.total
        observer.join()
    finally:
        sys.setswitchinterval(interval)
    assert distribution(family).total == 20_011
