"""``tailspan health``: how well this host and its workers are."""

from __future__ import annotations

import argparse

from tailspan.cli import agent, arguments, output
from tailspan.cli.parser import Commands, Parser

EXAMPLES = """
  tailspan health                    the host, and each service on it
  tailspan health --json | jq '.workers[] | select(.state != "healthy")'
"""
_TIMEOUT_S = 10.0


def add(commands: Commands[Parser]) -> None:
    parser = commands.add_parser("health", help="how well the host and its workers are", examples=EXAMPLES)
    arguments.add_json(parser)
    arguments.add_width(parser)
    parser.set_defaults(call=call)


def call(args: argparse.Namespace) -> int:
    from tailspan.views import health

    answer = agent.ask({"do": "health"}, _TIMEOUT_S)
    with agent.understood():
        text, is_critical = health.as_text(answer, output.width(args.width)), answer["host"]["state"] == "critical"
    if args.json:
        output.print_json(answer)
    else:
        print(text)
    return 1 if is_critical else 0
