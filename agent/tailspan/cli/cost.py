"""``tailspan cost``: what the running agent takes from this host, and from the workers."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tailspan.cli import agent, arguments, output
from tailspan.cli.parser import Commands, Parser
from tailspan.errors import ProbeError, UsageError

EXAMPLES = """
  sudo tailspan cost                 what it takes now, each BPF program included
  sudo tailspan cost --measure 2m    what its probes cost the worker, under the load that it has
"""
_OF_MEASURE = "for that long probes go off and on in turns of 2 s; what was slow in an off turn is not explained"
#: Without CAP_SYS_ADMIN there is nothing to look at for a while.
_LOOK_S, _MAX_LOOK_S = 3.0, 60.0
_PATIENCE_S = 30.0
SETTING = Path("/proc/sys/kernel/bpf_stats_enabled")


def add(commands: Commands[Parser]) -> None:
    parser = commands.add_parser(
        "cost", help="what the agent costs", examples=EXAMPLES, description=f"--measure: {_OF_MEASURE}."
    )
    parser.add_argument(
        "--seconds",
        type=arguments.seconds,
        default=_LOOK_S,
        metavar="TIME",
        help=f"look at BPF programs for so long (default: {_LOOK_S:g}s)",
    )
    parser.add_argument(
        "--measure",
        type=arguments.seconds,
        metavar="TIME",
        help="measure what probes cost the worker, 16s to 10m: the longer, the smaller what can be told",
    )
    arguments.add_json(parser)
    arguments.add_width(parser)
    parser.set_defaults(call=call)


def call(args: argparse.Namespace) -> int:
    from tailspan.views import cost

    width = output.width(args.width)
    if args.measure:
        _within("--measure", args.measure, 16, 600)
        output.say(_OF_MEASURE)
        answer = agent.ask({"do": "cost", "measure": args.measure}, args.measure + _PATIENCE_S + args.measure / 4)
    else:
        _within("--seconds", args.seconds, 0.1, _MAX_LOOK_S)
        with _statistics() as counted:
            seconds = args.seconds if counted else 0
            answer = agent.ask({"do": "cost", "seconds": seconds}, seconds + _PATIENCE_S)
    with agent.understood():
        text = cost.measured_as_text(answer, width) if args.measure else cost.as_text(answer, width)
    if args.json:
        output.print_json(answer)
    else:
        print(text)
    return 0


def _within(flag: str, seconds: float, low: float, high: float) -> None:
    if not low <= seconds <= high:
        raise UsageError(f"{flag}: {low:g}s to {high:g}s")


@contextlib.contextmanager
def _statistics() -> Iterator[bool]:
    """While it is open, the kernel counts how long BPF programs run; gives whether it does."""
    from tailspan.collect.bpf import libbpf

    with contextlib.suppress(OSError):  # hidden in a container
        if SETTING.read_text().strip() == "1":
            yield True
            return
    try:
        fd = libbpf.enable_statistics()
    except ProbeError as error:
        output.say(f"{error}: run it as root, or set kernel.bpf_stats_enabled=1, to see what BPF programs cost")
        yield False
        return
    try:
        yield True
    finally:
        os.close(fd)
