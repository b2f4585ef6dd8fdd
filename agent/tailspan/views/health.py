"""How well the host and its workers are, as the agent's control socket answers it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tailspan.views.table import MIN_WIDTH, grid, plain, wrap

Json = dict[str, Any]
Row = tuple[str, str, str, str]


def as_text(answer: Json, width: int = 80) -> str:
    """A row for the host, each service and each process of one that has several, with what lowers its score.

    Raises KeyError or TypeError where the answer is no agent's of this version.
    """
    width = max(width, MIN_WIDTH)
    rows: list[Row] = [("", "state", "score", "why"), _row("host", answer["host"])]
    for worker in answer["workers"]:
        rows.append(_row(worker["service"], worker))
        if len(worker["processes"]) > 1:
            rows += (_row(f"  pid {process['pid']}", process) for process in worker["processes"])
    lines = grid(rows, width, right=(2,), elastic=3)
    if not answer["workers"]:
        lines.append("no worker has said that it serves requests")
    if answer["ungraded"]:
        lines.append(f"{answer['ungraded']} more processes of workers are not told apart")
    return "\n".join([*_not_ready(answer["unready"], width), *_sheds(answer.get("shed", []), width), *lines])


def _not_ready(why: str, width: int) -> Iterator[str]:
    if why:
        yield from wrap(f"the agent is not ready: {plain(why)}", width)


def _sheds(steps: list[str], width: int) -> Iterator[str]:
    if steps:
        what = ", ".join(map(plain, steps))
        yield from wrap(f"the agent sheds {what} to stay in its budget: see tailspan cost", width)


def _row(name: str, grade: Json) -> Row:
    score = grade["score"]
    return plain(name), plain(grade["state"]), "-" if score is None else f"{score:.0f}", plain(grade["why"])
