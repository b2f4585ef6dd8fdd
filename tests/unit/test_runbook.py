"""The runbook knows every cause, outcome and command that it may be opened for."""

import re
from pathlib import Path

from tailspan.attribute.verdict import Outcome
from tailspan.cli.parser import build

RUNBOOK = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()


def test_every_outcome_is_explained() -> None:
    rows = set(re.findall(r"^\| (\S+) \|", RUNBOOK, re.M))
    assert {str(outcome) for outcome in Outcome} <= rows


def test_every_command_of_it_parses() -> None:
    commands = re.findall(r"^    (?:sudo )?tailspan (.+?)(?:  .*)?$", RUNBOOK, re.M)
    assert len(commands) >= 4
    for command in commands:
        build().parse_args(command.replace("<trace-id>", "4bf92f35").split())
