"""From batches to verdicts, with no source and no exporter: the live half of what ``replay`` does from a file."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tailspan.attribute.baseline import Baseline, SlowRule, is_slow
from tailspan.attribute.culprits import cgroups_of_processes
from tailspan.attribute.judge import AT_ONCE, judge
from tailspan.attribute.ledger import account, ledgers
from tailspan.attribute.shedding import were_seen
from tailspan.attribute.verdict import Verdict
from tailspan.collect.host import device_name
from tailspan.config import Config
from tailspan.timeline.activity import Activity
from tailspan.timeline.arrivals import BY_PORT_NS, COARSE_NS, Receives, Taken, began, find_arrivals
from tailspan.timeline.cut import cut, narrow, select
from tailspan.timeline.evidence import Evidence, Meta, Table
from tailspan.timeline.inbox import ROWS, Inbox, Received, Rows
from tailspan.timeline.joins import Readers, join_threads
from tailspan.timeline.related import related
from tailspan.timeline.tables import LOSS, join
from tailspan.timeline.threads import Threads
from tailspan.timeline.window import Strings, Window

#: What the window lets go of for its bound is lost if a request may still look at it: if one of late began so long
#: before it was judged, times this, or so many ns before.
REACH, LEAST_REACH_NS = 2.0, 1_000_000_000
#: Part of what is remembered of that at the next eviction: half of it goes in half a minute.
REACH_KEPT = 0.99
#: For so long a thread's name outlives what the window knows of it: a long request may speak of it.
GONE_NS = 30_000_000_000
#: Requests attributed at once: bounds the memory of one turn.
MAX_REQUESTS = 2_000
#: Slow requests whose evidence is stored in one turn; of more the slowest are, and the others are counted.
MAX_KEPT = 512
#: CPU time that verdicts may take in one turn. Evidence beyond it is stored unjudged, and judged when it is read:
#: after a jump in load every request is slow, and the agent must not take the CPU that the worker lacks.
VERDICT_BUDGET_S = 0.04
MIN_VERDICTS = 2
#: CPU time that ledgers may take in one turn; they say what is normal for their like, and where time goes on the
#: whole. When a turn has more requests than that pays for, some that ended one after the other stand for all.
LEDGER_BUDGET_S = 0.005
MIN_LEDGERS = 4
#: So many times that, of both, where every request is kept: less than half a CPU at the usual pace of turns.
KEEP_ALL_TIMES = 5
#: What one takes, as long as nothing is known.
FIRST_VERDICT_S, FIRST_LEDGER_S = 0.002, 0.0002
#: CPU time between two moments at which judging can be put off: whoever shares the agent's CPU waits as long.
SLICE_S = 0.004
#: Fewer at once would cost as much.
MESSAGES_AT_ONCE, LEDGERS_AT_ONCE, VERDICTS_AT_ONCE = 128, 32, 4

#: cgroup paths -> resource attributes of those that are a container's or a unit's
Identify = Callable[[Collection[str]], dict[str, dict[str, str]]]


@dataclass(frozen=True, slots=True)
class Moment:
    """What is known of the host when requests are judged."""

    open_threads: Table  #: from before the last drain
    meta: Meta
    cgroup_path: Callable[[int], str]
    identify: Identify = lambda paths: {}


@dataclass(slots=True)
class Judged:
    """One turn's result: of all its requests, and of those that are kept because they were slow."""

    requests: Table
    strings: list[str]  #: that the requests' fields index
    slow: npt.NDArray[np.bool_]  #: for its like, by row of ``requests``
    sample: npt.NDArray[np.int64]  #: rows of ``requests`` that were attributed: all, or some that stand for all
    ledgers: npt.NDArray[np.int64]  #: ``[sample, N_CAUSES]`` ns
    kept: npt.NDArray[np.int64]  #: rows of ``requests``
    evidence: Evidence  #: of the kept ones, as it is stored
    verdicts: dict[int, Verdict]  #: by row of ``evidence``: the slowest of them


class Pipeline:
    def __init__(self, config: Config) -> None:
        self.threads = Threads()
        self.strings = Strings()
        self.window = Window(config.window.seconds, config.window.max_rows)
        self.inbox = Inbox(self.threads, self.strings)
        self.forgotten = 0  #: slow requests beyond MAX_KEPT
        self._verdict_s, self._ledger_s = FIRST_VERDICT_S, FIRST_LEDGER_S  #: what one takes, learned
        self._random = random.Random(0)
        self._baseline = Baseline(_slow_rule(config))
        self._keep_all = config.store.keep == "all"
        self._sheds_verdicts = False
        self._losses: list[Table] = []
        self._taken, self._readers = Taken(), Readers()
        self._keep_ns = int(config.window.seconds * 1e9)
        self._reach_ns = 0.0

    def change(self, config: Config) -> None:
        """Judge by its ``slow`` and ``store.keep`` from now on."""
        self._baseline.rule = _slow_rule(config)
        self._keep_all = config.store.keep == "all"

    def shed_verdicts(self, shed: bool) -> None:
        """Whether evidence is stored as it is from now on, to be judged when it is read."""
        self._sheds_verdicts = shed

    def take(self, tables: Mapping[str, Table], thread_events: Table) -> None:
        """One drain of the kernel's rings: rows by table of the window."""
        for name, rows in tables.items():
            self.window.columns[name].append(rows)
        self.threads.apply(thread_events)

    def judge(self, received: list[Received], moment: Moment) -> Iterator[Judged]:
        """Judge every request among the messages."""
        return (judged for judged in self.judging(received, moment) if judged)

    def judging(self, received: list[Received], moment: Moment) -> Iterator[Judged | None]:
        """As :meth:`judge`, with None after every SLICE_S or so: other things may be done before it goes on."""
        rows = yield from self._read(received)
        self.window.activations.append(rows.activations)
        self.window.pauses.append(rows.pauses)
        self.lose(rows.losses)
        at_once = MAX_KEPT if self._keep_all else MAX_REQUESTS
        share = min(1.0, at_once / max(1, len(rows.requests)))
        for chunk in _chunks(rows, at_once):
            yield from self._judge(chunk, moment, share)

    def _read(self, received: list[Received]) -> Generator[None, None, Rows]:
        parts: list[Rows] = []
        for first in range(0, len(received), MESSAGES_AT_ONCE):
            part = self.inbox.rows(received[first : first + MESSAGES_AT_ONCE])
            part.spans["request"] += sum(len(earlier.requests) for earlier in parts)
            parts.append(part)
            yield None
        columns = (join([getattr(part, name) for part in parts], dtype) for name, dtype in ROWS.items())
        return Rows(*columns)

    def lose(self, losses: Table) -> None:
        """Take in losses (LOSS rows) that were found elsewhere."""
        if len(losses):
            self.window.losses.append(losses)
            self._losses.append(losses)

    def evict(self, now_mono_ns: int) -> None:
        self._taken.evict(now_mono_ns - self._keep_ns)
        self.threads.evict(now_mono_ns - self._keep_ns - GONE_NS)
        dropped = self.window.evict(now_mono_ns)
        reach_ns = max(LEAST_REACH_NS, REACH * self._reach_ns)
        self._reach_ns *= REACH_KEPT
        missed = dropped[dropped["end_mono_ns"] > now_mono_ns - reach_ns]
        if len(missed):
            self._losses.append(missed)

    def take_losses(self) -> Table:
        """Losses found here since the last call (LOSS rows); those of the kernel come with its batches."""
        losses, self._losses = self._losses, []
        return np.concatenate(losses) if losses else np.empty(0, LOSS)

    def _judge(self, rows: Rows, moment: Moment, share: float) -> Iterator[Judged | None]:
        """``share``: of the turn's CPU time."""
        meta = moment.meta
        share *= KEEP_ALL_TIMES if self._keep_all else 1
        self._join(rows, moment.open_threads)
        yield None
        requests, strings = rows.requests, self.strings.all
        self._reach_ns = max(self._reach_ns, float((requests["received_mono_ns"] - began(requests)).max()))
        likes = self._baseline.likes(requests, strings)
        slow = is_slow(requests, likes)
        sample = self._sample(len(requests), LEDGER_BUDGET_S * share)
        parts = []
        for part in _slices(sample, self._ledger_s, LEDGERS_AT_ONCE):
            parts.append(self._ledgers(self._cut(rows, part, moment)))
            yield None
        table = np.concatenate(parts)
        seen = were_seen(requests[sample], meta)
        self._baseline.learn(requests, strings, slow, sample[seen], table[seen])
        kept = self._kept(requests, np.flatnonzero(slow | self._keep_all))
        if not len(kept):
            yield Judged(requests, strings, slow, sample, table, kept, Evidence(), {})
            return
        evidence = self._cut(rows, kept, moment)
        yield None
        evidence.likes = [likes[row] for row in kept.tolist()]
        kept_evidence = related(narrow(evidence, np.arange(len(kept))))
        cgroups = _cgroups(kept_evidence, moment.cgroup_path)
        identities = moment.identify(cgroups.values())
        kept_evidence.meta = replace(
            meta,
            cgroups=cgroups,
            identities=identities,
            resources=_resources(kept_evidence, meta.resources, cgroups, identities),
            runtime_locks=_of_workers(kept_evidence, meta.runtime_locks),
            devices={str(dev): device_name(dev) for dev in np.unique(kept_evidence.blocks["dev"]).tolist()},
        )
        yield None
        verdicts: dict[int, Verdict] = {}
        at_once = AT_ONCE if self._keep_all else VERDICTS_AT_ONCE
        chosen = self._to_judge(kept_evidence.requests, slow[kept], VERDICT_BUDGET_S * share)
        for part in _slices(chosen, self._verdict_s, at_once):
            verdicts |= self._verdicts(kept_evidence, part)
            yield None
        yield Judged(requests, strings, slow, sample, table, kept, kept_evidence, verdicts)

    def _sample(self, requests: int, budget_s: float) -> npt.NDArray[np.int64]:
        """Rows of the requests to be attributed. Neighbours in time: the time that they span is short."""
        wanted = min(requests, max(MIN_LEDGERS, int(budget_s / self._ledger_s)))
        first = self._random.randint(0, requests - wanted)
        return np.arange(first, first + wanted)

    def _cut(self, rows: Rows, keep: npt.NDArray[np.int64], moment: Moment) -> Evidence:
        asked = select(rows, keep)
        return cut(asked, self.window, self.threads, moment.open_threads, self.strings, moment.meta)

    def _ledgers(self, evidence: Evidence) -> npt.NDArray[np.int64]:
        before = time.thread_time()
        table = ledgers(account(related(evidence)), len(evidence.requests))
        self._ledger_s += 0.2 * ((time.thread_time() - before) / len(table) - self._ledger_s)
        return table

    def _join(self, rows: Rows, open_threads: Table) -> None:
        """When each request arrived, and what thread served those whose worker did not say."""
        requests = rows.requests
        start, end = int(requests["start_mono_ns"].min()), int(requests["end_mono_ns"].max())
        receives = Receives(self.window.sockets.cut(start - BY_PORT_NS, end), self._taken)
        found = find_arrivals(requests, receives)
        unknown = requests[requests["tid"] == 0]
        if not len(unknown):
            return
        start, end = int(unknown["start_mono_ns"].min()), int(unknown["end_mono_ns"].max())
        cycles = self.window.cycles.cut(start - COARSE_NS, end + COARSE_NS)
        threads = self.threads.rows(start - COARSE_NS)
        activities = {
            tgid: Activity(tgid, cycles, open_threads, threads) for tgid in np.unique(unknown["tgid"]).tolist()
        }
        join_threads(requests, rows.spans, receives, found, activities, self._readers)
        for tid in np.unique(requests["tid"]).tolist():
            self.threads.name(tid)

    def _kept(self, requests: Table, candidates: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if self._keep_all:
            return candidates
        self.forgotten += max(0, len(candidates) - MAX_KEPT)
        return candidates[_slowest(requests[candidates], MAX_KEPT)]

    def _to_judge(self, requests: Table, slow: npt.NDArray[np.bool_], budget_s: float) -> npt.NDArray[np.int64]:
        """Rows of the requests: of those that are slow for their like, and then of the others, the slowest."""
        limit = 0 if self._sheds_verdicts else max(MIN_VERDICTS, int(budget_s / self._verdict_s))
        return _slowest(requests, limit, slow)

    def _verdicts(self, evidence: Evidence, chosen: npt.NDArray[np.int64]) -> dict[int, Verdict]:
        before = time.thread_time()
        verdicts = dict(zip(chosen.tolist(), judge(evidence, chosen), strict=True))
        self._verdict_s += 0.2 * ((time.thread_time() - before) / len(chosen) - self._verdict_s)
        return verdicts


def _slow_rule(config: Config) -> SlowRule:
    slow = config.slow
    return SlowRule(int(slow.slo_ms * 1e6), slow.factor, int(slow.min_excess_ms * 1e6))


def _slowest(requests: Table, limit: int, first: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.int64]:
    """Rows of the slowest, in order of row. ``first``: which come before all others."""
    walls = requests["end_mono_ns"] - began(requests)
    keys = (-walls,) if first is None else (-walls, ~first)
    return np.sort(np.lexsort(keys)[:limit])


def _slices(rows: npt.NDArray[np.int64], cost_s: float, least: int) -> Iterator[npt.NDArray[np.int64]]:
    """``cost_s``: what one row costs."""
    size = max(least, int(SLICE_S / cost_s))
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _chunks(rows: Rows, size: int) -> Iterator[Rows]:
    """At most so many requests each, with their spans."""
    for first in range(0, len(rows.requests), size):
        requests = rows.requests[first : first + size]
        inside = (rows.spans["request"] >= first) & (rows.spans["request"] < first + len(requests))
        spans = rows.spans[inside]
        spans["request"] -= first
        yield Rows(requests, spans, rows.activations, rows.losses, rows.pauses)


def _cgroups(evidence: Evidence, path: Callable[[int], str]) -> dict[str, str]:
    """The paths of the cgroups of everybody who held a CPU or a disk, or is followed."""
    ids = np.unique(
        np.concatenate(
            (
                evidence.slices["runner"]["cgroup_id"],
                evidence.cycles["runner"]["cgroup_id"],
                evidence.blocks["cgroup_id"],
                evidence.open_threads["cgroup_id"],
            )
        )
    )
    return {str(cgroup_id): path(cgroup_id) for cgroup_id in ids.tolist() if cgroup_id}


def _resources(
    evidence: Evidence,
    said: Mapping[str, dict[str, str]],
    cgroups: Mapping[str, str],
    identities: Mapping[str, dict[str, str]],
) -> dict[str, dict[str, str]]:
    """tgid of each worker -> what its cgroup is, and what it says of itself, which wins."""
    of_process = cgroups_of_processes(evidence.open_threads)
    resources = {}
    for tgid in np.unique(evidence.requests["tgid"]).tolist():
        path = cgroups.get(str(of_process.get(tgid, 0)), "")
        resources[str(tgid)] = identities.get(path, {}) | said.get(str(tgid), {})
    return {tgid: resource for tgid, resource in resources.items() if resource}


T = TypeVar("T")


def _of_workers(evidence: Evidence, by_tgid: Mapping[str, T]) -> dict[str, T]:
    wanted = {str(tgid) for tgid in evidence.requests["tgid"].tolist()}
    return {tgid: value for tgid, value in by_tgid.items() if tgid in wanted}
