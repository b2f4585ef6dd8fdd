"""The configuration that is in force, as a file that says the same; and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tailspan.config import Problem, Reading, keys, needs_restart, value_of
from tailspan.views.table import plain

_DEFAULT = "default"


def as_toml(reading: Reading) -> str:
    """Each value with where it is from."""
    lines: list[str] = []
    section = ""
    for key in keys():
        now, _, name = key.partition(".")
        if now != section:
            section = now
            lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
        origin = plain(reading.origins.get(key, _DEFAULT))
        lines.append(f"{name} = {_toml(value_of(reading.config, key))}  # {origin}")
    return "\n".join(lines)


def as_json(reading: Reading, problems: Sequence[Problem] = (), odd: Sequence[Problem] = ()) -> dict[str, Any]:
    return {
        "file": str(reading.file) if reading.file else None,
        "settings": {
            key: {
                "value": value_of(reading.config, key),
                "from": reading.origins.get(key, _DEFAULT),
                "restart": needs_restart(key),
            }
            for key in keys()
        },
        "problems": [_fields(problem) for problem in problems],
        "warnings": [_fields(problem) for problem in odd],
    }


def check_as_text(reading: Reading, problems: Sequence[Problem], odd: Sequence[Problem]) -> str:
    return "\n".join(_check_lines(reading, problems, odd))


def _check_lines(reading: Reading, problems: Sequence[Problem], odd: Sequence[Problem]) -> Iterator[str]:
    for kind, found in (("error", problems), ("warning", odd)):
        for problem in found:
            yield f"{kind}: {plain(str(problem))}"
    said = f"{len(reading.origins)} keys are set" if len(reading.origins) != 1 else "1 key is set"
    of = f"{plain(str(reading.file))}" if reading.file else "no file, the environment and flags"
    verdict = f"{len(problems)} wrong" if problems else "all can be used"
    yield f"{of}: {said}, {verdict}"


def _fields(problem: Problem) -> dict[str, str]:
    return {"where": problem.where, "key": problem.key, "text": problem.text}


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # A string of JSON is one of TOML, where all of it is printable.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
