"""``tailspan syscalls``: the running agent traces system calls for a while."""

from __future__ import annotations

import argparse
from pathlib import Path

from tailspan import config
from tailspan.cli import arguments, output
from tailspan.cli.parser import Commands, Parser
from tailspan.errors import CannotError

EXAMPLES = """
  tailspan syscalls --for 10s        latency of every system call of the followed workers
"""
_COST = "while this runs, every system call of every process of this host is some 30 to 200 ns dearer"
#: The agent answers when the time is over; this much later it is taken for dead.
_PATIENCE_S = 10.0


def add(commands: Commands[Parser]) -> None:
    parser = commands.add_parser(
        "syscalls", help="latency of the workers' system calls", examples=EXAMPLES, description=f"Cost: {_COST}."
    )
    parser.add_argument(
        "--for", dest="seconds", type=arguments.seconds, required=True, metavar="TIME", help="how long, e.g. 10s"
    )
    arguments.add_json(parser)
    arguments.add_width(parser)
    parser.set_defaults(call=call)


def call(args: argparse.Namespace) -> int:
    from tailspan.control import ask
    from tailspan.views import syscalls

    path = Path(config.load().agent.control)
    output.say(_COST)
    answer = ask(path, {"do": "syscalls", "seconds": args.seconds}, args.seconds + _PATIENCE_S)
    if not answer.get("ok"):
        raise CannotError(f"the agent cannot: {answer.get('error')}")
    try:
        rows = [syscalls.SyscallRow(**body) for body in answer["rows"]]
    except (KeyError, TypeError):
        raise CannotError("the agent answers as another version does: restart it") from None
    if args.json:
        output.print_json({"rows": answer["rows"], "slowest": answer.get("slowest", [])})
    elif rows:
        print(syscalls.as_text(rows, output.width(args.width)))
    else:
        output.say("no followed process made a system call")
    return 0 if rows else 1
