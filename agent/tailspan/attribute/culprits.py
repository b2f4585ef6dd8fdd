"""Who: the stretches of a request grouped by culprit, and laid out in time.

What stands behind every stretch is a pair of small numbers (:mod:`tailspan.attribute.behind`); words are made once
per pair. A verdict then only walks over integers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tailspan.attribute.behind import Behind, behind, behind_shares
from tailspan.attribute.causes import Cause
from tailspan.attribute.gpu import Devices
from tailspan.attribute.gpu_words import gpu_culprit
from tailspan.attribute.ledger import SHARES, Account, shares
from tailspan.attribute.path import Hold
from tailspan.attribute.verdict import Culprit, CulpritKind, Hop, Step
from tailspan.attribute.words import endpoint, text
from tailspan.timeline.arrivals import began
from tailspan.timeline.evidence import Evidence, Table
from tailspan.wire.events import IncidentKind, RunnerFlags
from tailspan.wire.spans import ActivationKind
from tailspan.wire.syscalls import syscall_name

#: A verdict keeps this many culprits a cause and this many steps; the rest is merged into the last.
MAX_CULPRITS = 16
MAX_STEPS = 400

_CGROUP_FROZEN = 0x8000  # TASK_FROZEN, include/linux/sched.h
_STOP_SIGNALS = (19, 20, 21, 22)  # SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU

#: As much of a container's id as its runtime's tools show.
_SHORT_ID = 12

_Pair = tuple[int, int]


def cgroups_of_processes(open_threads: Table) -> dict[int, int]:
    """tgid -> cgroup id of its main thread, else of another, from a look at the followed threads."""
    main_last = open_threads[np.argsort(open_threads["tid"] == open_threads["tgid"], kind="stable")]
    return dict(zip(main_last["tgid"].tolist(), main_last["cgroup_id"].tolist(), strict=True))


def place(identity: Mapping[str, str]) -> str:
    """``pod batch/etl-7``, ``container web``, ``unit cron.service``; "" of none of them."""
    pod, container = identity.get("k8s.pod.name", ""), identity.get("container.name", "")
    words = {
        "pod": "/".join(filter(None, (identity.get("k8s.namespace.name"), pod))) if pod else "",
        "container": container or identity.get("container.id", "")[:_SHORT_ID],
        "pod of uid": identity.get("k8s.pod.uid", ""),
        "unit": identity.get("tailspan.systemd.unit", ""),
    }
    return next((f"{kind} {name}" for kind, name in words.items() if name), "")


class Way(NamedTuple):
    """How a cause reached a request: in which thread of its critical path, and through whom."""

    tid: int  #: 0: none is known
    comm: str
    chain: tuple[Hop, ...]  #: from ``tid`` to the thread whose cause it is; empty where that is its own


class Witness:
    """Answers for all requests of one evidence and its account."""

    def __init__(self, evidence: Evidence, account: Account) -> None:
        self.devices = Devices(evidence)
        self._evidence = evidence
        self._account = account
        self._bounds = np.searchsorted(account.rows["request"], np.arange(len(evidence.requests) + 1)).tolist()
        self._what, self._which = behind(account)
        self._shares = shares(account)
        self._own = account.rows["end"] - account.rows["start"] - self._shares.sum(axis=0)
        self._behind_share = behind_shares(account)
        segment = account.rows["segment"]
        self._tid, self._name = account.path.tid[segment], account.path.name[segment]
        hold, activation = account.path.hold[segment], account.path.activation[segment]
        self._occupant = np.where(hold == Hold.BEHIND, activation, -1)
        self._comms = {int(row["tid"]): text(row["comm"]) for row in evidence.threads}
        self._prios = dict(zip(evidence.cycles["tid"].tolist(), evidence.cycles["prio"].tolist(), strict=True))
        self._tgids = {int(row["tid"]): int(row["tgid"]) for row in evidence.threads}
        self._cgroups = cgroups_of_processes(evidence.open_threads)
        self._words: dict[tuple[_Pair, int], Culprit] = {}

    def culprits(self, index: int) -> dict[Cause, tuple[Culprit, ...]]:
        """By cause, of request ``index``. Largest first; equal ones by label, so that the order is stable."""
        ns: dict[int, Counter[_Pair]] = defaultdict(Counter)
        for cause, pair, _, amount in self._pieces(index):
            ns[cause][pair] += amount
        tgid = int(self._evidence.requests["tgid"][index])
        return {Cause(number): self._largest(by_pair, tgid) for number, by_pair in ns.items()}

    def way(self, index: int, cause: Cause, culprit: Culprit | None) -> Way | None:
        """How most of the cause's time reached request ``index``, or most of what ``culprit`` had of it.

        None where that is no time.
        """
        tgid = int(self._evidence.requests["tgid"][index])
        wanted = replace(culprit, ns=0) if culprit else None
        links = self._account.rows["chain"]
        ns: Counter[Way] = Counter()
        for number, pair, row, amount in self._pieces(index):
            if number == cause and amount and (wanted is None or self._culprit(pair, tgid) == wanted):
                tid = int(self._tid[row])
                ns[Way(tid, self._comms.get(tid, ""), self._chain(tid, int(links[row]), cause))] += amount
        return max(ns, key=lambda way: ns[way], default=None)

    def _pieces(self, index: int) -> Iterator[tuple[int, _Pair, int, int]]:
        """(cause, who is behind it, row, ns) of request ``index``; the rows first, then their shares of others."""
        rows = slice(self._bounds[index], self._bounds[index + 1])
        causes = self._account.rows["cause"][rows].tolist()
        pairs = zip(self._what[rows].tolist(), self._which[rows].tolist(), strict=True)
        yield from zip(causes, pairs, range(rows.start, rows.stop), self._own[rows].tolist(), strict=True)
        for part, (what, which), (_, cause) in zip(self._shares, self._behind_share, SHARES, strict=True):
            for row in (rows.start + np.flatnonzero(part[rows])).tolist():
                yield cause, (what, int(which[row])), row, int(part[row])

    def _largest(self, by_pair: Counter[_Pair], tgid: int) -> tuple[Culprit, ...]:
        """Different pairs may mean the same culprit: two waits for one disk."""
        by_culprit: Counter[Culprit] = Counter()
        for pair, amount in by_pair.items():
            culprit = self._culprit(pair, tgid)
            if culprit.label:
                by_culprit[culprit] += amount
        ranked = sorted(by_culprit.items(), key=lambda item: (-item[1], item[0].label))
        return tuple(replace(culprit, ns=amount) for culprit, amount in ranked[:MAX_CULPRITS])

    def waterfall(self, index: int) -> tuple[Step, ...]:
        """The stretches of request ``index`` in time order, neighbours that say the same merged; they tile it."""
        rows = slice(self._bounds[index], self._bounds[index + 1])
        account = self._account.rows[rows]
        keys = list(
            zip(
                self._name[rows].tolist(),
                self._tid[rows].tolist(),
                account["cause"].tolist(),
                account["chain"].tolist(),
                self._occupant[rows].tolist(),
                zip(self._what[rows].tolist(), self._which[rows].tolist(), strict=True),
                strict=True,
            )
        )
        begin = int(began(self._evidence.requests[index : index + 1])[0])
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
        name, tid, number, chain, occupant, pair = key
        notes = [self._culprit(pair, tgid).label]
        if occupant >= 0 and pair[0] != Behind.OCCUPANT:
            notes.append(f"behind {self._culprit((Behind.OCCUPANT, occupant), tgid).label}")
        hops = self._chain(tid, chain, Cause(number))
        if len(hops) > 1:
            notes.append(f"of {hops[-1].comm}[{hops[-1].tid}]")
        return Step(
            start,
            end,
            self._evidence.strings[name] if name >= 0 else "",
            tid,
            self._comms.get(tid, ""),
            Cause(number),
            ", ".join(filter(None, notes)),
            hops,
        )

    def _chain(self, tid: int, link: int, cause: Cause) -> tuple[Hop, ...]:
        """From the request's own thread to the one whose ``cause`` it is; empty where that is its own."""
        if link < 0:
            return ()
        links = []
        while link >= 0:
            before, of_wait, waited_for = self._account.chain[link].tolist()
            links.append((of_wait, waited_for))
            link = before
        links.reverse()
        tids = [tid, *(waited_for for _, waited_for in links)]
        causes = [*(Cause(of_wait) for of_wait, _ in links), cause]
        return tuple(
            Hop(of, self._comms.get(of, "?"), self._tgids.get(of, 0), self._prios.get(of, 0), why)
            for of, why in zip(tids, causes, strict=True)
        )

    def _culprit(self, pair: _Pair, tgid: int) -> Culprit:
        """In words, without ns; an empty label: nobody, and nothing more to say. ``tgid``: the request's."""
        found = self._words.get((pair, tgid))
        if found is None:
            found = self._words[pair, tgid] = self._placed(self._describe(pair, tgid))
        return found

    def _placed(self, culprit: Culprit) -> Culprit:
        """With what its cgroup is; of a process that is followed also with that cgroup."""
        meta, path = self._evidence.meta, culprit.cgroup
        if not path and culprit.pid is not None and culprit.kind is not CulpritKind.KTHREAD:
            path = meta.cgroups.get(str(self._cgroups.get(culprit.pid, 0)), "")
        return replace(culprit, cgroup=path, identity=tuple(sorted(meta.identities.get(path, {}).items())))

    def _describe(self, pair: _Pair, tgid: int) -> Culprit:
        what, which = pair
        if what == Behind.RUNNER:
            return self._runner(which, tgid)
        if what == Behind.OCCUPANT:
            return self._activation(which)
        if what == Behind.QUOTA:
            return Culprit(CulpritKind.CGROUP, 0, "its own cgroup's quota")
        if what == Behind.WAKER:
            return self._waker(self._account.states.rows[which], tgid)
        if what == Behind.SYSCALL:
            name = syscall_name(which)
            return Culprit(CulpritKind.NONE, 0, f"in {name}" if name else "in no system call")
        if what == Behind.SHORT:
            return Culprit(CulpritKind.NONE, 0, "waits too short to record")
        if what == Behind.DEVICE:
            return self._device(self._account.states.rows[which])
        if what == Behind.PEER:
            record = self._evidence.sockets[which]
            address = endpoint(record["remote"], int(record["remote_port"]))
            return Culprit(CulpritKind.PEER, 0, address, owner=address)
        if what == Behind.STOP:
            return self._stop(self._account.states.rows[which], tgid)
        if what == Behind.MEMORY:
            if which:
                return Culprit(CulpritKind.CGROUP, 0, "its own cgroup's memory limit")
            return Culprit(CulpritKind.HOST, 0, "the host's memory")
        if what == Behind.COLLECTOR:
            return self._thread(which, "", tgid)
        if what == Behind.INTERRUPTS:
            return Culprit(CulpritKind.SOFTIRQ, 0, "network softirqs" if which else "interrupts")
        if what == Behind.HYPERVISOR:
            return Culprit(CulpritKind.HOST, 0, "the hypervisor")
        if what == Behind.GPU:
            return gpu_culprit(self._evidence, self._account.states.rows[which])
        if what == Behind.UNTAKEN:
            return Culprit(
                CulpritKind.OWN, 0, "its own accept loop" if which else "its own reading thread", pid=tgid
            )
        return Culprit(CulpritKind.NONE, 0, "")

    def _waker(self, state: Table, tgid: int) -> Culprit:
        comm = text(bytes(state["waker_comm"]))
        waker = self._thread(int(state["waker_tid"]), comm, tgid, int(state["waker_tgid"]))
        incidents = self._evidence.incidents
        killed = (incidents["kind"] == IncidentKind.OOM_KILL) & (incidents["target_tgid"] == state["waker_tgid"])
        killed &= (incidents["mono_ns"] >= state["start"]) & (incidents["mono_ns"] <= state["end"])
        if killed.any():  # it ended the wait by dying
            return replace(waker, label=f"{waker.label} (killed: out of memory)", owner="killed: out of memory")
        return waker

    def _thread(self, tid: int, comm: str, tgid: int, pid: int = 0) -> Culprit:
        """A thread of the request's own process by tid, of another also by pid."""
        comm = self._comms.get(tid, "") or comm
        pid = self._tgids.get(tid, pid)
        return Culprit(
            CulpritKind.WAKER, 0, f"{comm}[{tid}]", pid=pid if pid != tgid else None, tid=tid, comm=comm
        )

    def _stop(self, state: Table, tgid: int) -> Culprit:
        """Who sent the last stop signal before it went on; else the freezer; else who let it go on (a tracer)."""
        incidents = self._evidence.incidents
        sent = (incidents["kind"] == IncidentKind.SIGNAL) & np.isin(incidents["signal"], _STOP_SIGNALS)
        of = self._tgids.get(int(state["tid"]), tgid)
        sent &= (incidents["target_tgid"] == of) & (incidents["mono_ns"] <= state["end"])
        if state["state"] & _CGROUP_FROZEN:
            return Culprit(CulpritKind.CGROUP, 0, "its own cgroup was frozen")
        if sent.any():
            last = incidents[np.flatnonzero(sent)[np.argmax(incidents["mono_ns"][sent])]]
            pid, comm = int(last["actor_tgid"]), text(last["actor_comm"])
            return Culprit(CulpritKind.PROCESS, 0, f"{comm}[{pid}]", pid=pid, comm=comm)
        return self._waker(state, tgid) if state["waker_tid"] else Culprit(CulpritKind.NONE, 0, "not seen")

    def _device(self, state: Table) -> Culprit:
        """Who kept the disk busy while the thread slept: another process if it had more in flight than the thread
        itself and everybody who wrote on its behalf, else the disk.

        In flight: the sum over requests of the time, in the sleep, from when each was made to its completion.
        """
        blocks = self._evidence.blocks
        start, end = int(state["start"]), int(state["end"])
        blocks = blocks[(blocks["completed_mono_ns"] > start) & (blocks["queued_mono_ns"] < end)]
        if not len(blocks):
            return Culprit(CulpritKind.NONE, 0, "no block request seen")
        from_, to = np.maximum(blocks["queued_mono_ns"], start), np.minimum(blocks["completed_mono_ns"], end)
        own = blocks["tid"] == state["tid"]
        # Its own request says which disk; else the file system's, else the one that worked most meanwhile.
        known = own if own.any() else blocks["dev"] == state["object_dev"]
        known = known if known.any() else np.ones(len(blocks), bool)
        dev = int(blocks["dev"][known][np.argmax((to - from_)[known])])
        name = self._evidence.meta.devices.get(str(dev), f"{dev >> 20}:{dev & 0xFFFFF}")
        in_flight: Counter[tuple[int, bool, str]] = Counter()
        at: dict[tuple[int, bool, str], int] = {}
        mine = self._tgids.get(int(state["tid"]), 0)
        for place in np.flatnonzero(blocks["dev"] == dev).tolist():
            row = blocks[place]
            who = (int(row["tgid"]), bool(row["kthread"]), text(row["comm"]))
            in_flight[who] += int(to[place] - from_[place])
            at.setdefault(who, place)
        processes = [(ns, who) for who, ns in in_flight.items() if not who[1]]
        ns, who = max(processes, default=(0, (0, False, "")))
        own_ns = sum(ns for ns, (tgid, _, _) in processes if tgid == mine)
        if who[0] in (0, mine) or ns <= own_ns:
            return Culprit(CulpritKind.DEVICE, 0, name, owner=name)
        cgroup = self._evidence.meta.cgroups.get(str(int(blocks["cgroup_id"][at[who]])), "")
        pid, _, comm = who
        return Culprit(CulpritKind.PROCESS, 0, f"{comm}[{pid}]", pid=pid, comm=comm, cgroup=cgroup, owner=name)

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
