"""Recording rules and alerts for Prometheus, as data, and the YAML that it reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from textwrap import indent

from dashboards.panels import uid

#: Where the reader's own copies are served: reserved names (RFC 2606) that lead nowhere until they are replaced.
RUNBOOKS_URL = "https://docs.example.com/tailspan/runbooks"
GRAFANA_URL = "https://grafana.example.com"
#: The scrape job's name that alerts on ``up`` go by.
JOB = "tailspan"

HEAD = "# Written by `python -m dashboards` from the Python files in this folder. Change those.\n"


class Severity(StrEnum):
    CRITICAL = "critical"  #: requests fail, or soon will: somebody should look now
    WARNING = "warning"  #: somebody should look today
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Recording:
    record: str  #: ``level:metric:operations``
    expr: str


@dataclass(frozen=True, slots=True)
class Alert:
    name: str
    expr: str
    lasts: str  #: how long it must hold, in Prometheus' words; "" to alert at once
    severity: Severity
    summary: str  #: one line with the value, in Prometheus' template language
    description: str  #: what it means for who reads it
    dashboard: str  #: the name of a view
    of_host: bool = True  #: it has the labels job and instance

    @property
    def runbook(self) -> str:
        return f"{self.name}.md"

    def annotations(self) -> dict[str, str]:
        chosen = "&".join(f"var-{label}={{{{ $labels.{label} }}}}" for label in ("job", "instance"))
        url = f"{GRAFANA_URL}/d/{uid(self.dashboard)}"
        return {
            "summary": self.summary,
            "description": self.description,
            "runbook_url": f"{RUNBOOKS_URL}/{self.runbook}",
            "dashboard_url": f"{url}?{chosen}" if self.of_host else url,
        }


Groups = Mapping[str, tuple[Recording | Alert, ...]]


def as_yaml(groups: Groups) -> str:
    """A file of rules. Text is quoted as JSON has it, which YAML understands."""
    return HEAD + "groups:\n" + "".join(_group(name, rules) for name, rules in groups.items())


def _group(name: str, rules: Iterable[Recording | Alert]) -> str:
    return f"  - name: {name}\n    rules:\n" + "".join(_rule(rule) for rule in rules)


def _rule(rule: Recording | Alert) -> str:
    lines = [f"{'alert' if isinstance(rule, Alert) else 'record'}: {_name(rule)}", "expr: |-"]
    lines += indent(rule.expr, "  ").splitlines()
    if isinstance(rule, Alert):
        if rule.lasts:
            lines.append(f"for: {rule.lasts}")
        lines += ["labels:", f"  severity: {rule.severity}", "annotations:"]
        lines += [f"  {key}: {json.dumps(text)}" for key, text in rule.annotations().items()]
    first, *rest = lines
    return "".join((f"      - {first}\n", *(f"        {line}\n" for line in rest)))


def _name(rule: Recording | Alert) -> str:
    return rule.name if isinstance(rule, Alert) else rule.record
