"""The inputs that are kept: seeds, by name, and what a run found that reaches more, by the hash of its bytes."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.fuzz.target import Target

CORPUS = Path(__file__).parent / "corpus"
PACKAGE = Path(__file__).parents[2] / "agent" / "tailspan"
#: Of one target, in all. What reaches most comes first.
MAX_BYTES = 16_384

Line = tuple[str, int]  #: file, and number
Step = tuple[CodeType, int, int]  #: from one line to another


def folder(target: Target) -> Path:
    return CORPUS / target.name


def inputs(target: Target) -> dict[str, bytes]:
    """File name -> bytes, in order of name."""
    return {path.name: path.read_bytes() for path in sorted(folder(target).glob("*")) if path.is_file()}


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def write_seeds(target: Target) -> None:
    """Those that real messages make, over what was there by their names."""
    folder(target).mkdir(parents=True, exist_ok=True)
    for name, data in target.seeds().items():
        (folder(target) / f"seed-{name}").write_bytes(data)


def keep(target: Target, candidates: Iterable[bytes]) -> int:
    """Of these, and of those that are kept, what takes a step that none before it takes; how many are kept.

    Seeds, crashes and other files with a name stay whatever they reach. The others are taken shortest first.
    """
    held = inputs(target)
    named = {name: data for name, data in held.items() if "-" in name}
    found = {data for name, data in held.items() if name not in named} | set(candidates)
    seen: set[Step] = set()
    for data in named.values():
        seen |= _steps(target, data)
    for name in held.keys() - named.keys():
        (folder(target) / name).unlink()
    size = kept = 0
    for data in sorted(found - set(named.values()), key=lambda data: (len(data), data)):
        new = _steps(target, data) - seen
        if new and size + len(data) <= MAX_BYTES:
            seen |= new
            size, kept = size + len(data), kept + 1
            (folder(target) / name_of(data)).write_bytes(data)
    return kept


def lines(target: Target) -> tuple[int, int]:
    """Of the modules that the target is about: lines that the corpus reaches, and lines that there are."""
    reached: set[Line] = set()
    for data in inputs(target).values():
        reached |= {(code.co_filename, line) for code, _, line in _steps(target, data)}
    there = {line for source in target.sources for line in _lines_of(source)}
    return len(reached & there), len(there)


def _lines_of(source: str) -> Iterator[Line]:
    """Lines of functions' bodies: a module's own run when it is imported."""
    path = PACKAGE.joinpath(*source.split(".")[1:]).with_suffix(".py")
    stack: list[Any] = [compile(path.read_text(), str(path), "exec")]
    while stack:
        for inner in (one for one in stack.pop().co_consts if isinstance(one, CodeType)):
            stack.append(inner)
            is_class = "__qualname__" in inner.co_names and not inner.co_flags & 0x0002  # inspect.CO_NEWLOCALS
            for _, _, line in () if is_class else inner.co_lines():
                if line and line != inner.co_firstlineno:
                    yield str(path), line


def _steps(target: Target, data: bytes) -> set[Step]:
    """Pairs of lines of the agent that follow one another; of an input that fails too, up to there."""
    found: set[Step] = set()

    def local(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            found.add((frame.f_code, last.get(frame, 0), frame.f_lineno))
            last[frame] = frame.f_lineno
        elif event == "return":
            last.pop(frame, None)
        return local

    def enter(frame: FrameType, event: str, argument: object) -> Any:
        return local if frame.f_code.co_filename.startswith(str(PACKAGE)) else None

    last: dict[FrameType, int] = {}
    before = sys.gettrace()
    sys.settrace(enter)
    try:
        with contextlib.suppress(Exception):
            target.check(data)
    finally:
        sys.settrace(before)
    return found
