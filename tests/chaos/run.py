"""One fault: before, while it lasts, after; and what must hold then."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from tailspan.errors import CannotError
from tailspan.worker.load import percentile
from tests.chaos import books
from tests.chaos.agent import Reading
from tests.chaos.books import Books, Stored
from tests.chaos.fault import Fault
from tests.chaos.scene import Row, Scene, until

#: No request, and no call into the client, may take longer: what the faults' own makers take is far below.
LONGEST_MS = 1000.0
#: Resident memory that the agent stays below whatever is done to it: at MemoryMax, 512 MiB, the kernel ends it.
RSS_BOUND_MIB = 400.0
#: Descriptors and threads that may be more after a fault than at the start: a segment, spools, connections kept.
MORE_FDS, MORE_THREADS = 8, 4

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    before_s: float  #: the load alone, before each fault
    short: bool
    well_s: float  #: until the agent is ready again, at most


FULL = Plan(before_s=3.0, short=False, well_s=60.0)
SHORT = Plan(before_s=0.2, short=True, well_s=20.0)


@dataclass(slots=True)
class Round:
    """What became of one fault. ``wrong``: what does not hold; nothing, where all is well."""

    fault: str
    start_mono_s: float
    held_s: float = 0.0
    outcome: str = "alive"
    wrong: list[str] = field(default_factory=list)
    before: Figures = field(default_factory=dict)
    during: Figures = field(default_factory=dict)
    after: Figures = field(default_factory=dict)
    longest_call_ms: float = 0.0
    failed: int = 0
    asked: int = 0
    judged: int = 0
    dropped_by_client: int = 0
    died_unread: int = 0
    uncounted: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    did: dict[str, int] = field(default_factory=dict)  #: how the fault can be seen to have been one
    verdicts: int = 0
    reading: Figures = field(default_factory=lambda: asdict(Reading(0.0, 0.0, 0, 0)))


class Rounds:
    """Fault after fault on one scene. The load goes on all the time, but for moments to make the books in."""

    def __init__(self, scene: Scene, plan: Plan) -> None:
        self.scene, self.plan = scene, plan
        self.rounds: list[Round] = []
        self.stored = Stored(scene.store)
        time.sleep(plan.before_s)
        self._say_well()
        self._books = books.take(scene)
        self.stored.news()
        self._told_before = self.stored.spans()
        self.first = scene.agent.reading()
        scene.load.rows()
        scene.load.go()

    def run(self, fault: Fault) -> Round:
        scene, plan = self.scene, self.plan
        done = Round(fault.name, time.monotonic())
        self.rounds.append(done)
        lives, died = scene.lives, None
        scene.done.clear()
        scene.agent.forget_peak()
        time.sleep(plan.before_s)
        began_ns = time.monotonic_ns()
        try:
            with fault.inject(scene):
                time.sleep(fault.short_s if plan.short else fault.seconds)
        except (CannotError, OSError) as error:
            died = error
        ended_ns = time.monotonic_ns()
        done.held_s = (ended_ns - began_ns) / 1e9
        if died:
            done.wrong.append(str(died))
        time.sleep(plan.before_s if plan.short else fault.settle_s)
        if why := self._say_well():
            done.wrong.append(f"not ready again: {why}")
        if scene.lives > lives:
            done.outcome = "restarted"
        if self._revived(done):
            self._say_well()
        elif done.outcome == "restarted" and not fault.lethal:
            done.wrong.append("it was not to end of this")
        before = self._books
        try:
            self._check(done, began_ns, ended_ns)
        except OSError:
            if not self._revived(done):
                raise
            self._books = books.take(scene)
            scene.load.go()
        done.did = dict(scene.done)
        if fault.witness:
            done.did[fault.witness] = round(_begins(self._books, fault.witness) - _begins(before, fault.witness))
        return done

    def _revived(self, done: Round) -> bool:
        """Whether the agent had ended though nobody ended it."""
        if self.scene.agent.alive:
            return False
        done.outcome = "died"
        said = self.scene.agent.said()[-3000:]
        say(said)
        done.wrong.append("the agent ended: " + said.strip().rpartition("\n")[2])
        self.scene.restart_agent()
        return True

    def _say_well(self) -> str:
        """Why the agent is not ready, after some patience. What it remembers for half a minute is no matter."""

        def well() -> bool:
            why = self.scene.agent.unready()
            remembered = why == "starting" or "cannot be stored" in why or "records are lost" in why
            return not why or (self.plan.short and remembered) or not self.scene.agent.alive

        is_well = until(well, self.plan.well_s)
        return "" if is_well or not self.scene.agent.alive else self.scene.agent.unready()

    def _check(self, done: Round, began_ns: int, ended_ns: int) -> None:
        scene, before = self.scene, self._books
        restarted = done.outcome != "alive"
        after = books.take(scene, None if restarted else before)
        done.verdicts, wrong = self.stored.news()
        done.wrong += wrong
        if self.stored.corrupt and not restarted:
            done.wrong.append(f"segments are damaged: {self.stored.corrupt}")
        self._latencies(done, began_ns, ended_ns)
        self._account(done, before, after, restarted)
        self._process(done)
        self._books = after
        scene.load.go()

    def _latencies(self, done: Round, began_ns: int, ended_ns: int) -> None:
        rows = self.scene.load.rows()
        done.before = _figures(row for row in rows if row.due_mono_ns < began_ns)
        done.during = _figures(row for row in rows if began_ns <= row.due_mono_ns < ended_ns)
        done.after = _figures(row for row in rows if ended_ns <= row.due_mono_ns)
        done.failed = sum(row.status != 200 for row in rows)
        if done.failed:
            done.wrong.append(f"{done.failed} requests failed")
        longest = max((row.latency_ms for row in rows), default=0.0)
        if longest > LONGEST_MS:
            done.wrong.append(f"a request took {longest:.0f} ms")

    def _account(self, done: Round, before: Books, after: Books, restarted: bool) -> None:
        done.asked, made = after.asked - before.asked, after.made - before.made
        done.dropped_by_client = after.dropped - before.dropped
        done.longest_call_ms = after.longest_call_ms
        if after.longest_call_ms > LONGEST_MS:
            done.wrong.append(f"a call into the client took {after.longest_call_ms:.0f} ms")
        if made != done.asked:
            done.wrong.append(f"the load asked {done.asked} times, and the worker told of {made} requests")
        if done.outcome == "died":
            self.scene.owed.clear()
        elif restarted:
            done.judged = self.stored.spans() - self._told_before
            done.died_unread = max(0, after.heard_lost() - after.client_dropped)
            done.uncounted = max(0, made - done.dropped_by_client - done.judged - done.died_unread)
            done.lost = after.lost()
            self.scene.owed.clear()
        else:
            done.judged = after.judged() - before.judged()
            done.uncounted = max(0, books.unjudged(before, after))
            done.lost = {name: count - before.lost().get(name, 0) for name, count in after.lost().items()}
            done.lost = {name: count for name, count in done.lost.items() if count}
        self._told_before = self.stored.spans()
        if done.uncounted:
            done.wrong.append(f"{done.uncounted} requests are neither judged nor counted")
        if owing := books.owing(self.scene.owed, after):
            done.wrong.append(f"requests of strangers are neither judged nor counted: {owing}")
            self.scene.owed.subtract(owing)  # they are told once
        if after.heard_lost() < after.client_dropped:
            done.wrong.append(f"clients dropped {after.client_dropped}, the agent knows of {after.heard_lost()}")

    def _process(self, done: Round) -> None:
        def settled() -> bool:
            now = self.scene.agent.reading()
            return not self._grown(now)

        until(settled, 10.0)
        now = self.scene.agent.reading()
        done.reading = asdict(now)
        done.wrong += self._grown(now)
        if now.peak_rss_mib > RSS_BOUND_MIB:
            done.wrong.append(f"{now.peak_rss_mib:.0f} MiB were resident")

    def _grown(self, now: Reading) -> list[str]:
        found = []
        if now.fds > self.first.fds + MORE_FDS:
            found.append(f"{now.fds} descriptors, and {self.first.fds} at first")
        if now.threads > self.first.threads + MORE_THREADS:
            found.append(f"{now.threads} threads, and {self.first.threads} at first")
        return found


def _figures(rows: Iterable[Row]) -> Figures:
    latencies = sorted(row.latency_ms for row in rows)
    if not latencies:
        return {"count": 0}
    return {
        "count": len(latencies),
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
        "max_ms": latencies[-1],
    }


def _begins(at: Books, series: str) -> float:
    return sum(value for name, value in at.metrics.items() if name.startswith(series))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def line(done: Round) -> str:
    lost = Counter(done.lost)
    figures = f"{done.before.get('p99_ms', 0):.0f} -> {done.during.get('p99_ms', 0):.0f} ms p99"
    told = f"{done.asked} asked, {done.judged} judged, {done.dropped_by_client} dropped, {done.died_unread} died"
    held = f"RSS {done.reading['rss_mib']:.1f} MiB, {done.reading['fds']} fds, {done.reading['threads']} threads"
    state = "ok" if not done.wrong else "WRONG: " + "; ".join(done.wrong)
    return f"{done.fault}: {done.outcome}, {told}, {figures}, {held}, did {done.did}, lost {dict(lost)}: {state}"
