"""One stored piece of evidence, decompressed."""

from __future__ import annotations

import random
import struct

import msgpack

from tailspan.errors import SegmentError
from tailspan.export import payload
from tailspan.timeline.evidence import TABLES, Evidence
from tests.builders import sample_evidence
from tests.fuzz import mutation
from tests.fuzz.target import Change, Target

_LENGTH = struct.Struct("<I")


def check(data: bytes) -> None:
    try:
        evidence = payload.decode(data)
    except SegmentError as error:
        assert str(error)
        return
    check_evidence(evidence)


def check_evidence(evidence: Evidence) -> None:
    size = sum(getattr(evidence, name).nbytes for name in TABLES)
    assert size <= payload.MAX_RAW, f"{size} bytes of rows: more than any that is stored"
    stored = b"".join(payload.encode(evidence))
    assert b"".join(payload.encode(payload.decode(stored))) == stored, (
        "it is other evidence when it is stored again"
    )


def _own() -> dict[str, Evidence]:
    evidence = sample_evidence()
    return {"sample": evidence, "empty": Evidence()}


def seeds() -> dict[str, bytes]:
    raw = {name: b"".join(payload.encode(evidence)) for name, evidence in _own().items()}
    old = mutated(raw["sample"], lambda head: head["tables"][0][3].pop())  # a column that did not exist yet
    return raw | {"older": old}


def mutated(raw: bytes, act: object) -> bytes:
    """With another head; the rows as they are."""
    (length,) = _LENGTH.unpack_from(raw)
    head = msgpack.unpackb(raw[_LENGTH.size : _LENGTH.size + length], raw=False)
    act(head)  # type: ignore[operator]
    packed: bytes = msgpack.packb(head)
    return _LENGTH.pack(len(packed)) + packed + raw[_LENGTH.size + length :]


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    try:
        (length,) = _LENGTH.unpack_from(data)
    except struct.error:
        return change(data, len(data) + 64)
    head, rows = data[_LENGTH.size : _LENGTH.size + length], data[_LENGTH.size + length :]
    if rng.random() < 0.7:
        head = mutation.msgpack_map(head, rng, change)
    else:
        rows = mutation.word(rows, rng, size=rng.choice((2, 4, 8)))
    return _LENGTH.pack(len(head)) + head + rows


TARGET = Target(
    name="evidence",
    reads="stored evidence, decompressed, by `export.payload`",
    holds="SegmentError or evidence whose rows take no more memory than any that is stored, and which is the same "
    "when it is stored again",
    sources=("tailspan.export.payload",),
    check=check,
    seeds=seeds,
    mutate=mutate,
    words=(
        b"<i8",
        b"<u4",
        b"|S16",
        b"|V255",
        b"tables",
        b"requests",
        b"runner.tid",
        b"strings",
        b"likes",
        b"meta",
    ),
    max_bytes=16384,
)
