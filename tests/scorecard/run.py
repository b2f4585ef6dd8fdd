"""One run: each fault in turn, in stretches between healthy ones, until enough slow requests were stored."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tailspan.attribute.judge import judge
from tailspan.attribute.verdict import Outcome, Verdict
from tailspan.errors import NotFoundError
from tailspan.export import semconv
from tailspan.export.local import SegmentReader
from tailspan.timeline.evidence import Table
from tailspan.wire.events import SOCKET_WAIT
from tests.scorecard.fault import Fault
from tests.scorecard.load import Asked
from tests.scorecard.scene import Scene, scene
from tests.scorecard.score import AFTER_NS, Card, Stretch, When, score, unknown_share, when


@dataclass(frozen=True)
class Plan:
    """``slow``: stored requests wanted of each fault, ``like``: healthy requests of its stage before it."""

    slow: int
    like: int
    stretches: tuple[int, int]  #: of one fault, at least and at most
    between_s: float  #: healthy, after each stretch


FULL = Plan(slow=20, like=60, stretches=(2, 6), between_s=1.6)
SHORT = Plan(slow=8, like=40, stretches=(1, 3), between_s=1.2)

_LIKE_S = 20.0
#: A verdict is stored so soon after its request, at the latest, when the agent keeps up.
_STORED_S = 0.6

Metrics = dict[str, float]


def run(faults: Sequence[Fault], plan: Plan) -> Card:
    """Raises CannotError where the host lacks something."""
    # Not in /tmp, which may be a tmpfs: faults of disks need one.
    with (
        tempfile.TemporaryDirectory(prefix="tailspan-scorecard-", dir="/var/tmp") as folder,
        scene(Path(folder)) as at,
    ):
        stretches = {}
        quiet = Quiet(at)
        for fault in faults:
            stretches[fault.name] = _one(fault, at, plan, quiet)
        at.load.close()
        time.sleep(_STORED_S)
        metrics = _metrics(at)
        at.agent.stop()
        verdicts, sockets = _judged(at)
    return _card(faults, stretches, at.load.asked, verdicts, sockets, metrics, quiet.others)


def _one(fault: Fault, at: Scene, plan: Plan, quiet: Quiet) -> list[Stretch]:
    say(f"{fault.name}: {fault.what}")
    at.load.ask(fault.stage, fresh=fault.fresh, connections=fault.connections, think_s=fault.think_s)
    quiet.start()
    before = sum(asked.stage == fault.stage for asked in at.load.asked)
    deadline = time.monotonic() + _LIKE_S
    while sum(asked.stage == fault.stage for asked in at.load.asked) - before < plan.like:
        if time.monotonic() > deadline:
            say(f"  too few answers: {_latest(at, fault.stage)}")
            break
        time.sleep(0.05)
    quiet.stop()
    done: list[Stretch] = []
    least, most = plan.stretches
    while len(done) < least or (len(done) < most and _stored(at, fault, done) < plan.slow):
        done.append(_stretch(fault, at))
        time.sleep(plan.between_s)
    say(f"  {_stored(at, fault, done)} slow in {len(done)} stretches; {_latest(at, fault.stage)}")
    return done


class Quiet:
    """How much of the worker's CPU others took while no fault was there: what those did is no fault's doing."""

    def __init__(self, at: Scene) -> None:
        self._at = at
        self._taken_s = self._all_s = 0.0

    def start(self) -> None:
        self._began_s, self._busy_s = time.monotonic(), self._read()

    def stop(self) -> None:
        self._taken_s += self._read() - self._busy_s
        self._all_s += time.monotonic() - self._began_s

    @property
    def others(self) -> float:
        return max(0.0, self._taken_s / self._all_s)

    def _read(self) -> float:
        """Seconds in which the CPU was busy, but for the worker."""
        tick = os.sysconf("SC_CLK_TCK")
        line = next(
            line
            for line in Path("/proc/stat").read_text().splitlines()
            if line.startswith(f"cpu{self._at.worker_cpu} ")
        )
        user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
        own = Path(f"/proc/{self._at.worker.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (user + nice + system + irq + softirq + steal - sum(map(int, own))) / tick


def _stretch(fault: Fault, at: Scene) -> Stretch:
    before = time.monotonic_ns()
    with fault.inject(at) as expected:
        counter = fault.truth.counter(at) if fault.truth else 0.0
        start = time.monotonic_ns()
        time.sleep(fault.seconds)
        end = time.monotonic_ns()
        counted = fault.truth.counter(at) - counter if fault.truth else 0.0
    after = time.monotonic_ns()
    time.sleep(AFTER_NS / 1e9)
    return Stretch(before, start, end, after, expected, counted)


def _stored(at: Scene, fault: Fault, stretches: Sequence[Stretch]) -> int:
    """Slow requests of the fault's stretches that are in the store."""
    if not stretches:
        return 0
    offset = time.time_ns() - time.monotonic_ns()
    first = stretches[0].start_ns + offset
    try:
        rows = [entry.row for entry in SegmentReader(at.agent.store).rows(first)]
    except NotFoundError:
        return 0
    return sum(
        row.name == f"POST /v1/infer/{fault.stage}"
        and any(
            s.start_ns < row.start_unix_ns + row.wall_ns - offset and row.start_unix_ns - offset < s.end_ns
            for s in stretches
        )
        for row in rows
    )


def _latest(at: Scene, stage: str) -> str:
    asked = [each for each in at.load.asked if each.stage == stage]
    failed = sum(each.status != 200 for each in asked)
    return f"{len(asked)} requests, {failed} failed"


def _judged(at: Scene) -> tuple[dict[str, Verdict], Table]:
    """Every stored request judged, by request id; and the waits of sockets, each once."""
    verdicts: dict[str, Verdict] = {}
    sockets = [np.empty(0, SOCKET_WAIT)]
    for evidence in SegmentReader(at.agent.store).evidence():
        verdicts |= {verdict.request.request_id: verdict for verdict in judge(evidence)}
        sockets.append(evidence.sockets)
    return verdicts, np.unique(np.concatenate(sockets))


def _card(
    faults: Sequence[Fault],
    stretches: dict[str, list[Stretch]],
    asked: Sequence[Asked],
    verdicts: dict[str, Verdict],
    sockets: Table,
    metrics: Metrics,
    others: float,
) -> Card:
    everything = [stretch for found in stretches.values() for stretch in found]
    phases = [(each, when(each, everything)[0]) for each in asked]
    faulted = [
        verdicts[each.request_id]
        for each, phase in phases
        if phase is When.FAULTED and each.request_id in verdicts
    ]
    healthy = [each for each, phase in phases if phase is When.HEALTHY]
    blamed = [verdicts[each.request_id] for each in healthy if each.request_id in verdicts]
    scores = []
    for fault in faults:
        own = stretches[fault.name]
        of_stage = [
            each
            for each, phase in phases
            if each.stage == fault.stage and (phase is When.HEALTHY or when(each, own)[0] is not When.HEALTHY)
        ]
        scores.append(score(fault, own, of_stage, verdicts, sockets))
    return Card(
        scores=scores,
        healthy=len(healthy),
        accused=[verdict.sentence for verdict in blamed if verdict.outcome is Outcome.NAMED],
        unknown=sorted(unknown_share(verdict) for verdict in faulted),
        verdict_p50_s=_quantile(metrics, 0.50),
        verdict_p95_s=_quantile(metrics, 0.95),
        others=others,
        errors=sum(each.status != 200 for each in asked),
        lost={
            name.split('"')[1]: round(value)
            for name, value in metrics.items()
            if name.startswith(semconv.LOST_RECORDS.name + "{") and value
        },
    )


def _metrics(at: Scene) -> Metrics:
    with urllib.request.urlopen(f"http://127.0.0.1:{at.agent_port}/metrics") as response:
        lines = (
            line.rpartition(" ") for line in response.read().decode().splitlines() if line[:1] not in ("#", "")
        )
        return {series: float(value) for series, _, value in lines}


def _quantile(metrics: Metrics, share: float) -> float:
    """Of the time from a request's end to its verdict: within a bucket of the agent's histogram, evenly."""
    prefix = f'{semconv.VERDICT_LATENCY.name}_bucket{{le="'
    buckets = sorted((float(name[len(prefix) : -2]), n) for name, n in metrics.items() if name.startswith(prefix))
    low = below = 0.0
    for bound, count in buckets:
        if count and count >= share * buckets[-1][1]:
            return low + (bound - low) * (share * buckets[-1][1] - below) / (count - below)
        low, below = bound, count
    return 0.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
