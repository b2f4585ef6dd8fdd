"""A verdict as OpenTelemetry spans in the request's own trace. Pure: no clock, no socket.

::

    the worker's request span            its own, or synthesised with its ids where it was not sampled
    ├── tailspan.verdict                 the whole request: ledger, cause, culprit; short stretches as events
    ├── tailspan.run_queue               one child a stretch of the critical path, real start and end
    └── tailspan.on_cpu                  ...

Importing this module imports the OpenTelemetry SDK, so only an exporter does. With the transports of three signals
that is 21 MB of resident memory over HTTP and 28 MB over gRPC.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from tailspan import __version__
from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import Alternative, Culprit, Hop, RequestFacts, Step, Verdict
from tailspan.export import semconv
from tailspan.export.semconv import Attribute

Value = str | bool | int | float | list[str]

#: A stretch below both gets no span of its own: a child costs the backend 230 B for ever.
FLOOR_NS = 1_000_000
FLOOR_SHARE = 0.02
#: The longest of those are events of the verdict's span, at 80 B each; all are in its sums.
MAX_EVENTS = 32

_IMAGE_TAGS = semconv.IDENTITY["container.image.tags"].name
_SCOPE = InstrumentationScope(semconv.SCOPE, __version__)
_NS = 1e-9


def spans_of(verdict: Verdict, worker_resource: Mapping[str, str], host: str) -> list[ReadableSpan]:
    """The verdict's spans. Their ids follow from the request's, so that a second export changes nothing.

    ``worker_resource`` are the worker's own resource attributes; they win over what the agent knows. Raises
    ValueError where the request's ids are not hex.
    """
    request = verdict.request
    resource = _resource(request, worker_resource, host)
    trace_id, span_id = int(request.trace_id, 16), int(request.span_id, 16)
    parent = _context(trace_id, span_id)
    # What came before the worker began the request lies in its caller's time.
    caller_id = int(request.parent_id or "0", 16)
    caller = _context(trace_id, caller_id) if caller_id else parent
    steps, below = _above_floor(merged(verdict.waterfall), request.wall_ns)
    summary = {
        **_verdict_attributes(verdict),
        **_seconds_by_cause(semconv.LEDGER, ((part.cause, part.ns) for part in verdict.ledger)),
        **_seconds_by_cause(semconv.BELOW_FLOOR, ((step.cause, step.end_ns - step.start_ns) for step in below)),
    }

    short = _longest(below)
    children = [(semconv.VERDICT_SPAN.name, request.before_ns, request.wall_ns, summary, short)]
    children += [
        (semconv.STEP_SPANS[step.cause].name, step.start_ns, step.end_ns, _step_attributes(step), [])
        for step in steps
    ]
    spans = [
        ReadableSpan(
            name=name,
            context=_context(trace_id, child_span_id(trace_id, span_id, index)),
            parent=parent if start_ns >= request.before_ns else caller,
            resource=resource,
            attributes=attributes,
            events=[_event(step, request.start_unix_ns) for step in events],
            kind=SpanKind.INTERNAL,
            start_time=request.start_unix_ns + start_ns,
            end_time=request.start_unix_ns + end_ns,
            instrumentation_scope=_SCOPE,
        )
        for index, (name, start_ns, end_ns, attributes, events) in enumerate(children)
    ]
    return spans if request.sampled else [_request_span(request, parent, resource), *spans]


def child_span_id(trace_id: int, span_id: int, index: int) -> int:
    """The id of the index-th span below a request's: the same on every export, never 0, which is invalid."""
    seed = b"%032x%016x%d" % (trace_id, span_id, index)
    return int.from_bytes(blake2b(seed, digest_size=8).digest()) or 1


def merged(waterfall: tuple[Step, ...]) -> Iterator[Step]:
    """Adjacent steps of one thread, cause and note as one; the worker's span is the longest one's."""
    run: list[Step] = []
    for step in waterfall:
        if run and _key(run[-1]) != _key(step):
            yield _joined(run)
            run = []
        run.append(step)
    if run:
        yield _joined(run)


def _key(step: Step) -> tuple[object, ...]:
    return step.cause, step.note, step.tid


def _joined(run: list[Step]) -> Step:
    longest = max(run, key=lambda step: step.end_ns - step.start_ns)
    return replace(longest, start_ns=run[0].start_ns, end_ns=run[-1].end_ns)


def _above_floor(steps: Iterator[Step], wall_ns: int) -> tuple[list[Step], list[Step]]:
    floor_ns = max(FLOOR_NS, wall_ns * FLOOR_SHARE)
    above: list[Step] = []
    below: list[Step] = []
    for step in steps:
        (above if step.end_ns - step.start_ns >= floor_ns else below).append(step)
    return above, below


def _longest(below: list[Step]) -> list[Step]:
    """In time order."""
    longest = sorted(below, key=lambda step: step.start_ns - step.end_ns)[:MAX_EVENTS]
    return sorted(longest, key=lambda step: step.start_ns)


def _event(step: Step, start_unix_ns: int) -> Event:
    attributes: dict[str, Value] = {
        semconv.CAUSE.name: semconv.cause_name(step.cause),
        semconv.DURATION.name: (step.end_ns - step.start_ns) * _NS,
    }
    _put(attributes, semconv.THREAD_TID, step.tid)
    _put(attributes, semconv.NOTE, step.note)
    return Event(semconv.STEP_SPANS[step.cause].name, attributes, start_unix_ns + step.start_ns)


def _context(trace_id: int, span_id: int) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _request_span(request: RequestFacts, context: SpanContext, resource: Resource) -> ReadableSpan:
    attributes: dict[str, Value] = {semconv.SYNTHESIZED.name: True, **_request_attributes(request)}
    _put(attributes, semconv.THREAD_TID, request.tid)
    failed = request.status != "ok"
    if failed:
        attributes[semconv.ERROR_TYPE.name] = request.status
    parent_id = int(request.parent_id or "0", 16)
    return ReadableSpan(
        name=request.name,
        context=context,
        parent=_context(context.trace_id, parent_id) if parent_id else None,
        resource=resource,
        attributes=attributes,
        kind=SpanKind.INTERNAL,
        status=Status(StatusCode.ERROR) if failed else Status(StatusCode.UNSET),
        start_time=request.start_unix_ns + request.before_ns,
        end_time=request.start_unix_ns + request.wall_ns,
        instrumentation_scope=_SCOPE,
    )


def _resource(request: RequestFacts, worker_resource: Mapping[str, str], host: str) -> Resource:
    attributes: dict[str, Value] = {semconv.PROCESS_PID.name: request.pid}
    _put(attributes, semconv.SERVICE_NAME, request.service)
    _put(attributes, semconv.HOST_NAME, host)
    attributes |= worker_resource
    pid = worker_resource.get(semconv.PROCESS_PID.name, "")
    if pid.isdecimal():  # the worker's message carries strings only
        attributes[semconv.PROCESS_PID.name] = int(pid)
    tags = worker_resource.get(_IMAGE_TAGS)
    if tags:  # a list in OpenTelemetry, text with commas until here
        attributes[_IMAGE_TAGS] = tags.split(",")
    # Not Resource.create(), which would add the agent's own OTEL_RESOURCE_ATTRIBUTES to the worker's spans.
    return Resource(attributes)


def _step_attributes(step: Step) -> dict[str, Value]:
    attributes: dict[str, Value] = {semconv.CAUSE.name: semconv.cause_name(step.cause)}
    _put(attributes, semconv.NOTE, step.note)
    _put(attributes, semconv.THREAD_TID, step.tid)
    _put(attributes, semconv.THREAD_COMM, step.comm)
    _put(attributes, semconv.WORKER_SPAN, step.span)
    return attributes


def _request_attributes(request: RequestFacts) -> dict[str, Value]:
    attributes: dict[str, Value] = {}
    _put(attributes, semconv.REQUEST_ID, request.request_id)
    _put(attributes, semconv.MODEL_NAME, request.model)
    _put(attributes, semconv.MODEL_VERSION, request.model_version)
    if request.batch_capacity:
        attributes[semconv.BATCH_ID.name] = request.batch_id
        attributes[semconv.BATCH_SIZE.name] = request.batch_size
        attributes[semconv.BATCH_CAPACITY.name] = request.batch_capacity
    _put(attributes, semconv.HW_ID, request.device)
    _put(attributes, semconv.GPU_PROVIDER, request.provider)
    return attributes


def _verdict_attributes(verdict: Verdict) -> dict[str, Value]:
    trust, like = verdict.trust, verdict.like
    attributes: dict[str, Value] = {
        semconv.OUTCOME.name: str(verdict.outcome),
        semconv.CAUSE.name: semconv.cause_name(verdict.cause),
        semconv.SENTENCE.name: verdict.sentence,
        semconv.CONFIDENCE.name: verdict.confidence,
        semconv.EXCESS.name: verdict.excess_ns * _NS,
        semconv.COVERAGE.name: trust.coverage,
        semconv.LOST.name: trust.lost,
        semconv.CLOCK_ERROR.name: trust.clock_error_ns * _NS,
        semconv.LIKE_COUNT.name: like.n,
        semconv.LIKE_P50.name: like.p50_ns * _NS,
        semconv.LIKE_THRESHOLD.name: like.threshold_ns * _NS,
        semconv.THREAD_JOIN.name: verdict.request.join,
        **_request_attributes(verdict.request),
    }
    _put(attributes, semconv.REQUEST_NAME, verdict.request.name)
    _put(attributes, semconv.BROKEN_SPANS, verdict.request.broken)
    if trust.gpu_sample_age_ns is not None:
        attributes[semconv.GPU_SAMPLE_AGE.name] = trust.gpu_sample_age_ns * _NS
    if verdict.culprit is not None:
        attributes |= _culprit_attributes(verdict.culprit)
    _put(attributes, semconv.CHAIN, [_hop_in_words(hop) for hop in verdict.chain])
    _put(attributes, semconv.FACTS, list(verdict.facts))
    _put(attributes, semconv.NOTES, list(trust.notes))
    _put(attributes, semconv.SHED, [one.step for one in trust.shed])
    _put(attributes, semconv.PROBES_OFF, trust.probes_off_ns * _NS)
    _put(attributes, semconv.RULED_OUT, list(verdict.ruled_out))
    _put(attributes, semconv.ALTERNATIVES, [_in_words(other) for other in verdict.alternatives])
    return attributes


def _culprit_attributes(culprit: Culprit) -> dict[str, Value]:
    attributes: dict[str, Value] = {
        semconv.CULPRIT_KIND.name: str(culprit.kind),
        semconv.CULPRIT_LABEL.name: culprit.label,
        semconv.CULPRIT_TIME.name: culprit.ns * _NS,
    }
    if culprit.pid is not None:
        attributes[semconv.CULPRIT_PID.name] = culprit.pid
    if culprit.tid is not None:
        attributes[semconv.CULPRIT_TID.name] = culprit.tid
    _put(attributes, semconv.CULPRIT_COMM, culprit.comm)
    _put(attributes, semconv.CULPRIT_CGROUP, culprit.cgroup)
    _put(attributes, semconv.CULPRIT_OWNER, culprit.owner)
    for name, value in culprit.identity:
        if name in semconv.CULPRIT_IDENTITY:
            _put(attributes, semconv.CULPRIT_IDENTITY[name], value)
    return attributes


def _in_words(other: Alternative) -> str:
    who = f" by {other.culprit.label}" if other.culprit is not None else ""
    return f"{semconv.cause_name(other.cause)}{who}: {other.why_not}"


def _hop_in_words(hop: Hop) -> str:
    return f"{hop.comm}[{hop.tid}] {semconv.cause_name(hop.cause)}"


def _put(attributes: dict[str, Value], attribute: Attribute, value: Value) -> None:
    """Set what is known; an empty text, list or id 0 is a fact the verdict does not have."""
    if value:
        attributes[attribute.name] = value


def _seconds_by_cause(names: dict[Cause, Attribute], parts: Iterable[tuple[Cause, int]]) -> dict[str, Value]:
    sums: Counter[Cause] = Counter()
    for cause, ns in parts:
        sums[cause] += ns
    return {names[cause].name: ns * _NS for cause, ns in sums.items()}
