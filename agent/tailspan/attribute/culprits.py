"""Who: the accounts of one request grouped by culprit, and laid out in time."""

from __future__ import annotations

from collections import defaultdict

from tailspan.attribute.causes import Cause
from tailspan.attribute.ledger import Account, shares
from tailspan.attribute.path import Hold
from tailspan.attribute.verdict import Culprit, CulpritKind, Step
from tailspan.timeline.evidence import Evidence
from tailspan.wire.events import RunnerFlags
from tailspan.wire.spans import ActivationKind
from tailspan.wire.syscalls import syscall_name

#: A verdict keeps this many culprits a cause and this many steps; the rest is merged into the last.
MAX_CULPRITS = 16
MAX_STEPS = 400


def culprits_by_cause(evidence: Evidence, index: int, rows: Account) -> dict[Cause, tuple[Culprit, ...]]:
    """``rows``: the account of request ``index``. Largest first; equal ones by label, so that order is stable."""
    ns: dict[Cause, dict[tuple[object, ...], int]] = defaultdict(lambda: defaultdict(int))
    who: dict[tuple[object, ...], Culprit] = {}
    irq, short_blocked, short_runq = (column.tolist() for column in shares(rows))
    for at, row in enumerate(rows.rows):
        cause = Cause(int(row["cause"]))
        culprit = _culprit(evidence, index, rows, at, cause)
        key = (
            culprit.kind,
            culprit.pid,
            culprit.tid,
            culprit.owner,
            culprit.label if culprit.pid is None else "",
        )
        who.setdefault(key, culprit)
        whole = int(row["end"] - row["start"])
        ns[cause][key] += whole - irq[at] - short_blocked[at] - short_runq[at]
        if short_runq[at]:
            ns[Cause.RUN_QUEUE][_SHORT_KEY] += short_runq[at]
    who[_SHORT_KEY] = Culprit(CulpritKind.NONE, 0, "waits too short to record")
    found = {}
    for cause, by_key in ns.items():
        named = [_with_ns(who[key], amount) for key, amount in by_key.items() if who[key].label]
        named.sort(key=lambda c: (-c.ns, c.label))
        found[cause] = tuple(named[:MAX_CULPRITS])
    return found


_SHORT_KEY = ("short",)


def _with_ns(c: Culprit, ns: int) -> Culprit:
    return Culprit(c.kind, ns, c.label, c.pid, c.tid, c.comm, c.cgroup, c.owner)


def _culprit(evidence: Evidence, index: int, rows: Account, at: int, cause: Cause) -> Culprit:
    """Who is behind one stretch. An empty label: nobody, and nothing more to say."""
    decided_by = int(rows.rows["state"][at])
    state = rows.states.rows[decided_by] if decided_by >= 0 else None
    if cause is Cause.RUN_QUEUE and state is not None:
        return _runner(evidence, index, rows, int(state["runner"]))
    if cause is Cause.QUEUED:
        return _occupant(evidence, rows, at)
    if cause is Cause.THROTTLED:
        return Culprit(CulpritKind.CGROUP, 0, "its own cgroup's quota")
    if state is not None and cause not in (Cause.ON_CPU, Cause.UNKNOWN, Cause.BATCHING, Cause.AWAIT):
        waker = int(state["waker_tid"])
        if cause is Cause.FUTEX and waker:
            comm = text(state["waker_comm"])
            return Culprit(CulpritKind.WAKER, 0, f"{comm}[{waker}]", tid=waker, comm=comm)
        name = syscall_name(int(state["syscall_nr"]))
        return Culprit(CulpritKind.NONE, 0, f"in {name}" if name else "in no system call")
    return Culprit(CulpritKind.NONE, 0, "")


def _runner(evidence: Evidence, index: int, rows: Account, row: int) -> Culprit:
    if row < 0:
        return Culprit(CulpritKind.NONE, 0, "not seen")
    runner = rows.states.runners[row]
    tgid, tid, comm = int(runner["tgid"]), int(runner["tid"]), text(runner["comm"])
    if tid == 0:
        return Culprit(CulpritKind.IDLE, 0, "idle cpu")
    cgroup = evidence.meta.cgroups.get(str(int(runner["cgroup_id"])), "")
    if int(runner["flags"]) & RunnerFlags.KTHREAD:
        return Culprit(CulpritKind.KTHREAD, 0, comm, pid=tgid, tid=tid, comm=comm)
    own = tgid == int(evidence.requests[index]["tgid"])
    kind = CulpritKind.OWN if own else CulpritKind.PROCESS
    return Culprit(kind, 0, f"{comm}[{tgid}]", pid=tgid, comm=comm, cgroup=cgroup)


def _occupant(evidence: Evidence, rows: Account, at: int) -> Culprit:
    row = int(rows.path.activation[rows.rows["segment"][at]])
    if row < 0:
        return Culprit(CulpritKind.NONE, 0, "a thread the worker did not name")
    activation = evidence.activations[row]
    owner = int(activation["owner"])
    if activation["kind"] == ActivationKind.BATCH:
        size, capacity = int(activation["size"]), int(activation["capacity"])
        return Culprit(CulpritKind.BATCH, 0, f"batch {owner} ({size} of {capacity})", owner=str(owner))
    if not owner:
        return Culprit(CulpritKind.NONE, 0, "an event-loop callback of no request")
    span_id = owner.to_bytes(8, "big").hex()
    return Culprit(CulpritKind.REQUEST, 0, f"request {span_id}", owner=span_id)


def waterfall(evidence: Evidence, index: int, rows: Account) -> tuple[Step, ...]:
    """The stretches of request ``index`` in time order, neighbours that say the same merged; they tile it."""
    start = int(evidence.requests[index]["start_mono_ns"])
    comms = {int(row["tid"]): text(row["comm"]) for row in evidence.threads}
    steps: list[Step] = []
    for at, row in enumerate(rows.rows):
        cause = Cause(int(row["cause"]))
        segment = int(row["segment"])
        tid = int(rows.path.tid[segment])
        name = int(rows.path.name[segment])
        step = Step(
            int(row["start"]) - start,
            int(row["end"]) - start,
            evidence.strings[name] if name >= 0 else "",
            tid,
            comms.get(tid, ""),
            cause,
            _note(evidence, rows, at, cause, _culprit(evidence, index, rows, at, cause)),
            _via(rows, at, cause, comms),
        )
        if steps and (len(steps) >= MAX_STEPS or _same(steps[-1], step)):
            last = steps.pop()
            step = Step(
                last.start_ns, step.end_ns, last.span, last.tid, last.comm, last.cause, last.note, last.via
            )
        steps.append(step)
    return tuple(steps)


def _same(a: Step, b: Step) -> bool:
    return (a.span, a.tid, a.cause, a.note, a.via) == (b.span, b.tid, b.cause, b.note, b.via)


def _note(evidence: Evidence, rows: Account, at: int, cause: Cause, culprit: Culprit) -> str:
    behind = rows.path.hold[rows.rows["segment"][at]] == Hold.BEHIND and cause is not Cause.QUEUED
    occupant = f"behind {_occupant(evidence, rows, at).label}" if behind else ""
    return ", ".join(filter(None, (culprit.label, occupant)))


def _via(rows: Account, at: int, cause: Cause, comms: dict[int, str]) -> str:
    tid = int(rows.rows["via"][at])
    return f"{comms.get(tid, '?')}[{tid}]" if tid and cause is not Cause.FUTEX else ""


def text(raw: bytes) -> str:
    return bytes(raw).decode(errors="replace")
