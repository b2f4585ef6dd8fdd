"""Bash completion, written from the command's own parser: commands, options, choices; files elsewhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

HEAD = """\
# bash completion for tailspan: commands and their options; files where an option or a command takes one.
_tailspan()
{
    local word=${COMP_WORDS[COMP_CWORD]} words
    case ${COMP_WORDS[1]} in
"""
TAIL = """\
    esac
    [ "$COMP_CWORD" -gt 1 ] || words="%s"
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}
complete -o default -F _tailspan tailspan
"""


def bash(site: Path) -> str:
    """For the agent that is installed in ``site``."""
    sys.path.insert(0, str(site))
    from tailspan.cli.parser import build

    parser = build()
    commands = dict(_commands(parser))
    cases = "".join(
        f'    {name}) words="{" ".join(_words(each))}" ;;\n' for name, each in sorted(commands.items())
    )
    return HEAD + cases + TAIL % " ".join((*sorted(commands), *_words(parser)))


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _words(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from (option for option in action.option_strings if option.startswith("--"))
        if not isinstance(action, argparse._SubParsersAction):
            yield from map(str, action.choices or ())
