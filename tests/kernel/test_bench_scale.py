"""What rings and maps of many CPUs cost, by making them here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tailspan.collect.bpf.programs import Options
from tests.bench import page, scale

pytestmark = pytest.mark.kernel

CPUS = 12


def test_rings_of_cpus_that_are_not_there_are_made_and_drained() -> None:
    shape = replace(scale.HOST, handlers=32, executors=8, sleepers=60, processes=4, cpus=8)
    figures = json.loads(json.dumps(scale.measure(seconds=1.0, cpus=CPUS, shape=shape)))

    kernel = figures["kernel"]
    assert kernel["cpus"] == CPUS
    assert kernel["ring_bytes"]["cycle_ring_bytes"] == Options().cycle_ring_bytes
    assert kernel["files"] >= CPUS * len(kernel["ring_bytes"])
    assert 0 < kernel["drain_us"]["min"] <= kernel["thorough_us"]["min"]
    assert {"losses", "syscall_hists", "cpus"} <= set(kernel["maps"])

    # WHEN the page is made of it
    rendered = page.wrapped(scale.render(figures))
    # THEN the bounds are in order, and the lowest one is said to come first
    for bounds in (scale.of_rate(figures), scale.of_cpus(figures)):
        assert [bound.at for bound in bounds] == sorted(bound.at for bound in bounds)
        assert f"{bounds[0].words}, at" in rendered.replace("\n", " ")
