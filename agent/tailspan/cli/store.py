"""The store that a command reads: opened, listed, and its damage told."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from tailspan import config
from tailspan.cli.output import say
from tailspan.export.local import Entry, SegmentReader

_SHOWN = 3


def path_of(args: argparse.Namespace) -> Path:
    """``--store``, or where the agent of this host keeps its own."""
    return args.store if args.store is not None else Path(config.load().store.path)


def entries(reader: SegmentReader, since_s: float | None = None, naming: Sequence[str] = ()) -> list[Entry]:
    """Newest first, each request once; only those that ended in the last ``since_s`` seconds.

    ``naming``: at least all of those that have one of these texts in any field; much quicker than all.
    """
    since_unix_ns = time.time_ns() - int(since_s * 1e9) if since_s else 0
    found: dict[tuple[str, str], Entry] = {}
    for entry in reader.rows(since_unix_ns, naming):
        if entry.row.start_unix_ns + entry.row.wall_ns >= since_unix_ns:
            found.setdefault((entry.row.trace_id, entry.row.span_id), entry)
    warn_of_damage(reader)
    return sorted(found.values(), key=lambda entry: -(entry.row.start_unix_ns + entry.row.wall_ns))


def warn_of_damage(reader: SegmentReader) -> None:
    """Say what the last pass had to skip."""
    damage = reader.corrupt
    if damage:
        more = f" and {len(damage) - _SHOWN} more" if len(damage) > _SHOWN else ""
        say(f"{len(damage)} damaged: {'; '.join(damage[:_SHOWN])}{more}")
