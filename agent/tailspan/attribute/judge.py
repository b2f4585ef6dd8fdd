"""From ledger to verdict: contrast with like requests, one sentence, and what speaks against the alternatives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tailspan.attribute.baseline import MIN_LIKE
from tailspan.attribute.causes import CAUSES, N_CAUSES, Cause
from tailspan.attribute.culprits import Way, Witness, place
from tailspan.attribute.facts import facts
from tailspan.attribute.gpu_words import gpu_of, latest_sample
from tailspan.attribute.intervals import Ints
from tailspan.attribute.join_words import join_name, join_notes
from tailspan.attribute.ledger import account, ledgers
from tailspan.attribute.shedding import BY_NAME, GPU_CALLS, SLICES, in_words, overlap_ns, shed_during
from tailspan.attribute.verdict import (
    Alternative,
    Culprit,
    CulpritKind,
    Hop,
    Like,
    Outcome,
    Part,
    RequestFacts,
    Trust,
    Verdict,
)
from tailspan.timeline.arrivals import began
from tailspan.timeline.cut import narrow
from tailspan.timeline.evidence import Evidence, LikeRow
from tailspan.timeline.tables import Join

#: Requests judged together: what is laid out at once is their length times what their threads did meanwhile, and a
#: worker that cannot keep up has requests of half a minute.
AT_ONCE = 32
#: Below this coverage a verdict says ``inconclusive``.
COVERAGE_FLOOR = 0.9
#: A cause is named only if it explains at least this much more than normal, and this share of the excess.
NAME_FLOOR_NS = 1_000_000
NAME_SHARE = 0.25
_MEASURED = "probes were off: cost was being measured"
#: How sure a verdict is whose thread was inferred from what its process did.
INFERRED = 0.7


def judge(evidence: Evidence, chosen: Ints | None = None) -> list[Verdict]:
    """One verdict per request of the evidence, or per chosen row of it (ascending), in their order.

    Pure: the same evidence gives the same verdict, whichever others are chosen.
    """
    rows = np.arange(len(evidence.requests)) if chosen is None else chosen
    if len(rows) == len(evidence.requests) <= AT_ONCE:
        return _judged(evidence)
    parts = [rows[first : first + AT_ONCE] for first in range(0, len(rows), AT_ONCE)]
    return [verdict for part in parts for verdict in _judged(narrow(evidence, part))]


def _judged(evidence: Evidence) -> list[Verdict]:
    if not len(evidence.requests):
        return []
    accounted = account(evidence)
    table = ledgers(accounted, len(evidence.requests)).tolist()
    witness = Witness(evidence, accounted)
    return [_verdict(evidence, index, witness, ns) for index, ns in enumerate(table)]


def _verdict(evidence: Evidence, index: int, witness: Witness, ns: list[int]) -> Verdict:
    gpu = gpu_of(evidence.requests[index], witness.devices)
    request = replace(request_facts(evidence, index), device=_uuid(evidence, index, gpu))
    row = evidence.likes[index] if index < len(evidence.likes) else LikeRow(0, 0, 0, 0, [0] * N_CAUSES)
    like = Like(row.n, row.p50_ns, row.p95_ns, row.threshold_ns)
    blamed = witness.culprits(index)
    steps = witness.waterfall(index)
    parts = [Part(cause, ns[cause], row.parts_ns[cause], blamed.get(cause, ())) for cause in Cause if ns[cause]]
    parts.sort(key=lambda part: (-part.ns, part.cause))
    trust = _trust(evidence, index, ns[Cause.UNKNOWN], request.wall_ns, like, gpu)
    excess = request.wall_ns - like.p50_ns if like.n >= MIN_LIKE else request.wall_ns
    ranked = sorted((part for part in parts if part.cause is not Cause.UNKNOWN), key=lambda part: -part.excess_ns)
    top = ranked[0] if ranked else None
    outcome = _outcome(trust, excess, top, like, request.wall_ns)
    named = top if outcome in (Outcome.NAMED, Outcome.OWN_WORK) else None
    culprit = _first_culprit(named) if outcome is Outcome.NAMED else None
    way = witness.way(index, named.cause, culprit) if named else None
    confidence = _confidence(trust, excess, named, culprit, like)
    if evidence.requests["join"][index] == Join.PROCESS:
        confidence = round(confidence * INFERRED, 3)
    return Verdict(
        request=request,
        like=like,
        ledger=tuple(parts),
        outcome=outcome,
        cause=named.cause if named else None,
        culprit=culprit,
        sentence=_sentence(outcome, excess, named, culprit, like, trust, way, request),
        confidence=confidence,
        excess_ns=excess,
        alternatives=_alternatives(ranked, named),
        ruled_out=_ruled_out(evidence, ns, gpu, trust),
        waterfall=steps,
        trust=trust,
        chain=way.chain if way else (),
        facts=facts(evidence, index, steps, gpu),
    )


def request_facts(evidence: Evidence, index: int) -> RequestFacts:
    row, strings = evidence.requests[index], evidence.strings
    start = int(began(evidence.requests[index : index + 1])[0])
    return RequestFacts(
        trace_id=row["trace_id"].tobytes().hex(),
        span_id=row["span_id"].tobytes().hex(),
        parent_id=row["parent_id"].tobytes().hex(),
        request_id=row["request_id"].decode(errors="replace"),
        name=strings[row["name"]],
        model=strings[row["model"]],
        model_version=strings[row["version"]],
        service=strings[row["service"]],
        status=strings[row["status"]],
        pid=int(row["tgid"]),
        tid=int(row["tid"]),
        start_mono_ns=start,
        start_unix_ns=start + evidence.meta.unix_offset_ns,
        wall_ns=int(row["end_mono_ns"]) - start,
        batch_id=int(row["batch_id"]),
        batch_size=int(row["batch_size"]),
        batch_capacity=int(row["batch_capacity"]),
        sampled=bool(row["sampled"]),
        before_ns=int(row["start_mono_ns"]) - start,
        device=strings[row["device"]],
        provider=strings[row["provider"]],
        join=join_name(int(row["join"])),
        broken=int(row["broken"]),
    )


def _uuid(evidence: Evidence, index: int, gpu: int) -> str:
    """Of the GPU that the request used: as its worker named it, else the one that it must have been."""
    named = evidence.strings[evidence.requests["device"][index]]
    return named or (evidence.meta.gpus[gpu]["uuid"] if gpu >= 0 else "")


def _sample_age(evidence: Evidence, index: int, gpu: int) -> int | None:
    """How old the GPU's last sample was when the request ended; 0 where it was taken later."""
    end = int(evidence.requests["end_mono_ns"][index])
    sample = latest_sample(evidence, gpu, end) if gpu >= 0 else None
    return None if sample is None else max(0, end - int(sample["end_mono_ns"]))


def _trust(evidence: Evidence, index: int, unknown_ns: int, wall_ns: int, like: Like, gpu: int) -> Trust:
    row = evidence.requests[index]
    losses = evidence.losses
    begin = began(evidence.requests[index : index + 1])[0]
    touching = (losses["end_mono_ns"] > begin) & (losses["start_mono_ns"] < row["end_mono_ns"])
    end = int(row["end_mono_ns"])
    shed = shed_during(evidence.meta, int(begin), end)
    off_ns = overlap_ns(evidence.meta.probes_off, int(begin), end)
    notes = join_notes(evidence, index)
    notes += [f"for {ms(off_ns)} ms {_MEASURED}"] if off_ns else []
    told = (one for one in shed if one.step != GPU_CALLS or evidence.meta.gpus)
    notes += filter(None, map(in_words, told))
    notes += [f"probe {name} is off: {why}" for name, why in sorted(evidence.meta.missing_probes.items())]
    if like.n < MIN_LIKE:
        notes.append(f"no baseline: {like.n} like requests, {MIN_LIKE} are needed")
    return Trust(
        coverage=round(1 - unknown_ns / wall_ns, 6) if wall_ns else 0.0,
        lost=int(losses["count"][touching].sum()),
        clock_error_ns=evidence.meta.clock_error_ns,
        gpu_sample_age_ns=_sample_age(evidence, index, gpu),
        notes=tuple(notes),
        shed=shed,
        probes_off_ns=off_ns,
    )


def _outcome(trust: Trust, excess: int, top: Part | None, like: Like, wall_ns: int) -> Outcome:
    if trust.coverage < COVERAGE_FLOOR:
        return Outcome.INCONCLUSIVE
    if like.n >= MIN_LIKE and excess < max(NAME_FLOOR_NS, like.p50_ns // 10):
        return Outcome.NORMAL
    if top is None or top.excess_ns < max(NAME_FLOOR_NS, NAME_SHARE * excess):
        return Outcome.INCONCLUSIVE
    return Outcome.NAMED if CAUSES[top.cause].accuses else Outcome.OWN_WORK


def _first_culprit(part: Part | None) -> Culprit | None:
    known = [c for c in part.culprits if c.kind is not CulpritKind.NONE] if part else []
    return known[0] if known else None


def _confidence(trust: Trust, excess: int, named: Part | None, culprit: Culprit | None, like: Like) -> float:
    """How much of the excess the cause explains, times how much could be seen, times how sure the norm is.

    Halved where somebody held the CPU and it is not known who: then the slices were lost, or never written.
    """
    if named is None or excess <= 0:
        return 0.0
    explained = min(1.0, named.excess_ns / excess)
    norm = like.n / (like.n + 5) if like.n >= MIN_LIKE else 0.5
    who = 0.5 if named.cause is Cause.RUN_QUEUE and culprit is None else 1.0
    return round(explained * trust.coverage * norm * who * (0.9 if trust.lost else 1), 3)


def _alternatives(ranked: list[Part], named: Part | None) -> tuple[Alternative, ...]:
    others = [part for part in ranked if part is not named and part.excess_ns >= NAME_FLOOR_NS]
    if named is None:
        return tuple(Alternative(p.cause, _first_culprit(p), p.excess_ns, "too small a share") for p in others[:4])
    return tuple(
        Alternative(
            part.cause,
            _first_culprit(part),
            part.excess_ns,
            f"{ms(part.excess_ns)} ms above normal, {CAUSES[named.cause].label} {ms(named.excess_ns)}",
        )
        for part in others[:4]
    )


def _ruled_out(evidence: Evidence, ns: list[int], gpu: int, trust: Trust) -> tuple[str, ...]:
    """Accusing causes that could be seen and took less than NAME_FLOOR_NS, also where all that was not seen was of
    them."""
    unseen = set(evidence.meta.missing_probes)
    unseen |= {"gpu", "nvml"} if gpu < 0 else set()
    shed = [BY_NAME[one.step] for one in trust.shed]
    unseen |= {step.unseen_probe for step in shed}
    unknowable = {cause for step in shed for cause in step.unseen}
    return tuple(
        info.label
        for cause, info in CAUSES.items()
        if info.accuses
        and ns[cause] + trust.probes_off_ns < NAME_FLOOR_NS
        and info.probe not in unseen
        and cause not in unknowable
    )


def _sentence(
    outcome: Outcome,
    excess: int,
    named: Part | None,
    culprit: Culprit | None,
    like: Like,
    trust: Trust,
    way: Way | None,
    request: RequestFacts,
) -> str:
    if outcome is Outcome.INCONCLUSIVE:
        if trust.coverage < COVERAGE_FLOOR:
            unseen = ms(round(request.wall_ns * (1 - trust.coverage)))
            return (
                f"Inconclusive: {unseen} of {ms(request.wall_ns)} ms could not be seen ({_why(trust, request)})."
            )
        return f"Inconclusive: {ms(excess)} ms above normal, and no single cause explains a quarter of it."
    if outcome is Outcome.NORMAL:
        return f"Not slow: within {ms(max(excess, 0))} ms of the median of {like.n} like requests."
    assert named is not None
    against = "above normal" if like.n >= MIN_LIKE else "in all, with no baseline to compare"
    # Other parts may be below their norm: a cause never explains more than there is to explain.
    explained = min(named.excess_ns, excess)
    return f"{ms(excess)} ms {against}. {ms(explained)} ms of it: {_because(named, culprit, way, trust)}."


def _why(trust: Trust, request: RequestFacts) -> str:
    """Of a request that could not be seen."""
    if trust.probes_off_ns:
        return _MEASURED
    if not request.tid:
        return "its thread is not known"
    return f"{trust.lost} records lost in its window" if trust.lost else "its thread was not followed then"


def _because(named: Part, culprit: Culprit | None, way: Way | None, trust: Trust) -> str:
    thread = f"{way.comm} thread {way.tid}" if way and way.tid else "the request"
    of, where = thread, ""
    if way and way.chain:
        last = way.chain[-1]
        of = f"{last.comm}[{last.tid}]"
        where = f", which {thread} waited for{_through(way.chain)},"
    who = described(culprit) if culprit else ""
    alone = _not_alone(named, culprit) if culprit else ""
    said = _of_cause(named.cause, f"{of}{where}", culprit, who)
    if named.cause is Cause.RUN_QUEUE and culprit is None:
        of_slices = [in_words(one) for one in trust.shed if one.step == SLICES]
        said = f"{of}{where} was ready to run, and {of_slices[0]}" if of_slices else said
    if named.cause in (Cause.RUN_QUEUE, Cause.IRQ) and way and _inverted(way.chain):
        alone += " (priority inversion: it runs at a lower priority than who waits for it)"
    return f"{said}{alone}" if said else f"{thread}{where}: {CAUSES[named.cause].words}"


def _through(chain: tuple[Hop, ...]) -> str:
    between = [f"{hop.comm}[{hop.tid}]" for hop in chain[1:-1]]
    return f" through {', '.join(between)}" if between else ""


def _inverted(chain: tuple[Hop, ...]) -> bool:
    return len(chain) > 1 and 0 < chain[0].prio < chain[-1].prio


def _of_cause(cause: Cause, thread: str, culprit: Culprit | None, who: str) -> str:
    """What is said of a cause; "" where there is nothing better than its own words."""
    if cause is Cause.THROTTLED:
        return f"{thread} was out of its own cgroup's CPU quota"
    if culprit is None:
        return f"{thread} was ready to run, and who had the CPU was not seen" if cause is Cause.RUN_QUEUE else ""
    if cause is Cause.RUN_QUEUE:
        ran = {
            CulpritKind.OWN: "other threads of its own process ran there",
            CulpritKind.IDLE: "the CPU was idle (wake-up latency)",
        }.get(culprit.kind, f"{who} ran there")
        return f"{thread} was ready to run while {ran}"
    if cause in (Cause.IO, Cause.PAGE_IN):
        waited = "read memory pages in" if cause is Cause.PAGE_IN else "waited for its file"
        if culprit.kind is CulpritKind.DEVICE:
            return f"{thread} {waited}, from {who} itself"
        return f"{thread} {waited} while {who} kept the disk {culprit.owner} busy" if culprit.owner else ""
    if cause is Cause.STOPPED:
        return f"{thread} was stopped by {who}"
    if cause is Cause.QUEUED:
        return f"it was queued while {thread} worked for {culprit.label}"
    words = {
        Cause.IRQ: "{who} ran on the CPU of {thread}",
        Cause.UPSTREAM: "{thread} waited for the answer of {who}",
        Cause.NETWORK: "bytes between {thread} and {who} were lost, or the link was slow",
        Cause.RECLAIM: "{thread} had to free memory first: {who}",
        Cause.GC: "{who} collected garbage",
        Cause.GIL: "{thread} waited for Python's interpreter lock, which {who} had",
        Cause.STEAL: "{who} ran something else on the CPU of {thread}",
        Cause.GPU_COPY: "{thread} copied over {who}",
        Cause.GPU_ALLOC: "{thread} allocated or freed GPU memory",
        Cause.GPU_LOAD: "{thread} loaded code into the GPU, on its first use",
        Cause.GPU_CLOCKS: "{thread} waited for the device, whose clocks were held down by {who}",
        Cause.GPU_COLD: "{thread} waited for {who}, whose clocks were still low after it had been idle",
        Cause.GPU_SHARED: "{thread} waited for the device while it ran the work of {who}",
        Cause.GPU_FAULT: "{thread} waited for a device with an error: {who}",
        Cause.GPU_FULL: "{thread} asked for GPU memory, of which {who} holds most",
        Cause.ACCEPT: "it was connected, and {who} had not accepted it",
        Cause.UNREAD: "its bytes had arrived, and {who} had not read them",
    }.get(cause, "{thread} waited for {who}" if culprit.kind is CulpritKind.WAKER else "")
    return words.format(thread=thread, who=who)


def _not_alone(named: Part, culprit: Culprit) -> str:
    """The first culprit's own time, where it is not nearly all of the part."""
    if culprit.ns >= 0.9 * named.ns:
        return ""
    others = sum(1 for c in named.culprits if c is not culprit and c.ns >= NAME_FLOOR_NS)
    behind = f", others {ms(named.ns - culprit.ns)} ms" if others else ""
    return f" for {ms(culprit.ns)} ms{behind}"


def described(culprit: Culprit) -> str:
    """``stress-ng (pid 9001, pod batch/etl-7)``; ``batcher[8121]`` for a thread of the request's own process.

    A cgroup that is no container's and no unit's is told by its path.
    """
    if culprit.pid is None or culprit.kind is CulpritKind.OWN:
        return culprit.label
    where = place(dict(culprit.identity)) or culprit.cgroup
    more = [where, culprit.owner if culprit.kind is CulpritKind.WAKER else ""]
    return f"{culprit.comm} ({', '.join(filter(None, (f'pid {culprit.pid}', *more)))})"


def ms(ns: int) -> str:
    return f"{ns / 1e6:.1f}"
