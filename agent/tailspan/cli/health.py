"""``tailspan health``: how well this host and its workers are."""

from __future__ import annotations

import argparse
from pathlib import Path

from tailspan import config
from tailspan.cli import arguments, output
from tailspan.cli.parser import Commands, Parser
from tailspan.errors import CannotError

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
    from tailspan.control import ask
    from tailspan.views import health

    answer = ask(Path(config.load().agent.control), {"do": "health"}, _TIMEOUT_S)
    if not answer.pop("ok", False):
        raise CannotError(f"the agent cannot: {answer.get('error')}")
    try:
        text, is_critical = health.as_text(answer, output.width(args.width)), answer["host"]["state"] == "critical"
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CannotError("the agent answers as another version does: restart it") from None
    if args.json:
        output.print_json(answer)
    else:
        print(text)
    return 1 if is_critical else 0
