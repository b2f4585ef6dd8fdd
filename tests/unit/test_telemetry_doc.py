"""docs/telemetry.md says what is exported, all of it."""

import re
import runpy
from pathlib import Path

from tailspan.export import semconv

FOLDER = Path(__file__).parents[2] / "docs"
COMMITTED = (FOLDER / "telemetry.md").read_text()
NAMES, _, BOUNDS = COMMITTED.partition("### How many series")


def test_committed_is_generated() -> None:
    built = runpy.run_path(str(FOLDER / "telemetry.py"))["built"]
    assert built() == COMMITTED, "run: python docs/telemetry.py"


def test_every_name_has_one_row() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", NAMES, re.M)
    spans = [semconv.VERDICT_SPAN, *semconv.STEP_SPANS.values()]
    assert sorted(rows) == sorted(each.name for each in (*spans, *semconv.ATTRIBUTES, *semconv.METRICS))


def test_every_row_has_its_columns() -> None:
    columns = {len(line.split(" | ")) for line in COMMITTED.splitlines() if line.startswith("| `")}
    assert columns == {2, 3, 7, 8}


def test_every_topic_has_a_heading() -> None:
    headings = re.findall(r"^### (.+)$", COMMITTED, re.M)
    assert headings == [*semconv.TOPICS, "How many series"]


def test_every_bound_of_its_own_is_said() -> None:
    bounded = {metric.name for metric in semconv.METRICS if metric.limit != semconv.BUILD_INFO.limit}
    assert set(re.findall(r"^\| `([^`]+)` \|", BOUNDS, re.M)) == bounded
