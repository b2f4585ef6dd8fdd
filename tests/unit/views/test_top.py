from __future__ import annotations

import json
from dataclasses import replace

from tailspan.export.segment import IndexRow
from tailspan.views import top
from tailspan.views.top import Sum
from tests.builders import MS, sample_verdict

ROW = IndexRow.of(sample_verdict())
FUTEX = replace(ROW, cause="futex", cause_ns=23 * MS, culprit="batcher[8120]", name="GET /v1/other")
NOBODY = replace(ROW, cause="none", cause_ns=0, culprit="", outcome="inconclusive")


def test_rows_add_up_by_cause_culprit_and_route() -> None:
    summed = top.add_up([FUTEX, ROW, ROW])
    assert summed.requests == 3
    assert summed.causes == (Sum("run_queue", 2, 722 * MS, 361 * MS), Sum("futex", 1, 23 * MS, 23 * MS))
    assert [s.name for s in summed.culprits] == ["stress-ng[9001]", "batcher[8120]"]
    above_normal = ROW.wall_ns - ROW.normal_ns
    assert summed.routes == (
        Sum("POST /v1/infer", 2, 2 * above_normal, above_normal),
        Sum("GET /v1/other", 1, above_normal, above_normal),
    )


def test_request_without_a_cause_is_not_left_out_of_the_sums() -> None:
    summed = top.add_up([NOBODY])
    assert summed.causes == (Sum("inconclusive", 1, ROW.wall_ns - ROW.normal_ns, ROW.wall_ns - ROW.normal_ns),)
    assert summed.culprits == ()


def test_equal_sums_are_in_order_of_their_names() -> None:
    rows = [replace(ROW, culprit=name) for name in ("b", "c", "a")]
    assert [s.name for s in top.add_up(rows).culprits] == ["a", "b", "c"]


def test_text_has_the_largest_first_and_folds_the_rest() -> None:
    rows = [replace(ROW, culprit=f"p{at}[{at}]", cause_ns=(100 - at) * MS) for at in range(23)]
    text = top.as_text(top.add_up(rows), 80)
    assert text.startswith("23 slow requests\n\ncause")
    assert text.index("p0[0]") < text.index("p1[1]")
    assert "p10[10]" not in text
    assert "13 others" in text
    assert max(map(len, text.splitlines())) <= 80


def test_json_is_of_plain_types() -> None:
    body = json.loads(json.dumps(top.as_json(top.add_up([ROW]))))
    assert body["causes"] == [{"name": "run_queue", "requests": 1, "total_ns": 361 * MS, "worst_ns": 361 * MS}]
    assert list(body) == ["requests", "causes", "culprits", "routes"]
