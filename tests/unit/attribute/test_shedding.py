"""What a verdict says of what the agent did without: that it is not known, and never that it was not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tailspan.attribute.causes import CAUSES, Cause
from tailspan.attribute.judge import judge
from tailspan.attribute.shedding import STEPS, overlap_ns, shed_during, were_seen
from tailspan.attribute.verdict import Outcome, Shed, Verdict
from tailspan.export import payload, semconv
from tailspan.export.verdict_spans import _verdict_attributes
from tailspan.timeline.evidence import Evidence, Meta
from tailspan.views.explain import as_json, as_text
from tests.timelines import MS, Timeline

COST = Path(__file__).parents[3] / "docs" / "cost.md"


def waited(slices: bool = False, **meta: object) -> Evidence:
    """A request of 100 ms that waited 80 of them for a CPU."""
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.waits(1, 10, 90, cpu=1)
    if slices:
        timeline.slice(1, 10, 90, 771, "backup")
    timeline.runs(1)
    timeline.meta = replace(timeline.meta, **meta)  # type: ignore[arg-type]
    return timeline.evidence()


def judged(evidence: Evidence) -> Verdict:
    (verdict,) = judge(evidence)
    return verdict


def test_who_had_the_cpu_is_not_known_where_slices_were_shed_and_why_is_said_everywhere() -> None:
    verdict = judged(waited(shed={"slices/cpu": [[0, 50 * MS]]}))

    why = "who had the CPU is not known: neighbours' slices were shed, the agent was above its CPU budget"
    assert (verdict.cause, verdict.culprit) == (Cause.RUN_QUEUE, None)
    assert f"t1 thread 1 was ready to run, and {why}" in verdict.sentence
    assert why in verdict.trust.notes
    assert verdict.trust.shed == (Shed("slices", "cpu"),)
    assert as_json(verdict)["trust"]["shed"] == [{"step": "slices", "why": "cpu"}]
    assert "neighbours' slices were shed" in " ".join(as_text(verdict).split())
    attributes = _verdict_attributes(verdict)
    assert attributes[semconv.SHED.name] == ["slices"]
    assert attributes[semconv.NOTES.name] == list(verdict.trust.notes)


def test_it_is_sure_again_where_they_were_there() -> None:
    verdict = judged(waited(slices=True, shed={"slices/memory": [[100 * MS, 200 * MS]]}))
    assert verdict.culprit is not None
    assert verdict.culprit.pid == 771
    assert verdict.trust.shed == ()
    assert semconv.SHED.name not in _verdict_attributes(verdict)


def test_what_cannot_be_seen_is_not_ruled_out() -> None:
    all_seen = judged(waited(slices=True)).ruled_out
    without = judged(waited(shed={"slices/cpu": [[0, 1]]})).ruled_out
    assert CAUSES[Cause.IRQ].label in all_seen
    assert set(all_seen) - set(without) == {CAUSES[Cause.IRQ].label}

    gpus = [{"uuid": "GPU-1", "name": "fake", "index": "0"}]
    of_gpu = {info.label for info in CAUSES.values() if info.probe == "gpu" and info.accuses}
    timeline = Timeline()
    timeline.request(0, 100, tid=1, device="GPU-1")
    timeline.runs(1)
    timeline.meta = replace(timeline.meta, gpus=gpus)
    seen = timeline.evidence()
    shed = replace(seen, meta=replace(seen.meta, shed={"gpu_calls/memory": [[0, 1]]}))
    assert of_gpu <= set(judged(seen).ruled_out)
    assert not of_gpu & set(judged(shed).ruled_out)
    assert (
        "what waits for a GPU were for is not known: CUDA calls were shed, the agent was above its memory budget"
        in judged(shed).trust.notes
    )


def test_a_request_in_a_turn_without_probes_is_inconclusive_and_says_why() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 2, 5, 5)
    timeline.falls_silent(1)
    timeline.meta = replace(timeline.meta, probes_off=[[-50 * MS, -20 * MS], [5 * MS, 95 * MS]])
    verdict = judged(timeline.evidence())

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.sentence.endswith("could not be seen (probes were off: cost was being measured).")
    assert "for 90.0 ms probes were off: cost was being measured" in verdict.trust.notes
    assert verdict.trust.probes_off_ns == 90 * MS
    assert verdict.ruled_out == ()
    assert _verdict_attributes(verdict)[semconv.PROBES_OFF.name] == pytest.approx(0.09)


def test_an_instant_without_probes_takes_nothing_from_a_verdict_but_is_noted() -> None:
    verdict = judged(waited(slices=True, probes_off=[[99_900_000, 200 * MS]]))
    assert verdict.outcome is Outcome.NAMED
    assert "for 0.1 ms probes were off: cost was being measured" in verdict.trust.notes
    assert verdict.ruled_out != ()


def test_evidence_keeps_what_was_shed_and_older_evidence_has_nothing_of_it() -> None:
    evidence = waited(shed={"slices/cpu": [[0, 50 * MS]]}, probes_off=[[1, 2]])
    assert judged(payload.decode(b"".join(payload.encode(evidence)))) == judged(evidence)
    assert (Meta().shed, Meta().probes_off) == ({}, [])


def test_steps_that_a_later_version_has_are_passed_over() -> None:
    assert shed_during(Meta(shed={"tomorrow/cpu": [[0, 9]], "slices": [[0, 9]]}), 0, 5) == (Shed("slices", ""),)
    assert "above its budget" in " ".join(judged(waited(shed={"slices": [[0, MS]]})).trust.notes)


def test_what_is_normal_is_learned_with_probes_on() -> None:
    timeline = Timeline()
    for at in (0, 10, 20, 30):
        timeline.request(at, at + 5, tid=1)
    requests = timeline.evidence().requests
    off = Meta(probes_off=[[12 * MS, 13 * MS], [25 * MS, 30 * MS]])
    assert were_seen(requests, off).tolist() == [True, False, True, True]
    assert were_seen(requests, Meta()).all()


def test_overlaps_are_summed_and_touching_is_none() -> None:
    assert overlap_ns([[0, 10], [20, 30]], 5, 25) == 10
    assert overlap_ns([[0, 10]], 10, 20) == overlap_ns([], 0, 9) == 0


def test_the_page_has_the_steps_in_their_order_with_what_they_save_and_leave_unsaid() -> None:
    rows = [line for line in COST.read_text().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [step.name for step in STEPS]
    for row, step in zip(rows, STEPS, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:] == [step.what, step.saves, step.unsaid or "nothing"]
