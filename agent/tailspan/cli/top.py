"""``tailspan top``: causes and culprits, added up."""

from __future__ import annotations

import argparse

from tailspan.cli import arguments, output
from tailspan.cli.parser import Commands, Parser

EXAMPLES = """
  tailspan top                       everything that is stored
  tailspan top --since 5m            the last five minutes
"""


def add(commands: Commands[Parser]) -> None:
    parser = commands.add_parser("top", help="what makes requests slow, and who", examples=EXAMPLES)
    arguments.add_store(parser)
    arguments.add_since(parser)
    arguments.add_json(parser)
    arguments.add_width(parser)
    parser.set_defaults(call=call)


def call(args: argparse.Namespace) -> int:
    from tailspan.cli import store
    from tailspan.export.local import SegmentReader
    from tailspan.views import slow, top

    path = store.path_of(args)
    entries = store.entries(SegmentReader(path), args.since)
    summed = top.add_up(entry.row for entry in entries if slow.is_slow(entry.row))
    if args.json:
        output.print_json(top.as_json(summed))
    elif summed.requests:
        print(top.as_text(summed, output.width(args.width)))
    else:
        output.say(f"no slow request in {path} ({len(entries)} stored)")
    return 0 if summed.requests else 1
