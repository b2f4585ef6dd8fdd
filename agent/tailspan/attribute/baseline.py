"""What is normal for a request's like, and from when on it is slow.

Requests are alike that share name, model, version and batch-size bucket (powers of two); where a bucket is too
rare, all its sizes together. The baseline is made of recent requests that were not slow: were it made of all, a
fault that lasts would become the norm while it is still being explained. When nearly everything has been slow for
a whole memory's length, that is the new norm all the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tailspan.attribute.causes import N_CAUSES
from tailspan.timeline.arrivals import began
from tailspan.timeline.evidence import LikeRow, Table

#: Below this many like requests there is no norm to compare with.
MIN_LIKE = 20


#: (name, model, version), and the batch-size bucket where sizes are told apart.
_Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class SlowRule:
    """A request is slow above every one of these."""

    slo_ns: int = 0
    factor: float = 2.0  #: times the median of its like
    min_excess_ns: int = 5_000_000  #: above the median of its like


@dataclass(slots=True)
class _Group:
    walls: npt.NDArray[np.int64]
    parts: npt.NDArray[np.int64]
    recent_walls: npt.NDArray[np.int64]  # all requests, slow ones too
    recent_parts: npt.NDArray[np.int64]
    seen: int = 0  # requests that went into walls
    recent_seen: int = 0
    slow: int = 0  # of the last len(recent_walls)
    slow_marks: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    like: LikeRow | None = None  # cached until the group changes


class Baseline:
    """Mutable: :meth:`likes` asks, :meth:`learn` adds. Bounded by ``memory`` requests a group and ``groups``."""

    def __init__(self, rule: SlowRule | None = None, memory: int = 512, groups: int = 512) -> None:
        self.rule = rule or SlowRule()
        self._memory = memory
        self._max_groups = groups
        self._groups: OrderedDict[_Key, _Group] = OrderedDict()

    def likes(self, requests: Table, strings: Sequence[str]) -> list[LikeRow]:
        """The norm of each request before it is learned from."""
        found = []
        for sized, unsized in self._keys(requests, strings):
            group = self._groups.get(sized)
            if group is None or group.seen < MIN_LIKE:
                group = self._groups.get(unsized)
            found.append(self._like(group) if group else self._nothing())
        return found

    def learn(
        self,
        requests: Table,
        strings: Sequence[str],
        parts: npt.NDArray[np.int64],
        slow: npt.NDArray[np.bool_],
    ) -> None:
        """Add requests with their ledgers (``[n, N_CAUSES]``) and whether each was slow."""
        walls = requests["end_mono_ns"] - began(requests)
        members: dict[_Key, list[int]] = {}
        for row, keys in enumerate(self._keys(requests, strings)):
            for key in keys:
                members.setdefault(key, []).append(row)
        for key, rows in members.items():
            self._add(self._group(key), walls[rows], parts[rows], slow[rows])

    def _group(self, key: _Key) -> _Group:
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= self._max_groups:
                self._groups.popitem(last=False)
            n = self._memory
            shape = (n, N_CAUSES)
            columns = (np.zeros(n, np.int64), np.zeros(shape, np.int64))
            again = (np.zeros(n, np.int64), np.zeros(shape, np.int64))
            group = self._groups[key] = _Group(*columns, *again, slow_marks=np.zeros(n, np.bool_))
        self._groups.move_to_end(key)
        return group

    def _add(
        self,
        group: _Group,
        walls: npt.NDArray[np.int64],
        parts: npt.NDArray[np.int64],
        slow: npt.NDArray[np.bool_],
    ) -> None:
        n = self._memory
        for wall, part, was_slow in zip(walls[-n:], parts[-n:], slow[-n:], strict=True):
            at = group.recent_seen % n
            group.slow += int(was_slow) - int(group.slow_marks[at])
            group.slow_marks[at] = was_slow
            group.recent_walls[at], group.recent_parts[at] = wall, part
            group.recent_seen += 1
            if not was_slow:
                at = group.seen % n
                group.walls[at], group.parts[at] = wall, part
                group.seen += 1
        if group.recent_seen >= n and group.slow > 0.8 * n:
            group.walls[:], group.parts[:] = group.recent_walls, group.recent_parts
            group.seen, group.slow = max(group.seen, n), 0
            group.slow_marks[:] = False
        group.like = None

    def _like(self, group: _Group) -> LikeRow:
        n = min(group.seen, self._memory)
        if not n:
            return self._nothing()
        if group.like is None:
            walls = np.sort(group.walls[:n])
            p50, p95 = int(walls[(n - 1) // 2]), int(walls[min(n - 1, n * 95 // 100)])
            rule = self.rule
            threshold = rule.slo_ns
            if n >= MIN_LIKE:
                threshold = max(threshold, p95, int(p50 * rule.factor), p50 + rule.min_excess_ns)
            medians = np.sort(group.parts[:n], axis=0)[(n - 1) // 2]
            group.like = LikeRow(n, p50, p95, threshold, medians.tolist())
        return group.like

    def _nothing(self) -> LikeRow:
        return LikeRow(0, 0, 0, self.rule.slo_ns, [0] * N_CAUSES)

    @staticmethod
    def _keys(requests: Table, strings: Sequence[str]) -> list[tuple[_Key, _Key]]:
        keys: list[tuple[_Key, _Key]] = []
        for row in requests[["name", "model", "version", "batch_size"]].tolist():
            like = (strings[row[0]], strings[row[1]], strings[row[2]])
            keys.append(((*like, int(row[3]).bit_length()), like))
        return keys


def is_slow(requests: Table, likes: Sequence[LikeRow]) -> npt.NDArray[np.bool_]:
    """Above its like's threshold. 0 is none: without enough like requests and without an SLO nothing is slow."""
    thresholds = np.array([like.threshold_ns for like in likes], np.int64)
    walls = requests["end_mono_ns"] - began(requests)
    result: npt.NDArray[np.bool_] = (thresholds > 0) & (walls > thresholds)
    return result
