"""The folder of a spool as a process finds it: its mark, and two files of batches."""

from __future__ import annotations

import random
import struct
import zlib
from contextlib import closing

from tailspan.export.otlp import files
from tailspan.export.otlp.files import Mark
from tailspan.export.otlp.record import HEADER_SIZE, MAGIC, MOST, NOTHING, Batch, Counts, encode
from tailspan.export.otlp.spool import Spool
from tailspan.wire.otlp import Origin
from tests.fuzz import frames, mutation
from tests.fuzz.target import Change, Target
from tests.fuzz.targets import scratch

_BEGUN = (1_763_000_000_000_000_000, 1_763_000_001_000_000_000)
_NEW = Batch(b"new", 1, Origin.OWN)


def check(data: bytes) -> None:
    mark, *segments = frames.exactly(data, 3)
    folder = scratch.folder("spool")
    for path in folder.iterdir():
        path.unlink()
    (folder / "mark").write_bytes(mark)
    for begun, content in zip(_BEGUN, segments, strict=True):
        if content:
            (folder / f"{begun:020d}{files.SUFFIX}").write_bytes(content)
    most = 1 + sum(map(len, segments)) // HEADER_SIZE
    with closing(Spool(folder, 1 << 20)) as spool:
        spool.put(_NEW)
        taken: list[Batch] = []
        while (batch := spool.peek()) is not None and len(taken) <= most:
            taken.append(batch)
            spool.done()
        assert len(taken) <= most, "more batches than there is room for"
        assert taken and taken[-1] == _NEW, "a batch that was put in does not come out last"
        state = spool.state()
        assert state.waiting == NOTHING, state.waiting
        assert all(count >= 0 for count in (*state.dropped.values(), *state.dropped_verdicts.values()))
    with closing(Spool(folder, 1 << 20)) as again:
        assert again.peek() is None, "what was delivered is delivered again"
        assert not again.state().dropped, "what was delivered is counted as lost"


def _batches(count: int, before: Counts = NOTHING) -> tuple[bytes, Counts]:
    content = b""
    for number in range(count):
        batch = Batch(b"payload %d" % number, 1 + number, tuple(Origin)[number % 2], bool(number % 3), number, 7)
        content, before = content + encode(batch, before), before.plus(batch.counts)
    return content, before


def seeds() -> dict[str, bytes]:
    first, between = _batches(3)
    second, written = _batches(2, between)
    mark = Mark(_BEGUN[0], 0, NOTHING, written, NOTHING)
    middle = Mark(_BEGUN[1], HEADER_SIZE + len(b"payload 0"), between.plus(Counts(1, 1, 0, 0)), written)
    loose = Mark(_BEGUN[0], 0, NOTHING, between, Counts(4, 9, 9, 1))
    return {
        "whole": frames.join((mark.encode(), first, second)),
        "half-read": frames.join((middle.encode(), first, second)),
        "in-memory": frames.join((loose.encode(), first, second)),
        "no-mark": frames.join((b"", first, second)),
        "damage": frames.join((mark.encode(), first[:50] + MAGIC * 9 + first[70:], second[:-3])),
        "gap": frames.join((mark.encode(), b"", second)),
    }


def _piece(which: int, piece: bytes, rng: random.Random, change: Change) -> bytes:
    """A number of the mark or of a record, and its checksum made true again; or any bytes."""
    if which == 0 and len(piece) > 8 and rng.random() < 0.8:
        body = mutation.word(piece[8:], rng, size=8)
        if any(
            MOST - (1 << 32) < count < MOST for (count,) in struct.iter_unpack("<Q", body[: len(body) // 8 * 8])
        ):
            return piece  # as much as can be counted at all: there is no room for one more
        return piece[:4] + zlib.crc32(body).to_bytes(4, "little") + body
    at = piece.find(MAGIC, rng.randrange(len(piece) + 1)) if which else -1
    if at >= 0 and len(piece) >= at + HEADER_SIZE and rng.random() < 0.7:
        header = bytearray(mutation.word(piece[at : at + HEADER_SIZE], rng, start=8, size=4))
        if any(MOST - (1 << 32) < count < MOST for count in struct.unpack_from("<4Q", header, 24)):
            return piece
        header[4:8] = zlib.crc32(header[8:]).to_bytes(4, "little")
        return piece[:at] + bytes(header) + piece[at + HEADER_SIZE :]
    return change(piece, len(piece) + 32)


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    pieces = frames.exactly(data, 3)
    if rng.random() < 0.15:
        pieces[1], pieces[2] = rng.choice(((pieces[2], pieces[1]), (pieces[1] * 2, pieces[2]), (pieces[1],) * 2))
        return frames.join(pieces)
    return frames.mutate(frames.join(pieces), rng, change, _piece, fixed=True)


TARGET = Target(
    name="spool",
    reads="the folder of a spool, its mark and files damaged or exchanged, by `export.otlp.spool`",
    holds="what is put in comes out, last and once; no more batches than the files have room for; nothing waits "
    "for ever or is counted below zero; a second start finds nothing",
    sources=("tailspan.export.otlp.spool", "tailspan.export.otlp.files", "tailspan.export.otlp.record"),
    check=check,
    seeds=seeds,
    mutate=mutate,
    words=(MAGIC, b"TSM1"),
)
