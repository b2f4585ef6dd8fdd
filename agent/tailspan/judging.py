"""Turns of judging: what has come in is judged in slices of CPU time, and the rings are drained in between."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator

from tailspan.pipeline import SLICE_S, Judged, Moment, Pipeline
from tailspan.timeline.evidence import Table
from tailspan.timeline.inbox import Received

logger = logging.getLogger(__name__)

#: Messages that wait for a turn; beyond it new ones are counted and dropped.
MAX_WAITING = 50_000
#: CPU time at a time once a turn has not ended when the next is due: most of a CPU, with drains in between.
LATE_SLICE_S = 0.05

_OVER = object()


class Judging:
    """One turn at a time. What comes meanwhile waits for the next, however long this one takes.

    ``publish``: where what is judged goes. ``settle``: takes the messages of the workers' socket that are judged
    or counted as dropped, and gives what was lost with agents before this one, as LOSS rows.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        publish: Callable[[Judged], None],
        settle: Callable[[Iterable[Received]], Table],
    ) -> None:
        self._pipeline, self._publish, self._settle = pipeline, publish, settle
        self._waiting: list[Received] = []
        self._unsettled: list[Received] = []
        self._gone: set[int] = set()
        self._turn: Iterator[None] | None = None
        self._is_late = False

    @property
    def is_on(self) -> bool:
        return self._turn is not None

    @property
    def waits(self) -> bool:
        """Whether there is something for a turn of its own."""
        return bool(self._waiting)

    def take(self, received: list[Received], of_socket: bool) -> None:
        if of_socket:
            self._unsettled += received
        room = MAX_WAITING - len(self._waiting)
        if len(received) > room:
            self._pipeline.inbox.dropped["backlog"] += len(received) - room
        self._waiting += received[:room]

    def gone(self, tgids: set[int]) -> None:
        """Processes that say nothing any more: each is forgotten once its last words are judged."""
        self._gone |= tgids
        if not (self.is_on or self._waiting):
            self._forget(self._take_gone())

    def is_due(self) -> bool:
        """Whether a turn can begin, now that it is time for one. The one that goes on is late, and hurries."""
        self._is_late = self.is_on
        return not self.is_on

    def begin(self, moment: Moment) -> None:
        """Begin to judge all that waits."""
        received, self._waiting = self._waiting, []
        unsettled, self._unsettled = self._unsettled, []
        self._turn = self._judge(received, unsettled, self._take_gone(), moment)

    def go_on(self) -> None:
        """For a slice, and a step."""
        self._go_on(LATE_SLICE_S if self._is_late else SLICE_S)

    def finish(self) -> None:
        """To the end of the turn."""
        self._go_on(math.inf)

    def _go_on(self, cpu_s: float) -> None:
        until_s = time.thread_time() + cpu_s
        while self._turn and time.thread_time() < until_s:
            if next(self._turn, _OVER) is _OVER:
                self._turn = None

    def _judge(
        self, received: list[Received], unsettled: list[Received], gone: set[int], moment: Moment
    ) -> Iterator[None]:
        try:
            for judged in self._pipeline.judging(received, moment):
                if judged is None:
                    yield
                else:
                    self._publish(judged)
        except Exception:  # whatever one worker has sent, the others are served
            self._pipeline.inbox.dropped["judge_failed"] += len(received)
            logger.exception("%d messages could not be judged", len(received))
        self._pipeline.lose(self._settle(unsettled))
        self._forget(gone)

    def _take_gone(self) -> set[int]:
        gone, self._gone = self._gone, set()
        return gone

    def _forget(self, gone: set[int]) -> None:
        for tgid in gone:
            self._pipeline.inbox.forget(tgid)
