"""What is normal for a request's like, and from when on it is slow.

Requests are alike that share name, model, version and batch-size bucket (powers of two); where a bucket is too
rare, all its sizes together. The baseline is made of recent requests that were not slow: were it made of all, a
fault that lasts would become the norm while it is still being explained. When nearly everything has been slow for
a whole memory's length, that is the new norm all the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tailspan.attribute.causes import N_CAUSES
from tailspan.timeline.arrivals import began
from tailspan.timeline.evidence import LikeRow, Table

#: Below this many like requests there is no norm to compare with.
MIN_LIKE = 20
#: Ledgers that a norm is made of, at most: the median of each part needs fewer than a percentile, and takes more.
MEMORY_OF_PARTS = 128
#: When this share of all recent requests was slow, they are the new norm.
NEW_NORM = 0.8

#: (name, model, version), and the batch-size bucket where sizes are told apart.
_Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class SlowRule:
    """A request is slow above every one of these."""

    slo_ns: int = 0
    factor: float = 2.0  #: times the median of its like
    min_excess_ns: int = 5_000_000  #: above the median of its like


class _Last:
    """The last rows that were added, at most ``memory``; takes no more room than it has had rows, twice over."""

    def __init__(self, memory: int, *width: int) -> None:
        self._rows = np.zeros((min(memory, 16), *width), np.int64)
        self._memory, self._added = memory, 0

    def __len__(self) -> int:
        return min(self._added, self._memory)

    @property
    def full(self) -> bool:
        return self._added >= self._memory

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """In no order."""
        return self._rows[: len(self)]

    def add(self, rows: npt.NDArray[np.int64]) -> None:
        self._added += len(rows)
        if len(self) > len(self._rows):
            larger = np.zeros((min(self._memory, 2 * len(self)), *self._rows.shape[1:]), np.int64)
            larger[: len(self._rows)] = self._rows
            self._rows = larger
        last = rows[-self._memory :]
        self._rows[(self._added - len(last) + np.arange(len(last))) % self._memory] = last

    def become(self, other: _Last) -> None:
        self._rows, self._added = other._rows.copy(), other._added


class _Group:
    def __init__(self, memory: int) -> None:
        parts = min(memory, MEMORY_OF_PARTS)
        self.walls, self.parts = _Last(memory), _Last(parts, N_CAUSES)
        self.recent_walls, self.recent_parts = _Last(memory), _Last(parts, N_CAUSES)  # slow ones too
        self.recent_slow = _Last(memory)
        self.like: LikeRow | None = None  # cached until the group changes

    def learn(self, walls: npt.NDArray[np.int64], slow: npt.NDArray[np.bool_]) -> None:
        self.walls.add(walls[~slow])
        self.recent_walls.add(walls)
        self.recent_slow.add(slow.astype(np.int64))
        self.like = None
        if self.recent_slow.full and self.recent_slow.rows.mean() > NEW_NORM:
            self.walls.become(self.recent_walls)
            self.parts.become(self.recent_parts)
            self.recent_slow.rows[:] = 0

    def learn_parts(self, parts: npt.NDArray[np.int64], slow: npt.NDArray[np.bool_]) -> None:
        self.parts.add(parts[~slow])
        self.recent_parts.add(parts)
        self.like = None


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
            if group is None or len(group.walls) < MIN_LIKE:
                group = self._groups.get(unsized)
            found.append(self._like(group) if group else self._nothing())
        return found

    def learn(
        self,
        requests: Table,
        strings: Sequence[str],
        slow: npt.NDArray[np.bool_],
        sample: npt.NDArray[np.int64],
        parts: npt.NDArray[np.int64],
    ) -> None:
        """Add requests, each with whether it was slow, and ledgers (``[sample, N_CAUSES]``) of some of them."""
        walls, keys = requests["end_mono_ns"] - began(requests), self._keys(requests, strings)
        for key, rows in _by_key(keys).items():
            self._group(key).learn(walls[rows], slow[rows])
        for key, at in _by_key([keys[row] for row in sample.tolist()]).items():
            self._group(key).learn_parts(parts[at], slow[sample[at]])

    def _group(self, key: _Key) -> _Group:
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= self._max_groups:
                self._groups.popitem(last=False)
            group = self._groups[key] = _Group(self._memory)
        self._groups.move_to_end(key)
        return group

    def _like(self, group: _Group) -> LikeRow:
        n = len(group.walls)
        if not n:
            return self._nothing()
        if group.like is None:
            walls = np.sort(group.walls.rows)
            p50, p95 = int(walls[(n - 1) // 2]), int(walls[min(n - 1, n * 95 // 100)])
            rule = self.rule
            threshold = rule.slo_ns
            if n >= MIN_LIKE:
                threshold = max(threshold, p95, int(p50 * rule.factor), p50 + rule.min_excess_ns)
            parts = np.sort(group.parts.rows, axis=0)
            medians = parts[(len(parts) - 1) // 2].tolist() if len(parts) else [0] * N_CAUSES
            group.like = LikeRow(n, p50, p95, threshold, medians)
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


def _by_key(keys: Sequence[tuple[_Key, _Key]]) -> dict[_Key, list[int]]:
    """Positions of each key, sized or not."""
    members: dict[_Key, list[int]] = {}
    for at, both in enumerate(keys):
        for key in both:
            members.setdefault(key, []).append(at)
    return members


def is_slow(requests: Table, likes: Sequence[LikeRow]) -> npt.NDArray[np.bool_]:
    """Above its like's threshold. 0 is none: without enough like requests and without an SLO nothing is slow."""
    thresholds = np.array([like.threshold_ns for like in likes], np.int64)
    walls = requests["end_mono_ns"] - began(requests)
    result: npt.NDArray[np.bool_] = (thresholds > 0) & (walls > thresholds)
    return result
