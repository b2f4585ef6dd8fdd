"""Several pieces in one input: each behind its length in two bytes. Any bytes are some pieces."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from tests.fuzz.target import Change

MAX_PIECES = 64


def split(data: bytes) -> list[bytes]:
    pieces: list[bytes] = []
    at = 0
    while at + 2 <= len(data) and len(pieces) < MAX_PIECES:
        length = int.from_bytes(data[at : at + 2], "little")
        pieces.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    return pieces


def join(pieces: Iterable[bytes]) -> bytes:
    return b"".join(len(piece).to_bytes(2, "little") + piece for piece in pieces if len(piece) < 1 << 16)


def exactly(data: bytes, count: int) -> list[bytes]:
    """So many pieces; those that are missing are empty."""
    return (split(data) + [b""] * count)[:count]


Piecewise = Callable[[int, bytes, random.Random, Change], bytes]


def mutate(data: bytes, rng: random.Random, change: Change, piecewise: Piecewise, fixed: bool = False) -> bytes:
    """One piece changed by ``piecewise(which, piece, …)``; or, unless ``fixed``, one moved, doubled, left out."""
    pieces = split(data)
    if not pieces:
        return change(data, len(data) + 64)
    at = rng.randrange(len(pieces))
    act = "change" if fixed else rng.choice(("change", "change", "change", "double", "drop", "swap"))
    if act == "change":
        pieces[at] = piecewise(at, pieces[at], rng, change)
    elif act == "double":
        pieces.insert(rng.randrange(len(pieces) + 1), pieces[at])
    elif act == "drop":
        del pieces[at]
    else:
        other = rng.randrange(len(pieces))
        pieces[at], pieces[other] = pieces[other], pieces[at]
    return join(pieces)
