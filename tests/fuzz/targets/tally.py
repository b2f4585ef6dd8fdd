"""The file of counters that survive a killed process."""

from __future__ import annotations

import random
from contextlib import closing

from tailspan.export.tally import MAX_KEY_BYTES, SLOTS, Tally
from tests.fuzz import mutation
from tests.fuzz.target import Change, Target
from tests.fuzz.targets import scratch

_MAGIC = b"TSTALLY1"
_SLOT_BYTES = 1 + MAX_KEY_BYTES + 8
_SIZE = len(_MAGIC) + SLOTS * _SLOT_BYTES


def check(data: bytes) -> None:
    """``data`` is the file's beginning; a whole file is long, and mostly zeros."""
    path = scratch.folder("tally") / "tally"
    path.write_bytes(data + bytes(max(0, _SIZE - len(data))) if data.startswith(_MAGIC) else data)
    with closing(Tally(path)) as tally:
        found = _counters(tally)
        assert all(0 < len(key.encode()) <= MAX_KEY_BYTES and 0 <= value < 1 << 64 for key, value in found.items())
        room = len(found) < SLOTS
        for key in {"new", *list(found)[:2]}:
            tally.add(key, 23)
        assert not room or tally.get("new") == found.get("new", 0) + 23 or tally.get("new") == (1 << 64) - 1
        for key in list(found)[2:4]:
            tally.remove(key)
        left = _counters(tally)
    assert path.stat().st_size == _SIZE
    with closing(Tally(path)) as again:
        assert _counters(again) == left, "a restart finds other counters"


def _counters(tally: Tally) -> dict[str, int]:
    return {key: tally.get(key) for key in tally.keys("")}


def _slot(key: bytes, value: int, length: int | None = None) -> bytes:
    return (
        bytes([len(key) if length is None else length])
        + key.ljust(MAX_KEY_BYTES, b"\0")
        + value.to_bytes(8, "little")
    )


def seeds() -> dict[str, bytes]:
    return {
        "counters": _MAGIC + _slot(b"own.sent", 23) + _slot(b"", 0) + _slot(b"new", (1 << 64) - 1),
        "twice": _MAGIC + _slot(b"a", 1) + _slot(b"a", 2),
        "damaged": _MAGIC + _slot(b"\xff\xfe", 1) + _slot(b"long", 1, length=200) + _slot(b"a\0b", 3),
        "short": b"TST",
        "other": b"#!/bin/sh\n",
    }


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    slots = [data[at : at + _SLOT_BYTES] for at in range(len(_MAGIC), len(data), _SLOT_BYTES)]
    if not slots or not data.startswith(_MAGIC) or rng.random() < 0.1:
        return change(data, len(data) + 64)
    at = rng.randrange(len(slots))
    act = rng.choice(("bytes", "length", "value", "double"))
    if act == "bytes":
        slots[at] = change(slots[at], _SLOT_BYTES).ljust(_SLOT_BYTES, b"\0")
    elif act == "length":
        slots[at] = bytes([rng.choice((0, 1, 2, 38, 39, 40, 255))]) + slots[at][1:]
    elif act == "value":
        slots[at] = slots[at][:-8] + (mutation.number(0, rng) % (1 << 64)).to_bytes(8, "little")
    else:
        slots.insert(rng.randrange(len(slots) + 1), slots[at])
    return _MAGIC + b"".join(slots)


TARGET = Target(
    name="tally",
    reads="the file of counters that outlive a process, by `export.tally`",
    holds="keys and values are in their bounds; a counter that is added to grows, or is at its most; the next "
    "start finds the same; the file has its size again",
    sources=("tailspan.export.tally",),
    check=check,
    seeds=seeds,
    mutate=mutate,
    words=(_MAGIC, b"new"),
)
