"""How a request's thread is known, and how well its trace fits together, in words."""

from __future__ import annotations

from tailspan.timeline.evidence import Evidence
from tailspan.timeline.tables import Join

_HOW: dict[int, str] = {
    Join.SOCKET: "the thread was inferred: it read the request from its socket",
    Join.PROCESS: "the thread was inferred: of its process it did by far the most meanwhile",
    Join.NONE: "the thread that served it is not known, nor what it waited for",
}
_NAMES = {int(join): join.name.lower() for join in Join}


def join_name(value: int) -> str:
    """``said``, ``socket``, ``process``, ``none``; of a later version's evidence a number."""
    return _NAMES.get(value, str(value))


def join_notes(evidence: Evidence, index: int) -> list[str]:
    """What to know before believing the verdict; nothing where the worker said its thread and all spans fit."""
    request = evidence.requests[index]
    how = _HOW.get(int(request["join"]))
    notes = [how] if how else []
    others = int(request["others"])
    if others:
        meanwhile = "another request" if others == 1 else f"{others} other requests"
        notes.append(
            f"that thread had {meanwhile} meanwhile: its work for them cannot be told from that for this one"
        )
    broken = int(request["broken"])
    if broken:
        spans = "1 span of its trace does" if broken == 1 else f"{broken} spans of its trace do"
        notes.append(f"{spans} not fit: a parent never came, or had another trace id")
    return notes
