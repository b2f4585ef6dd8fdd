"""Who: the stretches of a request grouped by culprit, and laid out in time.

What stands behind every stretch of an account is worked out once, in arrays, as a pair of small numbers; words are
made once per pair. A verdict then only walks over integers.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

from tailspan.attribute.causes import Cause
from tailspan.attribute.intervals import Ints
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

# What stands behind a stretch, and what its number means.
_NOBODY = 0  # -
_RUNNER = 1  # row of States.runners, the first of those that are the same; -1: not seen
_OCCUPANT = 2  # row of Evidence.activations; -1: not named
_QUOTA = 3  # -
_WAKER = 4  # tid
_SYSCALL = 5  # number
_SHORT = 6  # -

_Pair = tuple[int, int]
Flags = npt.NDArray[np.bool_]


class Witness:
    """Answers for all requests of one evidence and its account."""

    def __init__(self, evidence: Evidence, account: Account) -> None:
        self._evidence = evidence
        self._account = account
        self._bounds = np.searchsorted(account.rows["request"], np.arange(len(evidence.requests) + 1)).tolist()
        self._what, self._which = _behind(account)
        self._irq, self._short_blocked, self._short_runq = shares(account)
        segment = account.rows["segment"]
        self._tid, self._name = account.path.tid[segment], account.path.name[segment]
        hold, activation = account.path.hold[segment], account.path.activation[segment]
        self._occupant = np.where(hold == Hold.BEHIND, activation, -1)
        self._comms = {int(row["tid"]): text(row["comm"]) for row in evidence.threads}
        self._words: dict[tuple[_Pair, int], Culprit] = {}

    def culprits(self, index: int) -> dict[Cause, tuple[Culprit, ...]]:
        """By cause, of request ``index``. Largest first; equal ones by label, so that the order is stable."""
        rows = slice(self._bounds[index], self._bounds[index + 1])
        account = self._account.rows[rows]
        short = self._short_runq[rows]
        whole = account["end"] - account["start"] - self._irq[rows] - self._short_blocked[rows] - short
        ns: dict[int, dict[_Pair, int]] = defaultdict(lambda: defaultdict(int))
        for cause, what, which, amount in zip(
            account["cause"].tolist(),
            self._what[rows].tolist(),
            self._which[rows].tolist(),
            whole.tolist(),
            strict=True,
        ):
            ns[cause][what, which] += amount
        if short.any():
            ns[Cause.RUN_QUEUE][_SHORT, 0] += int(short.sum())
        tgid = int(self._evidence.requests["tgid"][index])
        found = {}
        for number, by_pair in ns.items():
            named = [(self._culprit(pair, tgid), amount) for pair, amount in by_pair.items()]
            named = sorted(((c, a) for c, a in named if c.label), key=lambda item: (-item[1], item[0].label))
            found[Cause(number)] = tuple(_with_ns(c, amount) for c, amount in named[:MAX_CULPRITS])
        return found

    def waterfall(self, index: int) -> tuple[Step, ...]:
        """The stretches of request ``index`` in time order, neighbours that say the same merged; they tile it."""
        rows = slice(self._bounds[index], self._bounds[index + 1])
        account = self._account.rows[rows]
        keys = list(
            zip(
                self._name[rows].tolist(),
                self._tid[rows].tolist(),
                account["cause"].tolist(),
                account["via"].tolist(),
                self._occupant[rows].tolist(),
                zip(self._what[rows].tolist(), self._which[rows].tolist(), strict=True),
                strict=True,
            )
        )
        begin = int(self._evidence.requests["start_mono_ns"][index])
        starts, ends = (account["start"] - begin).tolist(), (account["end"] - begin).tolist()
        tgid = int(self._evidence.requests["tgid"][index])
        steps: list[Step] = []
        at = 0
        while at < len(keys):
            last = at
            full = len(steps) == MAX_STEPS - 1  # the last step takes all the rest
            while last + 1 < len(keys) and (full or keys[last + 1] == keys[at]):
                last += 1
            steps.append(self._step(keys[at], starts[at], ends[last], tgid))
            at = last + 1
        return tuple(steps)

    def _step(self, key: tuple[int, int, int, int, int, _Pair], start: int, end: int, tgid: int) -> Step:
        name, tid, number, via, occupant, pair = key
        cause = Cause(number)
        notes = [self._culprit(pair, tgid).label]
        if occupant >= 0 and pair[0] != _OCCUPANT:
            notes.append(f"behind {self._culprit((_OCCUPANT, occupant), tgid).label}")
        waited_for = f"{self._comms.get(via, '?')}[{via}]" if via and cause is not Cause.FUTEX else ""
        if waited_for:
            notes.append(f"of {waited_for}")
        return Step(
            start,
            end,
            self._evidence.strings[name] if name >= 0 else "",
            tid,
            self._comms.get(tid, ""),
            cause,
            ", ".join(filter(None, notes)),
            waited_for,
        )

    def _culprit(self, pair: _Pair, tgid: int) -> Culprit:
        """In words, without ns; an empty label: nobody, and nothing more to say. ``tgid``: the request's."""
        found = self._words.get((pair, tgid))
        if found is None:
            found = self._words[pair, tgid] = self._describe(pair, tgid)
        return found

    def _describe(self, pair: _Pair, tgid: int) -> Culprit:
        what, which = pair
        if what == _RUNNER:
            return self._runner(which, tgid)
        if what == _OCCUPANT:
            return self._activation(which)
        if what == _QUOTA:
            return Culprit(CulpritKind.CGROUP, 0, "its own cgroup's quota")
        if what == _WAKER:
            comm = self._comms.get(which, "") or self._waker_comm(which)
            return Culprit(CulpritKind.WAKER, 0, f"{comm}[{which}]", tid=which, comm=comm)
        if what == _SYSCALL:
            name = syscall_name(which)
            return Culprit(CulpritKind.NONE, 0, f"in {name}" if name else "in no system call")
        if what == _SHORT:
            return Culprit(CulpritKind.NONE, 0, "waits too short to record")
        return Culprit(CulpritKind.NONE, 0, "")

    def _runner(self, row: int, tgid: int) -> Culprit:
        if row < 0:
            return Culprit(CulpritKind.NONE, 0, "not seen")
        runner = self._account.states.runners[row]
        pid, tid, comm = int(runner["tgid"]), int(runner["tid"]), text(runner["comm"])
        if tid == 0:
            return Culprit(CulpritKind.IDLE, 0, "idle cpu")
        if int(runner["flags"]) & RunnerFlags.KTHREAD:
            return Culprit(CulpritKind.KTHREAD, 0, comm, pid=pid, tid=tid, comm=comm)
        cgroup = self._evidence.meta.cgroups.get(str(int(runner["cgroup_id"])), "")
        kind = CulpritKind.OWN if pid == tgid else CulpritKind.PROCESS
        return Culprit(kind, 0, f"{comm}[{pid}]", pid=pid, comm=comm, cgroup=cgroup)

    def _activation(self, row: int) -> Culprit:
        if row < 0:
            return Culprit(CulpritKind.NONE, 0, "a thread the worker did not name")
        activation = self._evidence.activations[row]
        owner = int(activation["owner"])
        if activation["kind"] == ActivationKind.BATCH:
            size, capacity = int(activation["size"]), int(activation["capacity"])
            return Culprit(CulpritKind.BATCH, 0, f"batch {owner} ({size} of {capacity})", owner=str(owner))
        if not owner:
            return Culprit(CulpritKind.NONE, 0, "an event-loop callback of no request")
        span_id = owner.to_bytes(8, "big").hex()
        return Culprit(CulpritKind.REQUEST, 0, f"request {span_id}", owner=span_id)

    def _waker_comm(self, tid: int) -> str:
        """Of a thread that is not followed, as it was called when it woke somebody."""
        states = self._account.states.rows
        return text(states["waker_comm"][np.flatnonzero(states["waker_tid"] == tid)[0]])


def _behind(account: Account) -> tuple[Ints, Ints]:
    """(what stands behind each stretch, its number)."""
    rows, states = account.rows, account.states.rows
    cause, state = rows["cause"], rows["state"]
    seen: Flags = state >= 0
    what = np.full(len(rows), _NOBODY, np.int64)
    which = np.zeros(len(rows), np.int64)
    if len(states):
        waker, syscall = states["waker_tid"][state], states["syscall_nr"][state]
        runner = _same_runner(account)[states["runner"][state]] if len(account.states.runners) else state * 0 - 1
        blocked = seen & ~np.isin(cause, (Cause.ON_CPU, Cause.UNKNOWN, Cause.BATCHING, Cause.AWAIT))
        _put(what, which, blocked, _SYSCALL, syscall)
        _put(what, which, blocked & (cause == Cause.FUTEX) & (waker != 0), _WAKER, waker)
        runner = np.where(states["runner"][state] >= 0, runner, -1)
        _put(what, which, seen & (cause == Cause.RUN_QUEUE), _RUNNER, runner)
    _put(what, which, cause == Cause.THROTTLED, _QUOTA, which * 0)
    _put(what, which, cause == Cause.QUEUED, _OCCUPANT, account.path.activation[rows["segment"]])
    return what, which


def _put(what: Ints, which: Ints, where: Flags, kind: int, number: Ints) -> None:
    what[where] = kind
    which[where] = number[where]


def _same_runner(account: Account) -> Ints:
    """For each runner the first row that is the same culprit: by process, and by thread where it is none."""
    runners = account.states.runners
    is_thread = (runners["tid"] == 0) | (runners["flags"] & RunnerFlags.KTHREAD != 0)
    key = runners["tgid"].astype(np.int64) * 2 + is_thread
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    same: Ints = first[inverse]
    return same


def _with_ns(c: Culprit, ns: int) -> Culprit:
    return Culprit(c.kind, ns, c.label, c.pid, c.tid, c.comm, c.cgroup, c.owner)


def text(raw: bytes) -> str:
    return bytes(raw).decode(errors="replace")
