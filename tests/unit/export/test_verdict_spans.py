from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan

from tailspan import __version__
from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import Step, Verdict
from tailspan.export import semconv
from tailspan.export.verdict_spans import child_span_id, merged, spans_of
from tests.builders import MS, PARENT_ID, SPAN_ID, TRACE_ID, WALL_NS, sample_request, sample_step, sample_verdict


def _spans(verdict: Verdict, resource: dict[str, str] | None = None) -> list[ReadableSpan]:
    return spans_of(verdict, resource or {}, "node-1")


def _summary(verdict: Verdict) -> dict[str, object]:
    (summary,) = [span for span in _spans(verdict) if span.name == semconv.VERDICT_SPAN.name]
    return dict(summary.attributes or {})


def test_spans_are_children_of_the_workers_request_span_in_its_trace() -> None:
    for span in _spans(sample_verdict()):
        assert span.context is not None and span.parent is not None
        assert f"{span.context.trace_id:032x}" == TRACE_ID
        assert f"{span.parent.span_id:016x}" == SPAN_ID
        assert span.kind.name == "INTERNAL"
        assert span.instrumentation_scope is not None
        assert (span.instrumentation_scope.name, span.instrumentation_scope.version) == (
            "tailspan",
            __version__,
        )


def test_each_stretch_of_the_critical_path_is_a_span_with_its_real_start_and_end() -> None:
    start = sample_request().start_unix_ns

    spans = [(span.name, span.start_time - start, span.end_time - start) for span in _spans(sample_verdict())]

    assert spans == [
        ("tailspan.verdict", 0, WALL_NS),
        ("tailspan.futex", 0, 12 * MS),
        ("tailspan.run_queue", 12 * MS, 373 * MS),
        ("tailspan.on_cpu", 373 * MS, WALL_NS),
    ]


def test_the_verdict_span_says_why_and_how_sure() -> None:
    attributes = _summary(sample_verdict())

    assert attributes["tailspan.cause"] == "run_queue"
    assert attributes["tailspan.outcome"] == "named"
    assert attributes["tailspan.culprit.pid"] == 9001
    assert attributes["tailspan.culprit.comm"] == "stress-ng"
    assert attributes["tailspan.culprit.cgroup"] == "/batch.slice"
    assert attributes["tailspan.confidence"] == 0.95
    assert attributes["tailspan.coverage"] == 1.0
    assert attributes["tailspan.lost"] == 0
    assert attributes["tailspan.sentence"].startswith("374 ms above normal")


def test_what_the_cgroups_are_is_on_the_resource_and_of_the_culprit_on_the_verdict() -> None:
    pod = {"container.id": "3f4e", "k8s.namespace.name": "batch", "k8s.pod.name": "etl"}
    resource = pod | {"container.image.tags": "1.4,latest"}
    hog = sample_verdict().culprit
    assert hog is not None
    culprit = replace(hog, identity=tuple((resource | {"tailspan.systemd.unit": "cron.service"}).items()))

    (span, *_) = spans_of(sample_verdict(culprit=culprit), resource, "node-1")

    assert span.resource.attributes["container.image.tags"] == ("1.4", "latest")
    assert span.resource.attributes["k8s.pod.name"] == "etl"
    told = {name: value for name, value in (span.attributes or {}).items() if name.startswith("tailspan.culprit.")}
    assert told["tailspan.culprit.container.id"] == "3f4e"
    assert told["tailspan.culprit.k8s.namespace.name"] == "batch"
    assert told["tailspan.culprit.k8s.pod.name"] == "etl"
    assert told["tailspan.culprit.systemd.unit"] == "cron.service"
    assert not any("tags" in name for name in told)


def test_a_ledger_in_seconds_still_sums_to_the_wall_time_to_the_nanosecond() -> None:
    attributes = _summary(sample_verdict())

    ledger = [value for name, value in attributes.items() if name.startswith("tailspan.ledger.")]

    assert sum(round(seconds * 1e9) for seconds in ledger) == WALL_NS


def test_steps_below_the_floor_are_summed_by_cause_and_none_is_lost() -> None:
    # GIVEN 23 alternations of a 5 ms run-queue wait (below 2 % of the wall) and one long stretch
    short = [
        sample_step(cause, i * 5 * MS, (i + 1) * 5 * MS)
        for i, cause in enumerate([Cause.RUN_QUEUE, Cause.IO] * 11 + [Cause.RUN_QUEUE])
    ]
    long = sample_step(Cause.ON_CPU, 115 * MS, WALL_NS)
    verdict = sample_verdict(waterfall=(*short, long))

    # WHEN it is exported
    names = [span.name for span in _spans(verdict)]
    attributes = _summary(verdict)

    # THEN the long stretch has a span and the others two sums
    assert names == ["tailspan.verdict", "tailspan.on_cpu"]
    assert attributes["tailspan.below_floor.run_queue"] == pytest.approx(0.060)
    assert attributes["tailspan.below_floor.io"] == pytest.approx(0.055)


def test_the_longest_steps_below_the_floor_are_events_of_the_verdict_at_their_own_times() -> None:
    # GIVEN 43 stretches below the floor, of 100 µs and more, between two threads
    ends = [sum(100_000 + 1000 * (i * 7 % 43) for i in range(n)) for n in range(44)]
    short = [
        sample_step((Cause.RUN_QUEUE, Cause.IO)[i % 2], start, end, f"a[{i}]")
        for i, (start, end) in enumerate(pairwise(ends))
    ]
    long = sample_step(Cause.ON_CPU, ends[-1], WALL_NS)

    # WHEN they are exported
    summary, *steps = _spans(sample_verdict(waterfall=(*short, long)))

    # THEN the longest 32 are events, in time order, and say what they were
    expected = sorted(short, key=lambda step: step.end_ns - step.start_ns)[-32:]
    expected.sort(key=lambda step: step.start_ns)
    start = sample_request().start_unix_ns
    assert [(event.name, event.timestamp) for event in summary.events] == [
        (f"tailspan.{semconv.cause_name(step.cause)}", start + step.start_ns) for step in expected
    ]
    assert [dict(event.attributes or {}) for event in summary.events] == [
        {
            "tailspan.cause": semconv.cause_name(step.cause),
            "tailspan.duration": pytest.approx((step.end_ns - step.start_ns) / 1e9),
            "tailspan.thread.tid": 8123,
            "tailspan.note": step.note,
        }
        for step in expected
    ]
    assert not any(span.events for span in steps)


def test_how_the_thread_is_known_and_what_of_the_trace_does_not_fit_is_on_the_verdict() -> None:
    joined = _summary(sample_verdict(request=sample_request(join="socket", broken=3)))

    assert joined["tailspan.thread.join"] == "socket"
    assert joined["tailspan.trace.broken"] == 3
    assert "tailspan.trace.broken" not in _summary(sample_verdict())


def test_adjacent_steps_of_the_same_cause_and_note_become_one_span() -> None:
    steps = (
        sample_step(Cause.RUN_QUEUE, 0, 5 * MS, "a[1]"),
        sample_step(Cause.RUN_QUEUE, 5 * MS, 20 * MS, "a[1]"),
        sample_step(Cause.RUN_QUEUE, 20 * MS, 30 * MS, "b[2]"),
    )
    assert [(step.start_ns, step.end_ns, step.note) for step in merged(steps)] == [
        (0, 20 * MS, "a[1]"),
        (20 * MS, 30 * MS, "b[2]"),
    ]


def test_a_request_that_the_worker_did_not_sample_gets_its_own_span_with_the_same_ids() -> None:
    request = sample_request(sampled=False, status="timeout")

    own, *children = _spans(sample_verdict(request=request))

    assert own.context is not None and own.parent is not None
    assert f"{own.context.span_id:016x}" == SPAN_ID
    assert f"{own.parent.span_id:016x}" == PARENT_ID
    assert (own.start_time, own.end_time) == (request.start_unix_ns, request.start_unix_ns + WALL_NS)
    assert own.name == "POST /v1/infer"
    assert own.attributes is not None and own.attributes["error.type"] == "timeout"
    assert own.status.status_code.name == "ERROR"
    assert {span.parent.span_id for span in children if span.parent} == {own.context.span_id}


def test_the_synthesised_span_of_a_root_request_has_no_parent() -> None:
    own, *_ = _spans(sample_verdict(request=sample_request(sampled=False, parent_id="0" * 16)))
    assert own.parent is None


def test_the_resource_is_the_workers_and_not_the_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=agent,deployment.environment.name=lab")
    resource = {"service.name": "triton", "process.pid": "17", "k8s.pod.name": "triton-0"}

    spans = _spans(sample_verdict(), resource)

    assert {tuple(sorted(span.resource.attributes.items())) for span in spans} == {
        (
            ("host.name", "node-1"),
            ("k8s.pod.name", "triton-0"),
            ("process.pid", 17),
            ("service.name", "triton"),
        )
    }


def test_a_second_export_has_the_same_span_ids_and_every_span_its_own() -> None:
    first, second = ([span.context.span_id for span in _spans(sample_verdict()) if span.context] for _ in range(2))
    assert first == second
    assert len(set(first)) == len(first)
    assert int(SPAN_ID, 16) not in first


def test_ids_of_two_requests_differ() -> None:
    assert child_span_id(1, 2, 0) != child_span_id(1, 3, 0) != child_span_id(2, 3, 0)


def test_the_gpu_and_what_ran_the_request_are_on_its_spans_where_they_are_known() -> None:
    ran = {"device": "GPU-00000000-0000-4000-8000-000000000000", "provider": "CUDAExecutionProvider"}
    own, verdict, *steps = _spans(sample_verdict(request=sample_request(sampled=False, **ran)))

    for span in (own, verdict):
        assert span.attributes is not None
        assert span.attributes["hw.id"] == ran["device"]
        assert span.attributes["tailspan.gpu.provider"] == ran["provider"]
    assert not {"hw.id", "tailspan.gpu.provider"} & {name for step in steps for name in step.attributes or {}}
    assert not {"hw.id", "tailspan.gpu.provider"} & set(_summary(sample_verdict()))


def test_every_attribute_that_leaves_is_defined_for_that_kind_of_span() -> None:
    defined = {
        kind: {attribute.name for attribute in semconv.ATTRIBUTES if kind in attribute.on}
        for kind in ("resource", "request", "verdict", "step", "event")
    }
    request = sample_request(sampled=False, status="timeout", device="GPU-23", provider="CUDAExecutionProvider")
    waterfall = (sample_step(Cause.IO, 0, MS // 2, "sda"), sample_step(Cause.ON_CPU, MS // 2, WALL_NS))
    own, verdict, *steps = _spans(sample_verdict(request=request, waterfall=waterfall))

    assert {name for event in verdict.events for name in event.attributes or {}} == defined["event"]
    assert set(own.attributes or {}) <= defined["request"]
    assert set(verdict.attributes or {}) <= defined["verdict"]
    assert all(set(step.attributes or {}) <= defined["step"] for step in steps)
    assert set(own.resource.attributes) <= defined["resource"]


@st.composite
def waterfalls(draw: st.DrawFn) -> tuple[Step, ...]:
    cuts = sorted(draw(st.sets(st.integers(1, WALL_NS - 1), max_size=20)) | {0, WALL_NS})
    return tuple(
        sample_step(draw(st.sampled_from(Cause)), start, end, draw(st.sampled_from(["", "a[1]"])))
        for start, end in pairwise(cuts)
    )


@given(waterfalls())
def test_children_lie_inside_the_request_and_with_the_sums_make_up_its_whole_time(
    waterfall: tuple[Step, ...],
) -> None:
    request = sample_request()
    summary, *children = _spans(sample_verdict(waterfall=waterfall))

    in_spans = 0
    for span in children:
        assert span.start_time is not None and span.end_time is not None
        assert request.start_unix_ns <= span.start_time < span.end_time <= request.start_unix_ns + WALL_NS
        in_spans += span.end_time - span.start_time
    below = [
        value for name, value in (summary.attributes or {}).items() if name.startswith("tailspan.below_floor.")
    ]
    assert in_spans + sum(round(seconds * 1e9) for seconds in below) == WALL_NS
