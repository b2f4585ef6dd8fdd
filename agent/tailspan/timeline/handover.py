"""What workers sent to an agent that was killed before it judged it.

A worker's client counts the messages that the kernel took from it, and tells the number when it connects. What
agents have judged of them, or dropped and counted, is in a tally that outlives them: what is missing there died
with one of them, unread in its sockets or read and not judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Protocol

import numpy as np

from tailspan.timeline.evidence import Table
from tailspan.timeline.inbox import Received
from tailspan.timeline.tables import LOSS, LOSS_CLIENT
from tailspan.wire.spans import Drops, Hello

#: Processes that are counted at a time; of others beyond nothing is known after a kill.
MAX_PROCESSES = 512

_TAKEN, _BOOT = "taken.", "boot"


class Tally(Protocol):
    """Named counters that survive the process; 0 until they are set."""

    def get(self, key: str) -> int: ...
    def set(self, key: str, value: int) -> None: ...
    def remove(self, key: str) -> None: ...
    def keys(self, prefix: str) -> list[str]: ...


class Handover:
    """``started``: when a process did, in any unit, as long as the machine is up; 0 where it is gone.

    ``boot``: the id of the machine's own start. A live agent loses nothing that it does not count, so only the
    first hello of each process is compared. Of an older client, or without a tally, nothing is known to be lost.
    """

    def __init__(self, tally: Tally, started: Callable[[int], int], boot: str) -> None:
        self._tally, self._started = tally, started
        self._keys: dict[int, str] = {}  # of the processes that have said hello to this agent
        this_boot = int.from_bytes(blake2b(boot.encode(), digest_size=8).digest(), "big")
        if tally.get(_BOOT) != this_boot:
            self._remove(tally.keys(_TAKEN))
            tally.set(_BOOT, this_boot)
        self._forget_gone()

    def take(self, received: Iterable[Received]) -> Table:
        """These were judged, or are counted as dropped. Gives what was lost with earlier agents, as LOSS rows."""
        losses = []
        taken: Counter[int] = Counter()
        for item in received:
            if isinstance(item.message, Hello):
                lost = self._greet(item.tgid, item.message.sent)
                if lost:
                    losses.append((item.mono_ns, item.mono_ns, lost, LOSS_CLIENT, 0))
            elif not isinstance(item.message, Drops):
                taken[item.tgid] += 1
        for tgid, count in taken.items():
            key = self._keys.get(tgid)
            if key:
                self._tally.set(key, self._tally.get(key) + count)
        return np.array(losses, LOSS)

    def _greet(self, tgid: int, sent: int) -> int:
        """How many of the messages that it has sent nobody took; 0 where its history is not known."""
        key = self._key(tgid)
        if not key or self._keys.get(tgid) == key:
            return 0
        if len(self._keys) >= MAX_PROCESSES:
            self._forget_gone()
        if len(self._keys) >= MAX_PROCESSES:
            return 0
        self._keys[tgid] = key
        taken = self._tally.get(key)
        lost = max(0, sent - taken) if key in self._tally.keys(key) else 0
        self._tally.set(key, max(sent, taken))
        return lost

    def _key(self, tgid: int) -> str:
        started = self._started(tgid)
        return f"{_TAKEN}{tgid}.{started}" if started else ""

    def _forget_gone(self) -> None:
        gone = {key for key in self._tally.keys(_TAKEN) if key != self._key(_tgid(key))}
        self._remove(gone)
        self._keys = {tgid: key for tgid, key in self._keys.items() if key not in gone}

    def _remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._tally.remove(key)


def _tgid(key: str) -> int:
    """0 where the tally holds what no agent wrote."""
    number = key.split(".")[1]
    return int(number) if number.isascii() and number.isdigit() else 0
