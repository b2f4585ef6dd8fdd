"""``tailspan replay``: every stored request judged again, from the raw facts."""

from __future__ import annotations

import argparse
from pathlib import Path

from tailspan.cli import arguments, output
from tailspan.cli.parser import Commands, Parser
from tailspan.errors import NotFoundError

EXAMPLES = """
  tailspan replay incident.tspan     a file that somebody sent
  tailspan replay /var/lib/tailspan --json | jq -r .verdict.cause | sort | uniq -c
"""


def add(commands: Commands[Parser]) -> None:
    parser = commands.add_parser("replay", help="judge stored requests again", examples=EXAMPLES)
    parser.add_argument("path", type=Path, help="a segment file, or a store")
    arguments.add_json(parser, "print one JSON object a line")
    parser.set_defaults(call=call)


def call(args: argparse.Namespace) -> int:
    """Exit code 1 where something could not be read: then not every request is in the output."""
    from tailspan.attribute.judge import judge
    from tailspan.cli import store
    from tailspan.export.local import SegmentReader
    from tailspan.views import explain, replay

    reader = SegmentReader(args.path)
    requests = 0
    for evidence in reader.evidence():
        for verdict in judge(evidence):
            requests += 1
            if args.json:
                output.print_json_line(explain.as_json(verdict))
            else:
                print(replay.line(verdict))
    store.warn_of_damage(reader)
    if not requests:
        raise NotFoundError(f"no request in {args.path}")
    return 1 if reader.corrupt else 0
