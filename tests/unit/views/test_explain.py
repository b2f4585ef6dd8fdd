from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import Culprit, CulpritKind, Like, Outcome, Part, Step, Trust
from tailspan.views import explain
from tests.builders import MS, WALL_NS, sample_request, sample_step, sample_verdict

GOLDEN = Path(__file__).parents[2] / "golden" / "explain_run_queue.txt"


def many_steps(count: int) -> tuple[Step, ...]:
    """Steps that tile the request; every fifth is long."""
    lengths = [40 if at % 5 == 0 else 1 for at in range(count)]
    cuts = [WALL_NS * sum(lengths[:at]) // sum(lengths) for at in range(count + 1)]
    causes = (Cause.RUN_QUEUE, Cause.ON_CPU, Cause.FUTEX)
    return tuple(sample_step(causes[at % 3], start, end) for at, (start, end) in enumerate(pairwise(cuts)))


@pytest.mark.parametrize(("width", "shown"), [(80, False), (120, True)])
def test_where_a_culprit_runs_stands_beside_it_where_there_is_room(width: int, shown: bool) -> None:
    pod = (("k8s.namespace.name", "batch"), ("k8s.pod.name", "etl-7"))
    hog = Culprit(CulpritKind.PROCESS, 358 * MS, "stress-ng[9001]", 9001, identity=pod)
    ledger = (Part(Cause.RUN_QUEUE, WALL_NS, 0, (hog,)),)
    lines = explain.as_text(sample_verdict(ledger=ledger), width).splitlines()
    (line,) = (line for line in lines if "358.0 stress-ng[9001]" in line)
    assert line.endswith("in pod batch/etl-7" if shown else "358.0 stress-ng[9001]")
    assert explain.as_json(sample_verdict(culprit=hog))["verdict"]["culprit"]["identity"] == dict(pod)


def waterfall_of(text: str) -> list[str]:
    """The lines below the waterfall's head."""
    return text.split("\n\n")[2].splitlines()[1:]


def test_text_of_a_request_behind_a_cpu_hog_is_the_golden_one() -> None:
    assert explain.as_text(sample_verdict()) + "\n" == GOLDEN.read_text()


def test_sentence_stands_right_below_the_headline() -> None:
    lines = explain.as_text(sample_verdict(sentence="374 ms above normal.")).splitlines()
    assert lines[2] == "374 ms above normal."


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("count", [3, 400])
def test_no_line_is_wider_than_asked(width: int, count: int) -> None:
    culprits = tuple(Culprit(CulpritKind.PROCESS, MS, f"a-neighbour-{pid}[{pid}]", pid) for pid in range(23))
    ledger = (Part(Cause.RUN_QUEUE, WALL_NS, 0, culprits),)
    trust = Trust(0.9, 23, 12_000, 60 * MS, ("a note that is long " * 10,))
    verdict = sample_verdict(
        ledger=ledger, trust=trust, waterfall=many_steps(count), request=sample_request(request_id="r" * 48)
    )
    assert max(len(line) for line in explain.as_text(verdict, width).splitlines()) <= width


def test_narrow_terminal_gets_the_least_width_that_says_something() -> None:
    assert explain.as_text(sample_verdict(), 5) == explain.as_text(sample_verdict(), 60)


@pytest.mark.parametrize("count", [1, 25, 26, 399])
def test_waterfall_fits_and_leaves_no_time_out(count: int) -> None:
    lines = waterfall_of(explain.as_text(sample_verdict(waterfall=many_steps(count)), 120))
    assert len(lines) <= explain.MAX_LINES
    shown_ms = sum(float(line.split()[1]) for line in lines)
    assert shown_ms == pytest.approx(WALL_NS / 1e6, abs=0.05 * len(lines))


def test_longest_steps_are_kept_and_the_short_ones_between_them_summed() -> None:
    # GIVEN 60 steps, of which every fifth is long
    lines = waterfall_of(explain.as_text(sample_verdict(waterfall=many_steps(60)), 160))
    # THEN the 12 long ones stand alone, and what lies between is told in one line each
    assert sum("8123 ort" in line for line in lines) == 12
    folded = [line for line in lines if "4 short: " in line]
    assert len(folded) == 12
    assert re.search(r"4 short: on cpu 1\.\d, run queue 0\.\d, blocked: futex 0\.\d$", folded[0])


def test_more_culprits_than_fit_are_counted() -> None:
    culprits = tuple(Culprit(CulpritKind.PROCESS, MS, f"p{pid}[{pid}]", pid) for pid in range(23))
    text = explain.as_text(sample_verdict(ledger=(Part(Cause.RUN_QUEUE, WALL_NS, 0, culprits),)), 80)
    assert "1.0 p0[0]" in text
    assert "1.0 p2[2]" in text
    assert "p3[3]" not in text
    assert "+20 more" in text


def test_coverage_is_rounded_down_so_that_100_means_all() -> None:
    trust = Trust(0.99999, 0, 12_000, None, ())
    assert "coverage 99.9 %" in explain.as_text(sample_verdict(trust=trust))


def test_trust_line_tells_losses_and_the_age_of_gpu_facts() -> None:
    trust = Trust(1.0, 23, 12_000, 60 * MS, ("probe irq is off: no BTF",))
    text = explain.as_text(sample_verdict(trust=trust), 120)
    assert "lost 23" in text
    assert "GPU sample age 60.0 ms" in text
    assert "notes: probe irq is off: no BTF" in text
    assert "no GPU facts" in explain.as_text(sample_verdict())


def test_request_without_like_ones_batch_model_or_id_has_a_headline() -> None:
    request = sample_request(request_id="", model="", batch_id=0, status="timeout")
    head = explain.as_text(sample_verdict(request=request, like=Like(0, 0, 0, 0)), 200).splitlines()[0]
    assert head.startswith(f"request {request.span_id}  trace {request.trace_id}  POST /v1/infer  status timeout")
    assert head.endswith("(no like requests)")


def test_waterfall_may_be_empty() -> None:
    assert "for ms" not in explain.as_text(sample_verdict(waterfall=()))


def test_escapes_in_a_neighbours_name_never_reach_the_terminal() -> None:
    evil = Culprit(CulpritKind.PROCESS, MS, "\x1b[2Jevil\n[1]", 1)
    verdict = sample_verdict(
        ledger=(Part(Cause.RUN_QUEUE, WALL_NS, 0, (evil,)),),
        waterfall=(Step(0, WALL_NS, "\x1b]0;", 1, "\x07", Cause.RUN_QUEUE, "\x1b[2J"),),
        sentence="\x1b[2J",
        request=sample_request(name="\x1b", model="\x1b", request_id="\x1b"),
    )
    assert "\x1b" not in explain.as_text(verdict)
    assert "\x07" not in explain.as_text(verdict)


def test_colour_adds_escapes_and_changes_nothing_else() -> None:
    verdict = sample_verdict()
    coloured = explain.as_text(verdict, 80, colour=True)
    assert "\x1b[31m" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == explain.as_text(verdict, 80)


def test_json_ledger_sums_to_the_wall_time() -> None:
    body = explain.as_json(sample_verdict())
    assert sum(part["ns"] for part in body["ledger"]) == body["request"]["wall_ns"] == WALL_NS
    assert body["ledger"][0]["cause"] == "run_queue"
    assert body["ledger"][0]["culprits"] == [
        {
            "kind": "process",
            "ns": 358 * MS,
            "label": "stress-ng[9001]",
            "pid": 9001,
            "tid": 9001,
            "comm": "stress-ng",
            "cgroup": "/batch.slice",
            "owner": "",
            "identity": {},
        }
    ]


def test_json_has_the_verdict_and_what_it_rests_on() -> None:
    body = explain.as_json(sample_verdict())
    assert list(body) == ["request", "like", "verdict", "ledger", "waterfall", "trust"]
    assert body["verdict"]["cause"] == "run_queue"
    assert body["verdict"]["culprit"]["pid"] == 9001
    assert body["verdict"]["alternatives"] == [
        {"cause": "futex", "culprit": None, "excess_ns": 6 * MS, "why_not": "6 ms of 374"}
    ]
    assert body["trust"] == {
        "coverage": 1.0,
        "lost": 0,
        "clock_error_ns": 12_000,
        "gpu_sample_age_ns": None,
        "notes": [],
        "shed": [],
        "probes_off_ns": 0,
    }
    assert body["waterfall"][-1]["end_ns"] == WALL_NS


def test_how_the_thread_is_known_and_what_does_not_fit_is_told() -> None:
    note = "the thread was inferred: it read the request from its socket"
    verdict = sample_verdict(
        request=sample_request(join="socket", broken=2), trust=Trust(1.0, 0, 12_000, None, (note,))
    )
    request = explain.as_json(verdict)["request"]
    assert (request["join"], request["broken"]) == ("socket", 2)
    assert f"notes: {note}" in explain.as_text(verdict, 120)


def test_json_is_of_plain_types_and_the_same_bytes_each_time() -> None:
    once, again = (json.dumps(explain.as_json(sample_verdict())) for _ in range(2))
    assert once == again
    assert json.loads(once) == explain.as_json(sample_verdict())


def test_json_of_an_inconclusive_verdict_names_nobody() -> None:
    verdict = sample_verdict(outcome=Outcome.INCONCLUSIVE, cause=None, culprit=None)
    body = explain.as_json(verdict)["verdict"]
    assert (body["outcome"], body["cause"], body["culprit"]) == ("inconclusive", None, None)
