"""``tailspan stacks``: where processes wait, and in whose code. Needs no agent; loads a program of its own."""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from tailspan.cli import arguments, output
from tailspan.cli.parser import Commands, Parser
from tailspan.errors import UsageError

if TYPE_CHECKING:
    from tailspan.views.stacks import Report

EXAMPLES = """
  sudo tailspan stacks --pid 8100                where it waits, for the next 5 s
  sudo tailspan stacks --pid 8100 --pid 8101 --for 30s --min 10ms
  sudo tailspan stacks --pid 8100 --folded | flamegraph.pl --countname us > waits.svg
"""
_COST = """
Cost: 180 MB and some seconds while bcc compiles; then 1 to 3 µs a wait of these processes, and some 0.2 µs a
context switch of all others. User stacks are found by frame pointers: what is built without them stops a stack
early, and whoever calls into such a library is missing from it.
"""
_MAX_SECONDS = 3600


def add(commands: Commands[Parser]) -> None:
    parser = commands.add_parser(
        "stacks", help="where processes wait, and in whose code", examples=EXAMPLES, description=_COST
    )
    parser.add_argument(
        "--pid", type=arguments.positive, action="append", required=True, metavar="N", help="repeatable"
    )
    parser.add_argument(
        "--for", dest="seconds", type=arguments.seconds, default=5.0, metavar="TIME", help="how long (default: 5s)"
    )
    parser.add_argument(
        "--min",
        dest="floor_s",
        type=arguments.seconds,
        default=0.001,
        metavar="TIME",
        help="shorter waits are only counted (default: 1ms)",
    )
    parser.add_argument(
        "--top", type=arguments.positive, default=10, metavar="N", help="at most N places (default: 10)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--folded", action="store_true", help="a line a stack, and its µs: for flame graphs")
    arguments.add_width(parser)
    parser.set_defaults(call=call)


def call(args: argparse.Namespace) -> int:
    from tailspan.views import stacks

    if args.seconds > _MAX_SECONDS:
        raise UsageError(f"--for: at most {_MAX_SECONDS} s")
    if args.floor_s >= args.seconds:
        raise UsageError("--min is not shorter than --for: no wait would be found")
    report = _look(tuple(dict.fromkeys(args.pid)), args.seconds, round(args.floor_s * 1e9))
    if args.json:
        output.print_json(stacks.as_json(report))
    elif not report.waits:
        output.say(f"no wait of {args.floor_s * 1000:g} ms or more in {report.seconds:.1f} s")
    elif args.folded:
        print(stacks.as_folded(report))
    else:
        print(stacks.as_text(report, output.width(args.width), args.top))
    return 0 if report.waits else 1


def _look(pids: tuple[int, ...], seconds: float, floor_ns: int) -> Report:
    from tailspan.collect.bpf.stacks import Stacks
    from tailspan.views.stacks import Report, Wait

    with _ended_by_sigterm(), Stacks(pids, floor_ns) as look:
        output.say(f"looking for {seconds:g} s; Ctrl-C shows what there is until then")
        with contextlib.suppress(KeyboardInterrupt):
            look.wait(seconds)
        found = look.read()
    waits = tuple(Wait(**asdict(row)) for row in found.rows)
    return Report(pids, found.seconds, floor_ns, waits, found.short, found.lost, found.ended)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """As by Ctrl-C: ``timeout`` and service managers end a command so, and it has a folder to remove."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
