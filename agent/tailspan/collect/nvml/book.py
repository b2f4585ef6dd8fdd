"""Every GPU and MIG instance that was ever seen: its number, and what was reported of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tailspan.timeline.gpus import GpuReading

#: More are ignored. MIG instances that are made anew have other uuids, and numbers are never used again.
LIMIT = 256


@dataclass(frozen=True, slots=True)
class Name:
    """What a GPU is called, here and by others."""

    uuid: str
    name: str
    index: int  #: NVML's
    parent: str
    row: int  #: of Meta.gpus

    def reading(self, xids: Mapping[int, int], lost: str = "") -> GpuReading:
        """Without anything that the GPU itself said."""
        return GpuReading(self.uuid, self.name, self.index, self.parent, xids=xids, lost=lost)


class Book:
    """Written by the sampler's threads, read by the agent's. Outlives connections to the driver."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[str, Name] = {}
        self._xids: dict[str, Counter[int]] = {}

    def name(self, uuid: str, name: str, index: int, parent: str = "") -> Name | None:
        """With the row it always had; None when there are too many."""
        with self._lock:
            known = self._names.get(uuid)
            if known is None and len(self._names) == LIMIT:
                return None
            row = len(self._names) if known is None else known.row
            found = self._names[uuid] = Name(uuid, name, index, parent, row)
            return found

    def cards(self) -> Iterator[Name]:
        """Those that are no MIG instances."""
        with self._lock:
            names = list(self._names.values())
        return (name for name in names if not name.parent)

    def as_meta(self) -> list[dict[str, str]]:
        with self._lock:
            return [
                {"uuid": name.uuid, "name": name.name, "index": str(name.index)}
                | ({"parent": name.parent} if name.parent else {})
                for name in self._names.values()
            ]

    def count_xid(self, uuid: str, xid: int) -> None:
        with self._lock:
            self._xids.setdefault(uuid, Counter())[xid] += 1

    def xids(self, uuid: str) -> dict[int, int]:
        with self._lock:
            return dict(self._xids.get(uuid, {}))
