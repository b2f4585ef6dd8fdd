"""The dashboard is what its program builds, asks only for metrics that exist, and keeps Grafana's rules."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from tailspan.export import semconv

FOLDER = Path(__file__).parents[2] / "dashboards"
COMMITTED = FOLDER / "requests.json"


DASHBOARD: dict[str, Any] = json.loads(COMMITTED.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPOSED = {
    name: metric
    for metric in semconv.METRICS
    for name in (
        [f"{metric.name}_{part}" for part in ("bucket", "count", "sum")]
        if metric.kind == "histogram"
        else [metric.name]
    )
}

LABELS = {label for metric in semconv.METRICS for label in metric.labels}
METRIC = r"\b((?:tailspan|hw)_\w+)"

each_panel = pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])


def metrics_in(expr: str) -> set[str]:
    return set(re.findall(METRIC, expr)) - LABELS


def test_committed_is_generated() -> None:
    built = runpy.run_path(str(FOLDER / "build.py"))["built"]
    assert built() == COMMITTED.read_text(), "run: python dashboards/build.py"


@each_panel
def test_a_panel_asks_a_question(panel: dict[str, Any]) -> None:
    assert panel["title"].endswith("?")
    assert [other["title"] for other in PANELS].count(panel["title"]) == 1


@each_panel
def test_its_description_ends_in_the_metric_that_answers(panel: dict[str, Any]) -> None:
    metric = panel["description"].rpartition(" ")[2]
    assert metric in {known.name for known in semconv.METRICS}
    assert any(metric == EXPOSED[name].name for target in panel["targets"] for name in metrics_in(target["expr"]))


@each_panel
def test_it_asks_for_metrics_and_labels_that_exist(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        expr = target["expr"]
        assert metrics_in(expr)
        assert metrics_in(expr) <= set(EXPOSED)
        for name, selector in re.findall(METRIC + r"\{([^}]*)\}", expr):
            asked = set(re.findall(r"(\w+)[!=]~?\"", selector))
            assert asked <= {"job", "instance", *EXPOSED[name].labels}
            assert {"job", "instance"} <= asked
        known = {label for name in metrics_in(expr) for label in EXPOSED[name].labels} | {"le", "instance"}
        for grouped in re.findall(r"\bby \(([^)]*)\)", expr):
            assert set(grouped.split(", ")) <= known
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= known


@each_panel
def test_counters_are_asked_for_their_rate_and_gauges_are_not(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        for rated, name in re.findall(r"(rate\()?" + METRIC + r"\{", target["expr"]):
            assert bool(rated) is (EXPOSED[name].kind != "gauge")
        assert set(re.findall(r"\[([^]]*)\]", target["expr"])) <= {"$__rate_interval"}


@each_panel
def test_it_has_a_unit_and_the_chosen_data_source(panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == source
    assert all(target["datasource"] == source for target in panel["targets"])


@each_panel
def test_percentiles_by_name_show_exemplars(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        shows = "histogram_quantile" in target["expr"] and "by (le, name)" in target["expr"]
        assert target["exemplar"] is shows


def test_nobody_edits_it_and_links_to_it_stay_good() -> None:
    assert DASHBOARD["editable"] is False
    assert DASHBOARD["uid"] == "tailspan-requests"
    assert DASHBOARD["tags"] == ["tailspan"]
    assert "__inputs" not in DASHBOARD
    (link,) = DASHBOARD["links"]
    assert (link["tags"], link["includeVars"], link["keepTime"]) == (["tailspan"], True, True)


def test_variables_come_in_order() -> None:
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "job", "instance", "name"]
    for variable in DASHBOARD["templating"]["list"][1:]:
        assert metrics_in(variable["query"]) <= set(EXPOSED)


def test_stats_are_on_top_and_no_panel_covers_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    kinds = [panel["type"] for panel in PANELS]
    assert kinds == sorted(kinds)  # stat before timeseries
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
