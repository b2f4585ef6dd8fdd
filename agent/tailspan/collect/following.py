"""Who is followed, and why: whom to begin with, and whom to let go of when nothing asks for it any more.

A process is asked for by a rule (:mod:`tailspan.collect.targets`), by its own connection to the agent, or by a
wait that it has ended. The kernel follows the children of a followed process from their birth: they stay for as
long as their parent is asked for or, once it has ended, the rule that it was followed by. Who has connected stays
until it ends: that it has closed its connection does not say that it is done.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tailspan import log
from tailspan.collect.targets import Reason, Target
from tailspan.errors import ProbeError
from tailspan.timeline.threads import Threads
from tailspan.wire.events import ThreadEventKind

logger = logging.getLogger(__name__)

Table = npt.NDArray[np.void]

SOCKET, OTLP, PEER = Reason("socket"), Reason("otlp"), Reason("peer")

#: A child whose birth is heard of so long after its parent was let go of was born before.
LATE_BIRTH_S = 5.0


class Source(Protocol):
    """What is asked of :class:`~tailspan.collect.bpf.source.BpfSource`."""

    def follow(self, tgids: list[int], only_threads: bool = False) -> Table: ...

    def unfollow(self, tgids: list[int]) -> None: ...


@dataclass(slots=True)
class _Process:
    rule: Reason | None = None
    own: Reason | None = None  #: of what it did itself
    parent: int = 0  #: while that is followed
    inherited: Reason | None = None  #: of its parent, at its birth

    @property
    def reason(self) -> Reason | None:
        return self.rule or self.own or self.inherited


class Following:
    def __init__(self, source: Source, threads: Threads) -> None:
        self._source, self._threads = source, threads
        self._processes: dict[int, _Process] = {}
        self._missed: dict[int, int] = {}  # pid -> when it was started: a target that was not there any more
        self._let_go: dict[int, float] = {}  # pid -> when

    @property
    def anybody(self) -> bool:
        return bool(self._processes)

    def counts(self) -> Counter[str]:
        """Processes by the kind of reason; children by that of whom they are followed for."""
        return Counter(process.reason.kind for process in self._processes.values() if process.reason)

    def heard(self, pids: Iterable[int], reason: Reason) -> None:
        """These have connected (SOCKET, OTLP), or ended a wait (PEER: then without their children)."""
        pids = list(pids)
        found = self._follow(pids, only_threads=reason is PEER)
        if found is None:
            return
        for pid in pids:
            if pid not in found:
                logger.warning("pid %d is not there to follow", pid)
                continue
            process = self._processes.setdefault(pid, _Process())
            if not (process.rule or process.own):
                logger.info("following pid %d (%s, %d threads)", pid, reason, found[pid])
            if reason is not PEER or not process.own:
                process.own = reason

    def fit(self, targets: Mapping[int, Target], rules: set[Reason]) -> None:
        """These, and no others, fit one of ``rules`` now: begin with them, let go of whom nothing asks for."""
        self._begin(targets)
        before = {pid: process.reason for pid, process in self._processes.items()}
        for pid, process in self._processes.items():
            target = targets.get(pid)
            process.rule = target.reason if target else None
        unwanted = {pid: before[pid] for pid in self._processes if not self._is_wanted(pid, rules)}
        if unwanted:
            self._unfollow(unwanted)

    def born(self, events: Table) -> None:
        """Take in the births of processes among these THREAD_EVENT rows."""
        if not len(events):
            return
        births = events[(events["kind"] == ThreadEventKind.BORN) & (events["tid"] == events["tgid"])]
        late: dict[int, Reason | None] = {}
        for pid, parent in births[["tgid", "parent_tgid"]].tolist():
            if parent in self._processes:
                child = self._processes.setdefault(pid, _Process())
                child.parent, child.inherited = parent, self._processes[parent].reason
            elif time.monotonic() - self._let_go.get(parent, -LATE_BIRTH_S) < LATE_BIRTH_S:
                late[pid] = None
        if late:
            self._unfollow(late)

    def forget_ended(self) -> None:
        """Those that have no thread any more."""
        alive, now = self._threads.processes(), time.monotonic()
        self._processes = {pid: process for pid, process in self._processes.items() if pid in alive}
        self._let_go = {pid: at for pid, at in self._let_go.items() if now - at < LATE_BIRTH_S}
        for process in self._processes.values():
            if process.parent not in self._processes:
                process.parent = 0  # the number may be another's soon

    def _begin(self, targets: Mapping[int, Target]) -> None:
        self._missed = {pid: started for pid, started in self._missed.items() if pid in targets}
        new = [pid for pid, target in targets.items() if self._is_new(pid, target)]
        found = self._follow(new) if new else {}
        if found is None:
            return
        for pid in new:
            if pid in found:
                logger.info("following pid %d (%s, %d threads)", pid, targets[pid].reason, found[pid])
                self._processes.setdefault(pid, _Process())
            else:
                logger.warning("pid %d (%s) is not there to follow", pid, targets[pid].reason)
                self._missed[pid] = targets[pid].started

    def _is_new(self, pid: int, target: Target) -> bool:
        process = self._processes.get(pid)
        if process is None:
            return self._missed.get(pid) != target.started
        return process.own is PEER and not process.rule

    def _is_wanted(self, pid: int, rules: set[Reason]) -> bool:
        """Whether it, or an ancestor that is followed, has a reason."""
        process, seen = self._processes[pid], {pid}
        while not (process.rule or process.own) and process.parent in self._processes:
            if process.parent in seen:  # a number that was given anew: nobody is his own ancestor
                return False
            seen.add(process.parent)
            process = self._processes[process.parent]
        return bool(process.rule or process.own) or process.inherited in rules | {SOCKET, OTLP}

    def _follow(self, pids: list[int], only_threads: bool = False) -> dict[int, int] | None:
        """pid -> threads, of those that are followed now; None where the kernel refuses."""
        try:
            states = self._source.follow(pids, only_threads)
        except ProbeError as error:
            log.once_per(60, "follow", logger, "cannot follow pids %s: %s", pids, error)
            return None
        self._threads.see(states)
        for pid in pids:
            self._let_go.pop(pid, None)
        return {pid: threads for pid in pids if (threads := int((states["tgid"] == pid).sum()))}

    def _unfollow(self, pids: Mapping[int, Reason | None]) -> None:
        """``pids``: with what they were followed for, to say so."""
        try:
            self._source.unfollow(list(pids))
        except ProbeError as error:
            log.once_per(60, "unfollow", logger, "cannot stop to follow pids %s: %s", list(pids), error)
            return
        self._threads.end(pids, time.monotonic_ns())
        for pid, reason in pids.items():
            self._processes.pop(pid, None)
            self._let_go[pid] = time.monotonic()
            logger.info("no longer following pid %d (%s)", pid, reason or "born late")
