"""``tailspan slow``: the list."""

from __future__ import annotations

import argparse

from tailspan.cli import arguments, output
from tailspan.cli.parser import Commands, Parser

EXAMPLES = """
  tailspan slow                      the last 20, newest first
  tailspan slow --since 10m --last 100
  tailspan slow --json | jq '.requests[0]'
"""


def add(commands: Commands[Parser]) -> None:
    parser = commands.add_parser("slow", help="list slow requests", examples=EXAMPLES)
    arguments.add_store(parser)
    arguments.add_since(parser)
    parser.add_argument("--last", type=arguments.positive, default=20, metavar="N", help="at most N (default: 20)")
    parser.add_argument("--all", action="store_true", help="also stored requests that were not slow")
    arguments.add_json(parser)
    arguments.add_width(parser)
    parser.set_defaults(call=call)


def call(args: argparse.Namespace) -> int:
    from tailspan.cli import store
    from tailspan.export.local import SegmentReader
    from tailspan.views import slow

    path = store.path_of(args)
    reader = SegmentReader(path)
    newest = store.newest(reader, args.since, lambda row: args.all or slow.is_slow(row), args.last)
    shown = [entry.row for entry in newest]
    if args.json:
        output.print_json(slow.as_json(shown))
    elif shown:
        print(slow.as_text(shown, output.width(args.width)))
    else:
        output.say(f"no slow request in {path} ({len(store.entries(reader, args.since))} stored)")
    return 0 if shown else 1
