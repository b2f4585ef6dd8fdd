"""What followed processes did in the last seconds, added up, and how well they are by it.

One second is one slot of a table; what a process did is a row of it. So a look at all of them is one sum, whatever
they did, and memory is bounded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tailspan import config
from tailspan.attribute import health, sleeps
from tailspan.attribute.health import Grade, HostHealth, Part, State, WorkerHealth
from tailspan.timeline.arrivals import began
from tailspan.timeline.evidence import Table
from tailspan.timeline.gpus import GpuReading
from tailspan.timeline.tables import FOREVER
from tailspan.wire.events import CycleFlags

Ints = npt.NDArray[np.int64]

#: A turn comes with the first judging after so long: about once a second.
TURN_NS = 900_000_000
#: Seconds that a grade looks back at most: long enough for a dozen requests, short enough to act on.
LONGEST_S = 30
#: Processes that are told apart; what others do counts for the host.
MAX_PROCESSES = 256
#: Turns of threads that are kept at most before they are added up: some 4 MB.
MANY_CYCLES = 16_384
#: GPUs that a process may name as its own.
MAX_GPUS = 16
#: Service of a worker that has not said one.
UNNAMED = "unnamed"

_WAITED, _RAN, _SERVED, _SLOW = range(4)
#: The columns of a turn of a thread that say how long it ran and waited; a row of them is a third of a record.
_COLUMNS = (
    *("run_mono_ns", "off_mono_ns", "ready_mono_ns", "on_mono_ns"),
    *("short_blocked_ns", "short_runq_ns", "flags", "tgid"),
)


class Watch:
    """:meth:`took` and :meth:`served` as it comes in; :meth:`turn` when :meth:`due`."""

    def __init__(self, weights: config.Health, slo_ms: float = 0.0, window_s: int = LONGEST_S) -> None:
        self._weights, self._slo_ms = weights, slo_ms
        self._slots = max(1, min(window_s, LONGEST_S))
        self._done = np.zeros((MAX_PROCESSES + 1, self._slots, 4), np.int64)  # the last row is of all others
        self._seen_ns = np.zeros(self._slots, np.int64)  # how long each slot lasted
        self._slot = 0
        self._rows: dict[int, int] = {}  # tgid -> its row
        self._free = list(range(MAX_PROCESSES - 1, -1, -1))
        self._cycles: list[Table] = []  # not added up yet
        self._n_cycles = 0  # rows of them
        self._devices: dict[int, set[str]] = {}  # tgid -> uuids of the GPUs that its requests named
        self._states: dict[str | int, State] = {}  # of services by name, of processes by tgid
        self._host_state = State.UNKNOWN
        self._looked_mono_ns = 0

    def change(self, weights: config.Health, slo_ms: float) -> None:
        """From the next request on."""
        self._weights, self._slo_ms = weights, slo_ms

    def due(self, now_mono_ns: int) -> bool:
        if not self._looked_mono_ns:
            self._looked_mono_ns = now_mono_ns
        return now_mono_ns - self._looked_mono_ns >= TURN_NS

    def took(self, cycles: Table) -> None:
        """wire.events.THREAD_CYCLE of one drain."""
        if self._n_cycles >= MANY_CYCLES:  # what is of earlier drains was over before the next look
            self._add_ended(FOREVER)
        if len(cycles):
            self._cycles.append(cycles)
            self._n_cycles += len(cycles)

    def served(self, requests: Table, strings: Sequence[str], slow: npt.NDArray[np.bool_]) -> None:
        """Requests that have ended, and which of them were slow for their like."""
        if self._slo_ms:
            slow = requests["end_mono_ns"] - began(requests) > self._slo_ms * 1e6
        tgids, of = np.unique(requests["tgid"], return_inverse=True)
        counts = np.bincount(of, minlength=len(tgids)).tolist()
        slows = np.bincount(of, slow, minlength=len(tgids)).astype(np.int64).tolist()
        for tgid, count, n_slow in zip(tgids.tolist(), counts, slows, strict=True):
            self._done[self._row(tgid), self._slot, _SERVED:] += (count, n_slow)
        for tgid, device in set(requests[requests["device"] > 0][["tgid", "device"]].tolist()):
            named = self._devices.setdefault(tgid, set())
            if strings[device] and len(named) < MAX_GPUS:
                named.add(strings[device])

    def turn(
        self, look: Table, services: Mapping[int, str], gpus: Sequence[GpuReading], now_mono_ns: int
    ) -> HostHealth:
        """``look``: all followed threads (THREAD_STATE rows), from before the last drain. ``services``: what each
        process serves that has said so, by tgid.
        """
        self._add_up(look, now_mono_ns)
        followed = set(np.unique(look["tgid"]).tolist())
        self._forget_all_but(followed | services.keys())
        by_service: dict[str, list[int]] = defaultdict(list)
        for tgid, service in services.items():
            if self._row(tgid) < MAX_PROCESSES:
                by_service[service or UNNAMED].append(tgid)
        ungraded = len(services) - sum(map(len, by_service.values()))
        lately = _Lately(
            self._done.sum(axis=1), int(self._seen_ns.sum()), followed, _Cards(gpus, self._devices, now_mono_ns)
        )
        workers = tuple(self._worker(lately, service, tgids) for service, tgids in sorted(by_service.items()))
        self._states = {key: state for each in workers for key, state in _states(each)}
        own = self._parts(lately, lately.done.sum(axis=0), bool(followed), lately.cards.of_host())
        host = health.grade(own, self._weights, self._host_state)
        host = health.worst_of(host, workers, self._weights, self._host_state)
        self._host_state = host.state
        self._next_slot()
        return HostHealth(host, workers, ungraded)

    def _worker(self, lately: _Lately, service: str, tgids: list[int]) -> WorkerHealth:
        processes = {}
        for tgid in tgids:
            card = lately.cards.of([tgid])
            parts = self._parts(lately, lately.done[self._rows[tgid]], tgid in lately.followed, card)
            processes[tgid] = self._grade(tgid, parts)
        together = lately.done[[self._rows[tgid] for tgid in tgids]].sum(axis=0)
        is_followed = not lately.followed.isdisjoint(tgids)
        return WorkerHealth(
            service,
            self._grade(service, self._parts(lately, together, is_followed, lately.cards.of(tgids))),
            processes,
        )

    def _parts(self, lately: _Lately, done: Ints, is_followed: bool, card: Part | None) -> tuple[Part | None, ...]:
        waited, ran, served, slow = done.tolist()
        load = health.load(waited, ran, lately.seen_ns) if is_followed else None
        return load, card, health.latency(served, slow, self._slo_ms)

    def _grade(self, key: str | int, parts: Iterable[Part | None]) -> Grade:
        return health.grade(parts, self._weights, self._states.get(key, State.UNKNOWN))

    def _add_up(self, look: Table, now_mono_ns: int) -> None:
        """What ended before the look was taken, and what was open at it, both from the last look on."""
        since = self._looked_mono_ns
        until = int(look["taken_mono_ns"].min()) if len(look) else now_mono_ns
        self._add_ended(until)
        self._add(look["tgid"], *_of_open(look, since))
        self._seen_ns[self._slot] = max(until - since, 0)
        self._looked_mono_ns = until

    def _add_ended(self, until: int) -> None:
        ended, self._cycles = _ended(self._cycles, until)
        self._n_cycles = sum(map(len, self._cycles))
        self._add(ended["tgid"], *_of_ended(ended, self._looked_mono_ns))

    def _add(self, tgid: Ints, waited: Ints, ran: Ints) -> None:
        tgids, of = np.unique(tgid, return_inverse=True)
        for column, ns in ((_WAITED, waited), (_RAN, ran)):
            sums = np.bincount(of, ns, minlength=len(tgids)).astype(np.int64).tolist()
            for one, total in zip(tgids.tolist(), sums, strict=True):
                self._done[self._row(one), self._slot, column] += total

    def _next_slot(self) -> None:
        self._slot = (self._slot + 1) % self._slots
        self._done[:, self._slot] = 0
        self._seen_ns[self._slot] = 0

    def _row(self, tgid: int) -> int:
        row = self._rows.get(tgid)
        if row is None:
            if not self._free:
                return MAX_PROCESSES
            row = self._rows[tgid] = self._free.pop()
            self._done[row] = 0
        return row

    def _forget_all_but(self, tgids: set[int]) -> None:
        for tgid in self._rows.keys() - tgids:
            self._free.append(self._rows.pop(tgid))
        for tgid in self._devices.keys() - tgids:
            del self._devices[tgid]


@dataclass(frozen=True, slots=True)
class _Lately:
    done: Ints  # by row, over all slots
    seen_ns: int  # how long that was
    followed: set[int]
    cards: _Cards


class _Cards:
    """Whose GPU is which."""

    def __init__(self, gpus: Sequence[GpuReading], named: Mapping[int, set[str]], now_mono_ns: int) -> None:
        self._now_mono_ns = now_mono_ns
        split = {gpu.parent for gpu in gpus}
        self._all = [gpu for gpu in gpus if gpu.uuid not in split]
        self._users_known = any(gpu.processes for gpu in gpus)
        self._of: dict[int, list[GpuReading]] = defaultdict(list)
        for gpu in gpus:
            users = {process.tgid for process in gpu.processes}
            users |= {tgid for tgid, uuids in named.items() if gpu.uuid in uuids}
            for tgid in users:
                self._of[tgid].append(gpu)

    def of(self, tgids: Iterable[int]) -> Part | None:
        """The GPUs that they use; all of the host's where NVML does not say who uses them."""
        used = [gpu for tgid in tgids for gpu in self._of.get(tgid, ())]
        return health.gpu_memory(used if used or self._users_known else self._all, self._now_mono_ns)

    def of_host(self) -> Part | None:
        return health.gpu_memory(self._all, self._now_mono_ns)


def _states(worker: WorkerHealth) -> Iterable[tuple[str | int, State]]:
    yield worker.service, worker.grade.state
    for tgid, grade in worker.processes.items():
        yield tgid, grade.state


def _ended(cycles: list[Table], until: int) -> tuple[dict[str, Ints], list[Table]]:
    """Columns of the turns that were over by then; and what came later, which was still open at that time."""
    if not cycles:
        return dict.fromkeys(_COLUMNS, np.empty(0, np.int64)), []
    columns = {name: np.concatenate([rows[name] for rows in cycles]).astype(np.int64) for name in _COLUMNS}
    is_late = columns["on_mono_ns"] > until
    if not is_late.any():
        return columns, []
    late = [rows[rows["on_mono_ns"] > until] for rows in cycles]
    return {name: values[~is_late] for name, values in columns.items()}, [rows for rows in late if len(rows)]


def _of_ended(cycles: Mapping[str, Ints], since: int) -> tuple[Ints, Ints]:
    """(waited, ran) ns of each turn, after ``since``. Waits too short for a record count when the turn is over."""
    short_ns = cycles["short_blocked_ns"] + cycles["short_runq_ns"]
    ran = _after(cycles["run_mono_ns"], cycles["off_mono_ns"], since) - short_ns
    # A thread that was seen asleep, or was just born, did not run before.
    ran[cycles["flags"] & (CycleFlags.SEEDED | CycleFlags.BORN) != 0] = 0
    waited = _after(cycles["ready_mono_ns"], cycles["on_mono_ns"], since) + cycles["short_runq_ns"]
    return waited, np.maximum(ran, 0)


def _of_open(look: Table, since: int) -> tuple[Ints, Ints]:
    """The same of what is not over: a thread that gets no CPU at all, or is stopped, ends no turn."""
    off, ready, taken = look["off_mono_ns"], look["ready_mono_ns"], look["taken_mono_ns"]
    since_followed = np.maximum(look["followed_mono_ns"], since)
    ran = _after(look["run_mono_ns"], np.where(off > 0, off, taken), since_followed)
    ran[(off > 0) & (look["flags"] & CycleFlags.SEEDED != 0)] = 0
    stopped = (off > 0) & (ready == 0) & (look["state"] & sleeps.STOPPED != 0)
    waits = (off > 0) & (ready > 0)
    waited = np.where(waits, _after(ready, taken, since_followed), 0)
    return waited + np.where(stopped, _after(off, taken, since_followed), 0), ran


def _after(start: Ints, end: Ints, since: Ints | int) -> Ints:
    length: Ints = np.maximum(end - np.maximum(start, since), 0)
    return length
