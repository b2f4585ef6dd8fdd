"""What Helm makes of the chart, and what Kubernetes' schemas say to that. As JSON, for one set of values:

    python -m tests.packaging.chart '{"otlpEndpoint": "http://collector:4317"}'

A process of its own: the wheel with Helm's library starts a Go runtime in whoever loads it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml

CHART = Path(__file__).parents[2] / "packaging" / "helm" / "tailspan"
#: The oldest that the chart takes, and later ones.
VERSIONS = ("1.25", "1.29", "1.33", "1.37")


def main() -> None:
    values = json.loads(sys.argv[1])
    report = helm_python.lint(CHART, values, strict=True)
    refused, resources = "", []
    with helm_python.Chart.load(CHART) as chart:
        try:
            chart.validate_schema(values)
            resources = rendered(chart.render(values, name="tailspan", namespace="observability"))
        except helm_python.HelmError as error:
            refused = str(error)
    findings = [said["error"] for said in report["messages"] if said["severity"] > 1] + report["errors"]
    unknown = sorted({each["kind"] for each in resources if not valid(each)})
    print(json.dumps({"refused": refused, "findings": findings, "resources": resources, "unknown": unknown}))


def rendered(manifests: dict[str, str]) -> list[dict[str, Any]]:
    found = []
    for path, text in sorted(manifests.items()):
        if path.endswith(".yaml"):
            found += [document for document in yaml.safe_load_all(text) if document]
    return found


def valid(resource: dict[str, Any]) -> bool:
    """By each version's strict schema; False for a kind that is not Kubernetes' own. Raises for a wrong one."""
    try:
        for version in VERSIONS:
            kubernetes_validate.validate(resource, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
