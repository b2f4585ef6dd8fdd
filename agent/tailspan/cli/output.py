"""What is known of the terminal, and JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Any

#: Off a terminal: what a text of ours is wrapped to.
WIDTH = 80


def width(asked: int | None = None) -> int:
    if asked:
        return asked
    return shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH


def colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_json(body: dict[str, Any]) -> None:
    print(json.dumps(body, indent=2))


def print_json_line(body: dict[str, Any]) -> None:
    print(json.dumps(body, separators=(",", ":")))


def say(message: str) -> None:
    """A message for the person, beside the results."""
    print(f"tailspan: {message}", file=sys.stderr)
