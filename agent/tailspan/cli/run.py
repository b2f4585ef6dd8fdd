"""``tailspan run``: the agent."""

from __future__ import annotations

import argparse

from tailspan import log
from tailspan.cli import arguments
from tailspan.cli.parser import Commands, Parser

EXAMPLES = """
  tailspan run                       with /etc/tailspan/tailspan.toml, as the service does
  tailspan run --pid 8100 --store /tmp/tailspan --set slow.slo_ms=200
"""


def add(commands: Commands[Parser]) -> None:
    parser = commands.add_parser("run", help="run the agent in the foreground", examples=EXAMPLES)
    arguments.add_agent(parser)
    parser.add_argument("--store", metavar="DIR", help="where evidence is kept")
    parser.add_argument("--keep", choices=("slow", "all"), help="keep slow requests only, or all")
    parser.set_defaults(call=call)


def call(args: argparse.Namespace) -> int:
    from tailspan.daemon import run

    given = {"store.path": args.store, "store.keep": args.keep}
    flags = {key: value for key, value in given.items() if value is not None}
    config = arguments.agent_config(args, flags)
    log.set_up()
    return run(config, reload=lambda: arguments.agent_config(args, flags))
