"""The parser: one module of this package per command, examples before options in every ``--help``."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any, NoReturn

from tailspan import __version__
from tailspan.errors import UsageError

#: In the order of ``--help``: asking first, running last.
COMMANDS = (
    "explain",
    "slow",
    "top",
    "health",
    "cost",
    "syscalls",
    "stacks",
    "check",
    "config",
    "replay",
    "record",
    "run",
)

EXAMPLES = """
  tailspan check                     what works on this machine, and what does not
  tailspan slow --since 10m          the slow requests of the last ten minutes
  tailspan explain 4bf92f35          why that one was slow
  tailspan top --since 1h            what makes requests slow here, and who
"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows examples first and raises :class:`UsageError` instead of exiting."""

    def __init__(self, prog: str, *, examples: str = "", **kwargs: Any) -> None:
        kwargs |= {"allow_abbrev": False}  # an option added later must not change what a script says today
        super().__init__(prog, **kwargs)
        self._examples = examples.strip("\n")

    def format_help(self) -> str:
        return (
            f"examples:\n{self._examples}\n\n{super().format_help()}" if self._examples else super().format_help()
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see '{self.prog} --help')")


#: What a command module's ``add`` is given.
Commands = argparse._SubParsersAction


def build() -> Parser:
    parser = Parser("tailspan", description="Why was THIS request slow?", examples=EXAMPLES, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"tailspan {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(f"tailspan.cli.{name}").add(commands)
    return parser


_EPILOG = "exit codes: 0 ok, 1 found a problem or nothing, 2 usage, 3 this machine or user cannot"
