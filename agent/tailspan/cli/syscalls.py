"""``tailspan syscalls``: the running agent traces system calls for a while."""

from __future__ import annotations

import argparse

from tailspan.cli import agent, arguments, output
from tailspan.cli.parser import Commands, Parser

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
    from tailspan.views import syscalls

    output.say(_COST)
    answer = agent.ask({"do": "syscalls", "seconds": args.seconds}, args.seconds + _PATIENCE_S)
    with agent.understood():
        rows = [syscalls.SyscallRow(**body) for body in answer["rows"]]
    if args.json:
        output.print_json({"rows": answer["rows"], "slowest": answer.get("slowest", [])})
    elif rows:
        print(syscalls.as_text(rows, output.width(args.width)))
    else:
        output.say("no followed process made a system call")
    return 0 if rows else 1
