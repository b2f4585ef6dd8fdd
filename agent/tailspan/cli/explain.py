"""``tailspan explain``: one request."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from tailspan.cli import arguments, output
from tailspan.cli.parser import Commands, Parser
from tailspan.errors import NotFoundError, SegmentError, UsageError

if TYPE_CHECKING:
    from tailspan.attribute.verdict import Verdict
    from tailspan.export.local import Entry, SegmentReader

EXAMPLES = """
  tailspan explain 4bf92f35          by the first characters of its trace id
  tailspan explain req-23            by the worker's own request id
  tailspan explain --slowest         the slowest that is stored
"""
_MAX_CANDIDATES = 10


def add(commands: Commands[Parser]) -> None:
    parser = commands.add_parser("explain", help="why one request was slow", examples=EXAMPLES)
    parser.add_argument("id", nargs="?", help="trace id, span id or request id, or how one begins")
    parser.add_argument("--slowest", action="store_true", help="the slowest request of the store")
    arguments.add_store(parser)
    arguments.add_json(parser)
    arguments.add_width(parser)
    parser.set_defaults(call=call)


def call(args: argparse.Namespace) -> int:
    from tailspan.cli import store
    from tailspan.export.local import SegmentReader
    from tailspan.views import explain

    if bool(args.id) == args.slowest:
        raise UsageError("explain: name one request, or --slowest")
    path = store.path_of(args)
    reader = SegmentReader(path)
    naming = () if args.slowest else (args.id, args.id.lower())
    entries = store.entries(reader, naming=naming)
    matches = _slowest(entries) if args.slowest else _matching(entries, args.id)
    if not matches:
        wanted = "no request" if args.slowest else f"no request {args.id}"
        held = {(entry.row.trace_id, entry.row.span_id) for entry in reader.rows()}
        raise NotFoundError(f"{wanted} in {path}, which holds {len(held)}")
    if len(matches) > 1:
        _list(matches)
        raise UsageError(f"{args.id} may be any of these {len(matches)} requests: give more of an id")
    verdict = _judged(reader, matches[0])
    if args.json:
        output.print_json(explain.as_json(verdict))
    else:
        print(explain.as_text(verdict, output.width(args.width), output.colour()))
    return 0


def _slowest(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: -entry.row.wall_ns)[:1]


def _matching(entries: list[Entry], wanted: str) -> list[Entry]:
    """Those whose id is ``wanted``; where there is none, those whose id begins so."""
    ids = [(entry, (entry.row.trace_id, entry.row.span_id, entry.row.request_id)) for entry in entries]
    exact = [entry for entry, known in ids if wanted in known or wanted.lower() in known]
    return exact or [
        entry
        for entry, (*hexes, request_id) in ids
        if request_id.startswith(wanted) or any(known.startswith(wanted.lower()) for known in hexes)
    ]


def _list(matches: list[Entry]) -> None:
    from tailspan.views import slow

    lines = slow.candidates([entry.row for entry in matches[:_MAX_CANDIDATES]])
    more = len(matches) - len(lines)
    print("\n".join([*lines, *([f"and {more} more"] if more else [])]), file=sys.stderr)


def _judged(reader: SegmentReader, entry: Entry) -> Verdict:
    import numpy as np

    from tailspan.attribute.judge import judge

    evidence = reader.load(entry)
    wanted = entry.row.trace_id + entry.row.span_id
    of_stored = zip(evidence.requests["trace_id"], evidence.requests["span_id"], strict=True)
    for at, (trace_id, span_id) in enumerate(of_stored):
        if trace_id.tobytes().hex() + span_id.tobytes().hex() == wanted:
            return judge(evidence, np.array([at]))[0]
    raise SegmentError(f"{entry.path} at {entry.offset} lists request {entry.row.span_id} and does not hold it")
