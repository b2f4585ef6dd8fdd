"""The store that a command reads: opened, listed, and its damage told."""

from __future__ import annotations

import argparse
import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tailspan import config
from tailspan.cli.output import say
from tailspan.export.local import Entry, SegmentReader
from tailspan.export.segment import IndexRow

_SHOWN = 3


def path_of(args: argparse.Namespace) -> Path:
    """``--store``, or where the agent of this host keeps its own."""
    return args.store if args.store is not None else Path(config.load().store.path)


def entries(reader: SegmentReader, since_s: float | None = None, naming: Sequence[str] = ()) -> list[Entry]:
    """Newest first, each request once; only those that ended in the last ``since_s`` seconds.

    ``naming``: at least all of those that have one of these texts in any field; much quicker than all.
    """
    since_unix_ns = _since(since_s)
    return _each_once(reader, reader.rows(since_unix_ns, naming), since_unix_ns)


def newest(
    reader: SegmentReader, since_s: float | None, wanted: Callable[[IndexRow], bool], most: int
) -> list[Entry]:
    """The first ``most`` of :func:`entries` that are ``wanted``, without reading what is older than those."""
    ends: list[int] = []  # of the last that are wanted; a heap

    def enough(written_unix_ns: int) -> bool:
        """A request has ended when it is stored: none in this file is later than those."""
        return len(ends) == most and written_unix_ns < ends[0]

    def noted(rows: Iterable[Entry]) -> Iterator[Entry]:
        seen = set()
        for entry in rows:
            if _key(entry) not in seen and wanted(entry.row):
                heapq.heappush(ends, _end(entry))
                if len(ends) > most:
                    heapq.heappop(ends)
            seen.add(_key(entry))
            yield entry

    since_unix_ns = _since(since_s)
    found = _each_once(reader, noted(reader.rows(since_unix_ns, enough=enough)), since_unix_ns)
    return [entry for entry in found if wanted(entry.row)][:most]


def _each_once(reader: SegmentReader, rows: Iterable[Entry], since_unix_ns: int) -> list[Entry]:
    found: dict[tuple[str, str], Entry] = {}
    for entry in rows:
        if _end(entry) >= since_unix_ns:
            found.setdefault(_key(entry), entry)
    warn_of_damage(reader)
    return sorted(found.values(), key=_end, reverse=True)


def _since(since_s: float | None) -> int:
    return time.time_ns() - int(since_s * 1e9) if since_s else 0


def _key(entry: Entry) -> tuple[str, str]:
    return entry.row.trace_id, entry.row.span_id


def _end(entry: Entry) -> int:
    return entry.row.start_unix_ns + entry.row.wall_ns


def warn_of_damage(reader: SegmentReader) -> None:
    """Say what the last pass had to skip."""
    damage = reader.corrupt
    if damage:
        more = f" and {len(damage) - _SHOWN} more" if len(damage) > _SHOWN else ""
        say(f"{len(damage)} damaged: {'; '.join(damage[:_SHOWN])}{more}")
