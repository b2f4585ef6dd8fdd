"""What the agent's loop says of itself and of the workers: written by the loop, read by any thread.

Alive: the loop turns. Ready: what it does can lead to verdicts. Both are one line of why not; "" where they hold.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping

from tailspan.attribute.health import Grade, HostHealth
from tailspan.export.health import Json, as_json
from tailspan.export.local import TOO_LARGE, UNENCODABLE

#: A loop that has not come round for so long is stuck.
STUCK_S = 10.0
#: Turns, a second each, that readiness looks back at.
TURNS = 30
#: Share of the kernel's records that is lost, above which verdicts are made of what happened to be left.
LOST = 0.5


class Pulse:
    """Not ready until the first :meth:`turn`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat_s = clock()
        self._unready = "starting"
        self._is_stopping = False
        self._health = HostHealth()
        self._shed: tuple[str, ...] = ()
        self._turns: deque[tuple[int, int, str]] = deque(maxlen=TURNS)  # records, lost, why one was not stored
        self._records = self._lost = 0  # since the last turn
        self._not_stored: dict[str, int] = {}

    def beat(self) -> None:
        """The loop has come round."""
        self._beat_s = self._clock()

    def drained(self, records: int, lost: int) -> None:
        """Records that the kernel handed over, and that it could not."""
        self._records += records
        self._lost += lost

    def turn(self, health: HostHealth, not_stored: Mapping[str, int], missing: str) -> None:
        """About once a second. ``not_stored``: evidence that the store has dropped, in total, by reason.
        ``missing``: what else keeps workers from being heard, "" for nothing.
        """
        self._turns.append((self._records, self._lost, self._why_not_stored(not_stored)))
        self._records = self._lost = 0
        self._health = health
        self._unready = missing or self._blind() or self._full()

    def shed(self, steps: Collection[str]) -> None:
        """What it does without now, to stay in its budget: that makes verdicts poorer, not absent."""
        self._shed = tuple(steps)

    def stopping(self) -> None:
        self._is_stopping = True

    def dead(self) -> str:
        """Why it does not do its work at all; "" while it does."""
        since_s = self._clock() - self._beat_s
        return f"the agent is stuck for {since_s:.0f} s" if since_s > STUCK_S else ""

    def unready(self) -> str:
        """Why no verdicts are to be expected of it; "" where they are."""
        return self.dead() or ("stopping" if self._is_stopping else self._unready)

    def health(self) -> HostHealth:
        """As of the last turn. Of a stuck agent nothing is known any more: that is no fault of the workers."""
        dead = self.dead()
        return HostHealth(Grade(why=dead)) if dead else self._health

    def answer(self) -> Json:
        """What `tailspan health` is told."""
        return {"ok": True, "unready": self.unready(), "shed": list(self._shed), **as_json(self.health())}

    def knows(self) -> bool:
        """Whether one that is not among the workers is none: after a start they need a while to be heard of."""
        return len(self._turns) == TURNS and not self.dead()

    def _why_not_stored(self, totals: Mapping[str, int]) -> str:
        before, self._not_stored = self._not_stored, dict(totals)
        ours = (TOO_LARGE, UNENCODABLE)  # one request's fault: others are stored
        return next((why for why, total in totals.items() if total > before.get(why, 0) and why not in ours), "")

    def _blind(self) -> str:
        records, lost = sum(turn[0] for turn in self._turns), sum(turn[1] for turn in self._turns)
        share = lost / (records + lost) if lost else 0.0
        return f"{share:.0%} of the kernel's records are lost" if share > LOST else ""

    def _full(self) -> str:
        why = next((turn[2] for turn in reversed(self._turns) if turn[2]), "")
        return f"evidence cannot be stored: {why}" if why else ""
