"""From batches to verdicts, with no source and no exporter: the live half of what ``replay`` does from a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tailspan.attribute.baseline import Baseline, SlowRule, is_slow
from tailspan.attribute.judge import judge
from tailspan.attribute.ledger import account, ledgers
from tailspan.attribute.verdict import Verdict
from tailspan.collect.host import device_name
from tailspan.config import Config
from tailspan.timeline.arrivals import BY_PORT_NS, began, find_arrivals
from tailspan.timeline.cut import cut, narrow
from tailspan.timeline.evidence import Evidence, Meta, Table
from tailspan.timeline.inbox import Inbox, Received, Rows
from tailspan.timeline.tables import LOSS
from tailspan.timeline.threads import Threads
from tailspan.timeline.window import Strings, Window

#: Requests attributed at once: bounds the memory of one turn.
MAX_REQUESTS = 2_000
#: Slow requests whose evidence is stored in one turn; of more the slowest are, and the others are counted.
MAX_KEPT = 512
#: CPU time that verdicts may take in one turn. Evidence beyond it is stored unjudged, and judged when it is read:
#: after a jump in load every request is slow, and the agent must not take the CPU that the worker lacks.
VERDICT_BUDGET_S = 0.02
MIN_VERDICTS = 8


@dataclass(slots=True)
class Judged:
    """One turn's result: of all its requests, and of those that are kept because they were slow."""

    requests: Table
    strings: list[str]  #: that the requests' fields index
    ledgers: npt.NDArray[np.int64]  #: ``[requests, N_CAUSES]`` ns
    kept: npt.NDArray[np.int64]  #: rows of ``requests``
    evidence: Evidence  #: of the kept ones, as it is stored
    verdicts: dict[int, Verdict]  #: by row of ``evidence``: the slowest of them


class Pipeline:
    def __init__(self, config: Config) -> None:
        slow = config.slow
        self.threads = Threads()
        self.strings = Strings()
        self.window = Window(config.window.seconds, config.window.max_rows)
        self.inbox = Inbox(self.threads, self.strings)
        self.forgotten = 0  #: slow requests beyond MAX_KEPT
        self._verdict_s = VERDICT_BUDGET_S / MIN_VERDICTS  #: what one takes, learned
        self._baseline = Baseline(SlowRule(int(slow.slo_ms * 1e6), slow.factor, int(slow.min_excess_ms * 1e6)))
        self._keep_all = config.store.keep == "all"
        self._losses: list[Table] = []

    def take(self, tables: Mapping[str, Table], thread_events: Table) -> None:
        """One drain of the kernel's rings: rows by table of the window."""
        for name, rows in tables.items():
            self.window.columns[name].append(rows)
        self.threads.apply(thread_events)

    def judge(
        self, received: list[Received], open_threads: Table, meta: Meta, cgroup_path: Callable[[int], str]
    ) -> Iterator[Judged]:
        """Judge every request among the messages. ``open_threads``: taken before the last drain."""
        rows = self.inbox.rows(received)
        self.window.activations.append(rows.activations)
        self.window.pauses.append(rows.pauses)
        if len(rows.losses):
            self.window.losses.append(rows.losses)
            self._losses.append(rows.losses)
        for chunk in _chunks(rows):
            yield self._judge(chunk, open_threads, meta, cgroup_path)

    def evict(self, now_mono_ns: int) -> None:
        dropped = self.window.evict(now_mono_ns)
        if len(dropped):
            self._losses.append(dropped)

    def take_losses(self) -> Table:
        """Losses found here since the last call (LOSS rows); those of the kernel come with its batches."""
        losses, self._losses = self._losses, []
        return np.concatenate(losses) if losses else np.empty(0, LOSS)

    def _judge(self, rows: Rows, open_threads: Table, meta: Meta, cgroup_path: Callable[[int], str]) -> Judged:
        starts, ends = rows.requests["start_mono_ns"], rows.requests["end_mono_ns"]
        sockets = self.window.sockets.cut(int(starts.min()) - BY_PORT_NS, int(ends.max()))
        rows.requests["arrived_mono_ns"] = find_arrivals(rows.requests, sockets)
        evidence = cut(rows, self.window, self.threads, open_threads, self.strings, meta)
        table = ledgers(account(evidence), len(rows.requests))
        evidence.likes = self._baseline.likes(rows.requests, self.strings.all)
        slow = is_slow(rows.requests, evidence.likes)
        self._baseline.learn(rows.requests, self.strings.all, table, slow)
        kept = self._kept(rows.requests, np.flatnonzero(slow | self._keep_all))
        if not len(kept):
            return Judged(rows.requests, self.strings.all, table, kept, Evidence(), {})
        kept_evidence = narrow(evidence, kept)
        kept_evidence.meta = replace(
            meta,
            cgroups=_cgroups(kept_evidence, cgroup_path),
            resources=_of_workers(kept_evidence, meta.resources),
            runtime_locks=_of_workers(kept_evidence, meta.runtime_locks),
            devices={str(dev): device_name(dev) for dev in np.unique(kept_evidence.blocks["dev"]).tolist()},
        )
        verdicts = self._verdicts(kept_evidence)
        return Judged(rows.requests, self.strings.all, table, kept, kept_evidence, verdicts)

    def _kept(self, requests: Table, candidates: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if self._keep_all:
            return candidates
        self.forgotten += max(0, len(candidates) - MAX_KEPT)
        return candidates[_slowest(requests[candidates], MAX_KEPT)]

    def _verdicts(self, evidence: Evidence) -> dict[int, Verdict]:
        limit = len(evidence.requests)
        if not self._keep_all:
            limit = max(MIN_VERDICTS, int(VERDICT_BUDGET_S / self._verdict_s))
        chosen = _slowest(evidence.requests, limit)
        before = time.thread_time()
        verdicts = dict(zip(chosen.tolist(), judge(evidence, chosen), strict=True))
        self._verdict_s += 0.2 * ((time.thread_time() - before) / len(chosen) - self._verdict_s)
        return verdicts


def _slowest(requests: Table, limit: int) -> npt.NDArray[np.int64]:
    """Rows of the slowest, in order of row."""
    walls = requests["end_mono_ns"] - began(requests)
    return np.sort(np.argsort(-walls, kind="stable")[:limit])


def _chunks(rows: Rows) -> Iterator[Rows]:
    """At most MAX_REQUESTS requests each, with their spans."""
    for first in range(0, len(rows.requests), MAX_REQUESTS):
        requests = rows.requests[first : first + MAX_REQUESTS]
        inside = (rows.spans["request"] >= first) & (rows.spans["request"] < first + len(requests))
        spans = rows.spans[inside]
        spans["request"] -= first
        yield Rows(requests, spans, rows.activations, rows.losses, rows.pauses)


def _cgroups(evidence: Evidence, path: Callable[[int], str]) -> dict[str, str]:
    """The paths of the cgroups of everybody who held a CPU or a disk."""
    ids = np.unique(
        np.concatenate(
            (
                evidence.slices["runner"]["cgroup_id"],
                evidence.cycles["runner"]["cgroup_id"],
                evidence.blocks["cgroup_id"],
            )
        )
    )
    return {str(cgroup_id): path(cgroup_id) for cgroup_id in ids.tolist() if cgroup_id}


T = TypeVar("T")


def _of_workers(evidence: Evidence, by_tgid: Mapping[str, T]) -> dict[str, T]:
    wanted = {str(tgid) for tgid in evidence.requests["tgid"].tolist()}
    return {tgid: value for tgid, value in by_tgid.items() if tgid in wanted}
