"""``python -m dashboards`` writes every dashboard and every file of rules, where they are committed."""

from __future__ import annotations

from pathlib import Path

from dashboards import grafana
from dashboards.rules import alerts, as_yaml, recording
from dashboards.views import VIEWS

HERE = Path(__file__).parent


def files() -> dict[Path, str]:
    """Path -> text."""
    rules = {"recording": recording.GROUPS, "alerts": alerts.GROUPS}
    return {
        **{HERE / f"{view.name}.json": grafana.as_json(view) for view in VIEWS},
        **{HERE / "rules" / f"{name}.yaml": as_yaml(groups) for name, groups in rules.items()},
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
