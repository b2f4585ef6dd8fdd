"""What the agent knows of its own price, what it does about it, and what it says of it."""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, TypeGuard

from tailspan.attribute.shedding import BY_NAME
from tailspan.config import Budget
from tailspan.cost.ladder import Ladder, Pace
from tailspan.cost.meter import Meter, Reading
from tailspan.cost.trial import MAX_SECONDS, MIN_SECONDS, Trial
from tailspan.errors import ProbeError
from tailspan.timeline.evidence import Table

logger = logging.getLogger(__name__)

Json = dict[str, Any]
#: How often the budget is looked at; and how long BPF programs may be looked at.
TURN_S, MAX_LOOK_S = 1.0, 60.0


class Agent(Protocol):
    """What the daemon does for it."""

    def switch_probes(self, on: bool) -> None: ...
    def worker_cpu_ns(self) -> dict[int, int]:
        """CPU time of each process that is followed for its requests, in all."""

    def shed(self, steps: frozenset[str]) -> None:
        """Do without these, and with all others."""

    def idle_steps(self) -> Collection[str]:
        """Steps that there is nothing to save by now."""

    def run_times(self) -> dict[str, tuple[int, int]]:
        """BPF program -> (ns, runs) since it was loaded."""


class Intervals:
    """When something was so, for as long as the live window reaches back."""

    def __init__(self, keep_ns: int) -> None:
        self._keep_ns = keep_ns
        self._ended: deque[list[int]] = deque()
        self._since: int | None = None

    def set(self, on: bool, mono_ns: int) -> None:
        if on and self._since is None:
            self._since = mono_ns
        elif not on and self._since is not None:
            self._ended.append([self._since, mono_ns])
            self._since = None

    def recent(self, mono_ns: int) -> list[list[int]]:
        """Until now, where it still is."""
        while self._ended and self._ended[0][1] < mono_ns - self._keep_ns:
            self._ended.popleft()
        return [*map(list, self._ended), *([[self._since, mono_ns]] if self._since is not None else [])]


class Price:
    def __init__(self, agent: Agent, budget: Budget, window_s: float, pace: Pace | None = None) -> None:
        self.meter = Meter()
        self.measured: Json | None = None  #: the last measurement that came to something
        self.changes: Counter[str] = Counter()  #: steps shed and restored, in total
        self._is_new = False  # it has not been taken
        self._agent, self._budget = agent, budget
        self._pace = pace or Pace()
        self._ladder = Ladder(budget, self._pace)
        self._shed: dict[str, str] = {}
        self._keep_ns = int(window_s * 1e9)
        self._off = Intervals(self._keep_ns)
        self._shed_when: dict[str, Intervals] = {}
        self._trial: Trial | None = None
        self._asker: _Asker | None = None
        self._turned_s = time.monotonic()

    @property
    def shed(self) -> Mapping[str, str]:
        """Steps that are shed now, and for which budget."""
        return self._shed

    @property
    def budget(self) -> Budget:
        return self._budget

    def change(self, budget: Budget) -> None:
        self._budget = budget
        self._ladder.change(budget)
        self._apply(self._ladder.shed())

    def turn(self) -> Reading | None:
        """Once a second: read the meter, and shed or restore a step; None when it is not time."""
        now_s = time.monotonic()
        if now_s - self._turned_s < TURN_S:
            return None
        self._turned_s = now_s
        reading = self.meter.read()
        if not self._trial:  # with probes off in turns it costs less than it does
            cpu = self.meter.cpu(self._pace.above_s)
            self._ladder.feed(now_s, cpu, reading.rss, self._agent.idle_steps())
            self._apply(self._ladder.shed())
        return reading

    def poll(self) -> None:
        """Go on with a measurement, if there is one. Raises CannotError where probes cannot be attached again."""
        if not self._trial:
            return
        try:
            answer = self._trial.poll()
        except ProbeError as error:
            answer = {"ok": False, "error": str(error)}
        if answer is None:
            return
        self._end(answer)
        if answer["ok"]:
            self.measured, self._is_new = answer, True

    def take_measured(self) -> dict[str, tuple[float, float, float]] | None:
        """What was measured since the last call: p50, p99, mean, cpu -> estimate and bounds, in seconds."""
        if not self._is_new or not self.measured:
            return None
        self._is_new = False
        return {
            name: (found["estimate_s"], found["lower_s"], found["upper_s"])
            for name, found in self.measured["differences"].items()
        }

    def served(self, requests: Table) -> None:
        if self._trial:
            self._trial.served(requests)

    def _switch(self, on: bool) -> None:
        """Raises ProbeError. What is said of their being off is rather too long than too short."""
        if not on:
            self._off.set(True, time.monotonic_ns())
        try:
            self._agent.switch_probes(on)
        except ProbeError:
            self._off.set(False, time.monotonic_ns())
            raise
        if on:
            self._off.set(False, time.monotonic_ns())

    def stop(self, why: str = "the agent stops") -> None:
        """End a measurement before its time."""
        if self._trial:
            trial = self._trial
            self._end({"ok": False, "error": why})
            trial.stop()

    def probes_off(self, mono_ns: int) -> list[list[int]]:
        """As timeline.evidence.Meta has it."""
        return self._off.recent(mono_ns)

    def shed_when(self, mono_ns: int) -> dict[str, list[list[int]]]:
        """As timeline.evidence.Meta has it."""
        found = {key: intervals.recent(mono_ns) for key, intervals in self._shed_when.items()}
        return {key: intervals for key, intervals in found.items() if intervals}

    def answer(self, request: Json) -> Callable[[], Json | None]:
        """Control request ``{"do": "cost"}``, with ``seconds`` to look at BPF programs for so long, or with
        ``measure``, seconds too."""
        if "measure" in request:
            return self._measure(request["measure"])
        seconds = request.get("seconds", 0)
        if not _is_number(seconds) or not 0 <= seconds <= MAX_LOOK_S:
            return lambda: {"ok": False, "error": f"seconds: a number from 0 to {MAX_LOOK_S:g}"}
        since_s, before = time.monotonic(), self._agent.run_times()

        def pending() -> Json | None:
            looked_s = time.monotonic() - since_s
            return self._now(before, looked_s) if looked_s >= seconds else None

        return pending

    def _measure(self, seconds: object) -> Callable[[], Json | None]:
        if not _is_number(seconds) or not MIN_SECONDS <= seconds <= MAX_SECONDS:
            return lambda: {"ok": False, "error": f"measure: seconds, {MIN_SECONDS:g} to {MAX_SECONDS:g}"}
        if self._trial:
            return lambda: {"ok": False, "error": "its cost is being measured already: one at a time"}
        if not self._agent.worker_cpu_ns():
            return lambda: {"ok": False, "error": "no worker is followed: there is nothing to measure"}
        seed = secrets.randbits(32)
        logger.info("cost: probes go off and on for %.0f s, to measure what they cost (seed %d)", seconds, seed)
        self._trial = Trial(seconds, seed, self._switch, self._agent.worker_cpu_ns)
        self._asker = _Asker(self)
        return self._asker

    def _end(self, answer: Json) -> None:
        self._trial = None
        if self._asker:
            self._asker.answer, self._asker = answer, None
        logger.info("cost: measured" if answer["ok"] else "cost: not measured: %s", *_error(answer))

    def _apply(self, shed: dict[str, str]) -> None:
        if shed == self._shed:
            return
        now_ns = time.monotonic_ns()
        for name in [*self._shed, *shed]:
            if name in shed and name not in self._shed:
                self.changes["shed"] += 1
                logger.warning("%s are shed: the agent is above its budget (%s)", BY_NAME[name].what, shed[name])
            elif name in self._shed and name not in shed:
                self.changes["restored"] += 1
                logger.info("%s are back", BY_NAME[name].what)
        for key in {f"{name}/{why}" for name, why in [*self._shed.items(), *shed.items()]}:
            name, _, why = key.partition("/")
            self._shed_when.setdefault(key, Intervals(self._keep_ns)).set(shed.get(name) == why, now_ns)
        self._shed = shed
        self._agent.shed(frozenset(shed))

    def _now(self, before: dict[str, tuple[int, int]], looked_s: float) -> Json:
        reading, meter = self.meter.read(), self.meter
        up_s = meter.started_s
        return {
            "ok": True,
            "agent": {
                "up_s": round(up_s, 1),
                "cpu": {
                    "10s": round(meter.cpu(10), 5),
                    "60s": round(meter.cpu(60), 5),
                    "start": round(reading.cpu_s / max(up_s, 1e-3), 5),
                },
                "rss": reading.rss,
                "peak_rss": reading.peak_rss,
                "threads": reading.threads,
                "files": reading.files,
            },
            "bpf": self._programs(before, looked_s),
            "records_per_s": {name: round(rate, 1) for name, rate in meter.records_per_s(10).items()},
            "lost": {"60s": meter.losses(60), "total": meter.losses()},
            "budget": {"cpu": self._budget.cpu, "rss_mib": self._budget.rss_mib},
            "shed": [
                {"step": name, "what": BY_NAME[name].what, "why": why, "unsaid": BY_NAME[name].unsaid}
                for name, why in self._shed.items()
            ],
            "measuring": self._trial is not None,
            "measured": self.measured,
        }

    def _programs(self, before: dict[str, tuple[int, int]], looked_s: float) -> Json | None:
        """None where the kernel does not count."""
        rows: list[Json] = []
        for name, (ns, runs) in self._agent.run_times().items():
            more_ns, more = ns - before.get(name, (0, 0))[0], runs - before.get(name, (0, 0))[1]
            if more > 0 and looked_s > 0:
                rows.append(
                    {
                        "program": name,
                        "ns_per_run": round(more_ns / more, 1),
                        "runs_per_s": round(more / looked_s, 1),
                        "cpu": round(more_ns / 1e9 / looked_s, 6),
                    }
                )
        rows.sort(key=lambda row: (-row["cpu"], row["program"]))
        return {"seconds": round(looked_s, 2), "programs": rows} if rows else None


class _Asker:
    """Who waits for a measurement; it ends when he goes."""

    def __init__(self, price: Price) -> None:
        self._price = price
        self.answer: Json | None = None

    def __call__(self) -> Json | None:
        return self.answer

    def gone(self) -> None:
        if self.answer is None:
            self._price.stop("who had asked for it has gone")


def _error(answer: Json) -> tuple[str, ...]:
    return () if answer["ok"] else (str(answer["error"]),)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
