"""Types of command-line arguments."""

from __future__ import annotations

import argparse
import os


def positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def positive_float(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("more than 0")
    return number


def cpu_list(text: str) -> set[int]:
    """``1`` or ``0,2-3``: CPUs that this process may run on."""
    wanted: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        wanted.update(range(int(first), int(last or first) + 1))
    missing = wanted - os.sched_getaffinity(0)
    if missing or not wanted:
        raise argparse.ArgumentTypeError(f"no such CPU for this process: {sorted(missing) or text}")
    return wanted
