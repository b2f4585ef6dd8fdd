"""Benches that need no kernel: that their figures hold together, and that page and picture can be made of them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tailspan.attribute.ledger import account, ledgers
from tailspan.timeline.tables import FOREVER
from tests.bench import curves, goals, growth, page, scale, second, stored
from tests.bench.__main__ import main

Figures = dict[str, Any]

SIZES = (100, 1_000)
NAME = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def grown() -> Figures:
    figures: Figures = json.loads(json.dumps(growth.measure(SIZES)))
    return figures


# --- the synthetic host -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 4])
def test_a_host_of_any_shape_has_ledgers_that_sum(processes: int) -> None:
    shape = second.Shape(handlers=32, executors=8, sleepers=60, processes=processes)
    whole = second.evidence(64, shape)

    table = ledgers(account(whole), len(whole.requests))

    walls = whole.requests["end_mono_ns"] - whole.requests["start_mono_ns"]
    assert (table.sum(axis=1) == walls).all()
    assert len(whole.open_threads) == len(whole.threads) == shape.threads == 100
    assert set(np.unique(whole.open_threads["tgid"]).tolist()) == {second.TGID + n for n in range(processes)}
    assert (whole.threads["gone_mono_ns"] == FOREVER).all()


def test_a_thread_of_a_request_is_of_its_process() -> None:
    shape = second.Shape(handlers=32, executors=8, processes=4)
    whole = second.evidence(96, shape)
    of_request = whole.requests["tgid"][whole.spans["request"]]
    assert (shape.tgid(whole.spans["tid"]) == of_request).all()
    woken = whole.cycles[whole.cycles["waker_tid"] > 0]
    assert len(woken) and (shape.tgid(woken["waker_tid"]) == woken["tgid"]).all()


# --- growth -----------------------------------------------------------------------------------------------------


def test_every_stage_of_every_size_is_measured(grown: Figures) -> None:
    for dimension in grown["dimensions"].values():
        assert [cell["size"] for cell in dimension["cells"]] == list(SIZES)
        for cell in dimension["cells"]:
            assert set(cell["cpu_s"]) == set(growth.STAGES)
            assert all(figure["median"] > 0 for figure in cell["cpu_s"].values())


def test_what_is_held_does_not_grow_and_what_is_varied_does(grown: Figures) -> None:
    threads, requests, turns = (grown["dimensions"][name]["cells"] for name in ("threads", "requests", "turns"))
    assert [cell["threads"] for cell in threads] == list(SIZES)
    assert len({cell["requests"] for cell in threads}) == len({cell["turns"] for cell in threads}) == 1
    assert [cell["requests"] for cell in requests] == [120, 1_000]  # whole periods of all handlers
    assert [cell["turns"] // cell["threads"] for cell in turns] == list(SIZES)
    assert {cell["requests"] for cell in turns} == {8}


def test_a_power_is_read_off_exactly() -> None:
    assert growth._power((10, 100, 1_000), [1.0, 100.0, 10_000.0]) == pytest.approx({"fitted": 2, "last": 2})
    flat_at_first = growth._power((10, 100, 1_000), [1.0, 1.0, 10.0])
    assert flat_at_first["last"] == pytest.approx(1) and flat_at_first["fitted"] == pytest.approx(0.5)


def test_the_page_says_what_grows_faster_than_its_size(grown: Figures) -> None:
    steep = json.loads(json.dumps(grown))
    for dimension in steep["dimensions"].values():
        for power in dimension["powers"].values():
            power["last"] = 1.0
    assert "Nothing grows faster than its size: the highest power at the end is 1.00." in growth.render(steep)
    steep["dimensions"]["threads"]["powers"]["verdicts"]["last"] = 2.0
    said = page.wrapped(growth.render(steep)).replace("\n", " ")
    assert "Faster than its size grows: verdicts, one in 100, with followed threads: 2.00." in said


def test_the_picture_has_every_curve_in_every_panel_within_its_frame(grown: Figures, tmp_path: Path) -> None:
    growth.draw(grown, tmp_path / "growth.svg")

    svg = ElementTree.parse(tmp_path / "growth.svg").getroot()
    panels = [group for group in svg.iter(f"{NAME}g") if group.get("transform")]
    assert len(panels) == len(growth.DIMENSIONS)
    for panel in panels:
        lines = list(panel.iter(f"{NAME}polyline"))
        assert len(lines) == len(growth.STAGES)
        for line in lines:
            points = [tuple(map(float, point.split(","))) for point in line.get("points", "").split()]
            assert len(points) == len(SIZES)
            assert all(0 <= x <= curves.WIDTH and 0 <= y <= curves.HEIGHT for x, y in points)
    words = {"".join(text.itertext()) for text in svg.iter(f"{NAME}text")}
    assert words.issuperset(growth.STAGES.values())


def test_the_committed_picture_is_whole_and_fetches_nothing() -> None:
    svg = (Path(__file__).parents[2] / "docs" / growth.PICTURE).read_text()
    words = {"".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{NAME}text")}
    assert words.issuperset(growth.STAGES.values())
    assert words.issuperset(dimension.words for dimension in growth.DIMENSIONS.values())
    assert re.findall(r"(?:https?:)?//[^\s\"]+", svg) == ["http://www.w3.org/2000/svg"]


def test_a_curve_rises_by_its_power() -> None:
    panel = curves.Panel("x", "", {"cubic": [(1, 1), (100, 1_000_000)]})
    svg = ElementTree.fromstring(curves.picture("title", "ms", [panel]))
    (line,) = svg.iter(f"{NAME}polyline")
    assert line.get("points") == f"0.0,{curves.HEIGHT:.1f} {curves.WIDTH:.1f},0.0"


# --- scale ------------------------------------------------------------------------------------------------------


def test_the_simulated_host_is_served_whole() -> None:
    shape = replace(scale.HOST, handlers=32, executors=8, sleepers=60, processes=4, cpus=8)
    figures = scale.simulated(shape, seconds=1.5)

    assert figures["requests"] == pytest.approx(1.5e9 / shape.request_ns * shape.handlers, rel=0.05)
    assert figures["dropped_messages"] == {}
    assert figures["window_rows"]["cycles"] == figures["turns"]
    assert figures["window_rows_lost"] == 0
    assert figures["slow"] > 0 and figures["verdicts"] > 0
    assert figures["verdicts"] + figures["unjudged"] + figures["forgotten"] == figures["slow"]
    assert figures["stored_bytes_per_s"] > 0
    stages = figures["cpu_s_per_s"]
    assert sum(stages.values()) == pytest.approx(figures["total_cpu_s_per_s"])
    assert all(stages[stage] > 0 for stage in ("read", "join", "take", "cut", "ledgers", "verdicts", "store"))


# --- stored -----------------------------------------------------------------------------------------------------


def test_what_is_stored_is_found_by_the_commands() -> None:
    figures = stored.measure(requests=60, times=1, commands=("explain ID", "slow"))

    assert all(one["warm_s"]["median"] > 0 for one in figures["commands"].values())
    assert figures["blocks"] == 30 and figures["segments"] == 1
    assert figures["bytes_per_request"] == pytest.approx(figures["bytes_per_request_of_export"], rel=0.3)
    rendered = page.wrapped(stored.render(json.loads(json.dumps(figures))))
    assert rendered.startswith("## Evidence on disk\n\n")
    assert "| 100 requests/s, 1 % slow |" in rendered


# --- goals ------------------------------------------------------------------------------------------------------


def _goal(words: str) -> goals.Goal:
    (found,) = (goal for goal in goals.GOALS if goal.words.startswith(words))
    return found


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.991, 1.002, goals.MET), (0.98, 1.0, goals.BOTH), (0.85, 0.98, goals.MISSED)],
)
def test_a_goal_is_met_by_its_whole_interval(low: float, high: float, verdict: str) -> None:
    ratio = {"median": (low + high) / 2, "low": low, "high": high, "n": 8}
    benches = {"worker": {"ratio": {"running": {"throughput_per_s": ratio}}}}
    goal = _goal("throughput of the worker")
    assert goal.verdict(goal.of(benches)) == verdict


def test_what_the_agent_takes_of_a_shared_machine_is_said() -> None:
    steady = {"cpu_percent": {"median": 5.0, "min": 4.0, "max": 6.0}}
    said = goals.render({"worker": {"cpus": 2, "agent": {"steady": steady}}})
    assert "Its own CPU time is 2.5 % of these 2, and would be less than 1 % of 6;" in said
    assert "Its own CPU time" not in goals.render({})


def test_a_bench_that_was_not_run_leaves_its_goals_open() -> None:
    names = ("worker", "switch", "decode", "rates", "startup")
    empty: Figures = {name: {} for name in names}
    for benches in ({}, empty):
        rendered = goals.render(benches)
        assert rendered.count(goals.OPEN) == len(goals.GOALS)
        assert f"0 of {len(goals.GOALS)} are met" in rendered


def test_losses_of_all_classes_count() -> None:
    goal = _goal("records lost")
    paces: Figures = {"rates": {"paces": {"200000": {"lost": {"cycle": 0, "slice": 3}}}}}
    assert goal.verdict(goal.of(paces)) == goals.MISSED
    paces["rates"]["paces"]["200000"]["lost"] = {"cycle": 0}
    assert goal.verdict(goal.of(paces)) == goals.MET


def test_the_storm_is_compared_with_bpftrace_and_no_other_tool() -> None:
    cost = {"median": 0.6, "low": 0.55, "high": 0.65, "n": 12}
    quotients = {"runqlat of bcc": cost | {"high": 0.1}, "bpftrace runqlat": cost}
    for words, kind in (("cost of the storm", "followed"), ("the same with a record", "every switch")):
        goal = _goal(words)
        measured = goal.of({"switch": {"cost_to": {kind: quotients}}})
        assert measured == goals.Measured(0.6, 0.55, 0.65)
        assert goal.of({"switch": {"cost_to": {kind: {"runqlat of bcc": cost}}}}) is None


def test_verdicts_come_as_late_as_the_bucket_that_holds_them_all() -> None:
    goal = _goal("a verdict after")
    within = {"0.5": 3, "1": 8, "2.5": 8, "inf": 8}
    measured = goal.of({"worker": {"agent": {"steady": {"verdicts_within": within}}}})
    assert measured is not None and measured.value == 1 and goal.verdict(measured) == goals.MET
    late = goal.of({"worker": {"agent": {"steady": {"verdicts_within": {"1": 8, "inf": 9}}}}})
    assert late is not None and math.isinf(late.value) and goal.verdict(late) == goals.MISSED


def test_the_page_has_the_goals_before_the_first_section_and_the_picture_beside_it(
    grown: Figures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = tmp_path / "figures.json", tmp_path / "growth.svg"
    results = {"machine": page.machine(), "quick": True, "took_s": {"growth": 90.0}, "benches": {"growth": grown}}
    file.write_text(json.dumps(results))

    assert main(["--render", str(file), "--picture", str(picture)]) == 0

    rendered = capsys.readouterr().out
    assert rendered.index("\n## Goals\n") < rendered.index("\n## Growth\n")
    assert "The run took 1.5 minutes; s: growth 90.0." in rendered.replace("\n", " ")
    assert growth.PICTURE in rendered
    assert picture.read_text().startswith("<svg ")
