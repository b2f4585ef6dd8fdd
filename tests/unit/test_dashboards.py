"""The dashboards are what their program builds, ask only for metrics that exist, and keep Grafana's rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from dashboards.__main__ import HERE, files
from dashboards.panels import UP, Look, Panel, TracePanel
from dashboards.rules import Alert, alerts, recording
from dashboards.views import VIEWS

from tailspan.export import semconv
from tailspan.timeline.gpus import CLOCK_EVENTS

NAMES = [view.name for view in VIEWS]
DASHBOARDS: dict[str, dict[str, Any]] = {
    name: json.loads((HERE / f"{name}.json").read_text()) for name in NAMES if (HERE / f"{name}.json").exists()
}
PANELS = [
    pytest.param(dashboard, panel, id=f"{name}: {panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
]
#: Name as it is in a query -> metric.
EXPOSED = {
    name: metric
    for metric in semconv.METRICS
    for name in (
        [f"{metric.name}_{part}" for part in ("bucket", "count", "sum")]
        if metric.kind == "histogram"
        else [metric.name]
    )
}
#: Labels, and values of them, that look like metrics.
NO_METRICS = {label for metric in semconv.METRICS for label in metric.labels} | set(CLOCK_EVENTS)
METRIC = r"\b((?:tailspan|hw)_\w+|up\b)"
RULES = [rule for groups in (recording.GROUPS, alerts.GROUPS) for rules in groups.values() for rule in rules]

each_dashboard = pytest.mark.parametrize("name", NAMES)
each_panel = pytest.mark.parametrize(("dashboard", "panel"), PANELS)

Json = dict[str, Any]


def metrics_in(expr: str) -> set[str]:
    return set(re.findall(METRIC, expr)) - NO_METRICS


def labels_of(metric: str) -> set[str]:
    return {"job", "instance", *(() if metric == UP.name else EXPOSED[metric].labels)}


def is_counter(metric: str) -> bool:
    return metric != UP.name and EXPOSED[metric].kind != "gauge"


def prometheus_queries(panel: Json) -> Iterator[Json]:
    return (target for target in panel["targets"] if "expr" in target)


def test_committed_is_generated() -> None:
    for path, text in files().items():
        assert path.read_text() == text, f"{path.name}: run python -m dashboards"
    assert {path.stem for path in HERE.glob("*.json")} == set(NAMES)


@each_panel
def test_a_panel_asks_a_question(dashboard: Json, panel: Json) -> None:
    assert panel["title"].endswith("?")
    assert [other["title"] for other in dashboard["panels"]].count(panel["title"]) == 1


@each_panel
def test_its_description_ends_in_what_answers(dashboard: Json, panel: Json) -> None:
    kind, answers = panel["description"].split(". ")[-1].split(": ")
    if kind == "Span":
        assert answers == semconv.VERDICT_SPAN.name
        assert all(f'"{answers}"' in target["query"] for target in panel["targets"])
        return
    assert kind == "Metric"
    asked = {name for target in panel["targets"] for name in metrics_in(target["expr"])}
    assert answers in {EXPOSED[name].name if name in EXPOSED else name for name in asked}


@each_panel
def test_it_asks_for_metrics_and_labels_that_exist(dashboard: Json, panel: Json) -> None:
    for target in prometheus_queries(panel):
        expr = target["expr"]
        assert metrics_in(expr)
        assert metrics_in(expr) <= {*EXPOSED, UP.name}
        for name, selector in re.findall(METRIC + r"\{([^}]*)\}", expr):
            asked = set(re.findall(r"(\w+)[!=]~?\"", selector))
            assert {"job", "instance"} <= asked <= labels_of(name)
        known = {label for name in metrics_in(expr) for label in labels_of(name)} | {"le"}
        for grouped in re.findall(r"\bby \(([^)]*)\)", expr):
            assert set(grouped.split(", ")) <= known
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= known


@each_panel
def test_it_asks_for_attributes_that_exist(dashboard: Json, panel: Json) -> None:
    known = {attribute.name for attribute in semconv.ATTRIBUTES}
    for target in panel["targets"]:
        assert set(re.findall(r"\bspan\.([\w.]+)", target.get("query", ""))) <= known


@each_panel
def test_counters_are_asked_for_their_rate_and_gauges_are_not(dashboard: Json, panel: Json) -> None:
    for target in prometheus_queries(panel):
        for rated, name in re.findall(r"(rate\()?" + METRIC + r"\{", target["expr"]):
            assert bool(rated) is is_counter(name)
        assert set(re.findall(r"\[([^]]*)\]", target["expr"])) <= {"$__rate_interval"}


@each_panel
def test_it_has_a_unit_and_a_chosen_data_source(dashboard: Json, panel: Json) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    known = ({"type": "prometheus", "uid": "${datasource}"}, {"type": "tempo", "uid": "${tempo}"})
    assert panel["datasource"] in known
    assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@each_panel
def test_percentiles_by_name_show_exemplars(dashboard: Json, panel: Json) -> None:
    for target in prometheus_queries(panel):
        shows = "histogram_quantile" in target["expr"] and "by (le, name)" in target["expr"]
        assert target["exemplar"] is shows


@each_panel
def test_a_table_is_of_now(dashboard: Json, panel: Json) -> None:
    for target in prometheus_queries(panel):
        is_table = panel["type"] == "table"
        assert target.get("instant", False) is is_table
        assert (target.get("format") == "table") is is_table


@each_dashboard
def test_nobody_edits_it_and_links_to_it_stay_good(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert dashboard["editable"] is False
    assert dashboard["uid"] == f"tailspan-{name}"
    assert dashboard["tags"] == ["tailspan"]
    assert "__inputs" not in dashboard
    (link,) = dashboard["links"]
    assert (link["tags"], link["includeVars"], link["keepTime"]) == (["tailspan"], True, True)


@each_dashboard
def test_it_has_the_variables_that_its_queries_use(name: str) -> None:
    dashboard = DASHBOARDS[name]
    variables = dashboard["templating"]["list"]
    names = [variable["name"] for variable in variables]
    assert names == [each for each in ("datasource", "tempo", "job", "instance", "name") if each in names]
    asked = json.dumps(dashboard["panels"])
    used = set(re.findall(r"\$\{?([a-z]\w*)", asked))
    assert set(names) == used
    for variable in variables:
        if variable["type"] == "query":
            assert metrics_in(variable["query"]) <= set(EXPOSED)


@each_dashboard
def test_stats_are_on_top_and_no_panel_covers_another(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    panels = DASHBOARDS[name]["panels"]
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    stats = [panel["type"] == "stat" for panel in panels if panel["type"] != "row"]
    assert stats[0]
    assert stats == sorted(stats, reverse=True)
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_every_metric_is_asked_for_somewhere() -> None:
    panels = [panel for view in VIEWS for row in view.rows.values() for panel in row]
    of_panels = [query for panel in panels if isinstance(panel, Panel) for query in panel.queries.values()]
    exprs = " ".join((*of_panels, *(rule.expr for rule in RULES)))
    assert {EXPOSED[name] for name in metrics_in(exprs) & EXPOSED.keys()} == set(semconv.METRICS)


def test_every_look_and_source_is_of_some_panel() -> None:
    panels = [panel for view in VIEWS for row in view.rows.values() for panel in row]
    assert {panel.look for panel in panels} == set(Look)
    assert any(isinstance(panel, TracePanel) for panel in panels)


def test_grafana_finds_the_data_sources_and_dashboards_by_what_is_provisioned() -> None:
    sources = (HERE / "provisioning" / "datasources" / "tailspan.yaml").read_text()
    uids = set(re.findall(r"^    uid: (\w+)$", sources, re.M))
    assert uids == {"prometheus", "tempo"}
    assert set(re.findall(r"datasourceUid: (\w+)", sources)) == uids
    assert metrics_in(sources) <= set(EXPOSED)
    folder = (HERE / "provisioning" / "dashboards" / "tailspan.yaml").read_text()
    assert re.search(r"^      path: /\S+$", folder, re.M)


def test_alerts_open_dashboards_that_exist() -> None:
    assert {rule.dashboard for rule in RULES if isinstance(rule, Alert)} <= set(NAMES)
