"""Alerts and recording rules: what they ask exists, what they say can be read, and each leads to a runbook."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dashboards.__main__ import HERE
from dashboards.rules import GRAFANA_URL, JOB, RUNBOOKS_URL, Alert, Recording, Severity, alerts, recording

from tailspan.cli.parser import build
from tailspan.export import semconv
from tests.prometheus import promtool
from tests.unit.test_dashboards import EXPOSED, is_counter, labels_of, metrics_in

DOCS = Path(__file__).parents[2] / "docs"
RUNBOOKS = DOCS / "runbooks"
TESTS = HERE / "rules" / "tests.yaml"
ALERTS = [rule for rules in alerts.GROUPS.values() for rule in rules if isinstance(rule, Alert)]
RECORDINGS = [rule for rules in recording.GROUPS.values() for rule in rules if isinstance(rule, Recording)]
RECORDED = {rule.record: rule for rule in RECORDINGS}
SECTIONS = ["What it means", "How to check", "What to do"]

each_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
each_recording = pytest.mark.parametrize("rule", RECORDINGS, ids=lambda rule: rule.record)


def recorded_in(expr: str) -> set[str]:
    return set(re.findall(r"\b\w+:\w+:\w+\b", expr))


def without_recorded(expr: str) -> str:
    return re.sub(r"\b\w+:\w+:\w+\b", "", expr)


def assert_known(expr: str) -> None:
    """Metrics exist, with the labels that are asked of them; counters are asked for their rate."""
    names = metrics_in(without_recorded(expr))
    assert names <= {*EXPOSED, "up"}
    for name, selector in re.findall(r"\b([a-z]\w+)\{([^}]*)\}", without_recorded(expr)):
        assert set(re.findall(r"(\w+)[!=]~?\"", selector)) <= labels_of(name)
    for name in names:
        rated = re.findall(rf"(?:rate|increase)\({name}\b", expr)
        assert len(rated) == (len(re.findall(rf"\b{name}\b", expr)) if is_counter(name) else 0)


@each_recording
def test_a_recording_is_named_by_level_metric_and_operations(rule: Recording) -> None:
    level, metric, operations = rule.record.split(":")
    assert metric.startswith("tailspan_")
    assert re.fullmatch(r"(rate5m|ratio|ratio_rate5m|p99_rate5m)", operations)
    kept = set(re.findall(r"\bby \(([^)]*)\)", rule.expr)[0].split(", ")) if " by (" in rule.expr else None
    if kept is not None:
        assert kept - {"job", "le"} == _labels_of_level(level)
        assert "job" in kept


def _labels_of_level(level: str) -> set[str]:
    """``instance_hw_id_reason`` -> instance, hw_id, reason."""
    return set(level.replace("hw_id", "hw.id").replace("_", " ").replace("hw.id", "hw_id").split())


@each_recording
def test_a_recording_asks_for_what_exists_and_is_asked_for(rule: Recording) -> None:
    assert_known(rule.expr)
    assert any(rule.record in recorded_in(alert.expr) for alert in ALERTS)


@each_alert
def test_an_alert_asks_for_what_exists(alert: Alert) -> None:
    assert re.fullmatch(r"Tailspan([A-Z][a-z]+)+", alert.name)
    assert_known(alert.expr)
    assert recorded_in(alert.expr) <= RECORDED.keys()
    assert metrics_in(without_recorded(alert.expr)) or recorded_in(alert.expr)
    assert alert.severity in Severity
    assert alert.lasts == "" or re.fullmatch(r"\d+m", alert.lasts)


@each_alert
def test_an_alert_says_what_it_can_know(alert: Alert) -> None:
    """Every label that its text names is one that the expression keeps."""
    said = set(re.findall(r"\$labels\.(\w+)", f"{alert.summary} {alert.description}"))
    grouped = re.search(r"^sum by \(([^)]*)\)", alert.expr)
    if grouped:
        kept = set(grouped[1].split(", "))
    elif recorded_in(alert.expr):
        kept = {"job", *_labels_of_level(re.findall(r"\b(\w+):\w+:\w+\b", alert.expr)[0])}
        if alert.expr.startswith(tuple(EXPOSED)):
            kept |= labels_of(re.findall(r"\w+", alert.expr)[0])
    else:
        kept = {label for name in metrics_in(alert.expr) for label in labels_of(name)}
    assert said <= kept
    assert alert.of_host is ({"job", "instance"} <= kept and "absent(" not in alert.expr)
    assert not alert.summary.endswith(".")
    assert alert.description.endswith(".")


@each_alert
def test_an_alert_leads_to_its_runbook_and_dashboard(alert: Alert) -> None:
    annotations = alert.annotations()
    assert set(annotations) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert annotations["runbook_url"] == f"{RUNBOOKS_URL}/{alert.name}.md"
    assert annotations["dashboard_url"].startswith(f"{GRAFANA_URL}/d/tailspan-{alert.dashboard}")
    assert (HERE / f"{alert.dashboard}.json").exists()
    assert (RUNBOOKS / alert.runbook).exists()


def test_alerts_have_names_of_their_own() -> None:
    assert len({alert.name for alert in ALERTS}) == len(ALERTS)
    assert all(f'job="{JOB}"' in alert.expr for alert in ALERTS if re.search(r"\bup\b", alert.expr))


@each_alert
def test_a_runbook_has_its_parts(alert: Alert) -> None:
    text = (RUNBOOKS / alert.runbook).read_text()
    assert text.startswith(f"# {alert.name}\n")
    assert re.findall(r"^## (.+)$", text, re.M) == SECTIONS
    after = f"after {alert.lasts}" if alert.lasts else "at once"
    assert f"Severity: {alert.severity}, {after}." in text
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (RUNBOOKS / link).exists(), link


@each_alert
def test_commands_and_names_in_a_runbook_exist(alert: Alert) -> None:
    text = (RUNBOOKS / alert.runbook).read_text()
    for command in re.findall(r"^    (?:sudo )?tailspan (.+?)(?:  .*)?$", text, re.M):
        build().parse_args(command.replace("<trace-id>", "4bf92f35").split())
    assert metrics_in(text) <= {*EXPOSED, *(metric.name for metric in semconv.METRICS), "up"}


def test_the_list_of_runbooks_is_whole() -> None:
    listed = re.findall(r"\]\((\w+\.md)\)", (RUNBOOKS / "README.md").read_text())
    there = {path.name for path in RUNBOOKS.glob("*.md")} - {"README.md"}
    assert listed == [alert.runbook for alert in ALERTS]
    assert set(listed) == there


def test_every_alert_is_fired_in_promtools_tests() -> None:
    assert set(re.findall(r'ALERTS\{.*?alertname="(\w+)"', TESTS.read_text())) == {alert.name for alert in ALERTS}


def test_promtool_accepts_the_rules() -> None:
    checked = promtool(
        "check", "rules", *(str(HERE / "rules" / f"{name}.yaml") for name in ("recording", "alerts"))
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    assert f"{len(ALERTS)} rules found" in checked.stdout
    assert f"{len(RECORDINGS)} rules found" in checked.stdout


def test_alerts_fire_when_they_should_and_not_before() -> None:
    tested = promtool("test", "rules", str(TESTS))
    assert tested.returncode == 0, tested.stdout + tested.stderr
