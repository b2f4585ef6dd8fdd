"""Programs and libraries that any process may have mapped."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import tempfile
from pathlib import Path

from tailspan.collect.elf import function_offsets
from tailspan.errors import CannotError
from tests.fuzz import mutation
from tests.fuzz.target import Change, Target

_NAMES = ("cuStreamSynchronize", "cuMemAlloc_v2", "Synchronize", "")
_CODE = """
void cuStreamSynchronize(void) {}
void cuMemAlloc_v2(void) {}
static void own(void) {}
void _start(void) { own(); }
"""


def check(data: bytes) -> None:
    file = os.memfd_create("elf")
    try:
        os.write(file, data)
        found = function_offsets(file, _NAMES)
    except CannotError as error:
        assert str(error)
        return
    finally:
        os.close(file)
    assert found.keys() <= set(_NAMES)
    assert all(0 < offset < len(data) for offset in found.values()), "a function outside of the file"


def seeds() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        code, made = Path(folder) / "code.c", Path(folder) / "code"
        code.write_text(_CODE)
        small = ["-nostdlib", "-O0", "-Wl,-z,noseparate-code,--build-id=none,-z,max-page-size=16,--hash-style=gnu"]
        found = {}
        for name, kind in (("library", ["-shared", "-fPIC"]), ("program", ["-static"])):
            subprocess.run(["clang", *small, *kind, str(code), "-o", str(made)], check=True, cwd=folder)
            found[name] = made.read_bytes()
    return found | {"cut": found["library"][:-200], "script": b"#!/bin/sh\n"}


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    """A number of the header, of a section's header, or of anything."""
    if len(data) < 64 or rng.random() < 0.2:
        return change(data, len(data) + 32)
    (sections_at,) = struct.unpack_from("<Q", data, 40)
    where = rng.choice(("header", "sections", "sections", "any"))
    if where == "header":
        return mutation.word(data[:64], rng, start=24, size=rng.choice((2, 4, 8))) + data[64:]
    if where == "sections" and sections_at < len(data):
        return data[:sections_at] + mutation.word(data[sections_at:], rng, size=rng.choice((4, 8)))
    return mutation.word(data, rng, size=rng.choice((2, 4, 8)))


TARGET = Target(
    name="elf",
    reads="ELF files that any process has mapped, by `collect.elf`",
    holds="CannotError, or offsets within the file of names that were asked for",
    sources=("tailspan.collect.elf",),
    check=check,
    seeds=seeds,
    mutate=mutate,
    words=(b"\x7fELF\x02\x01\x01", b"cuStreamSynchronize\0", b"\x02\0\0\0", b"\x0b\0\0\0", b"\xff" * 8),
    max_bytes=16384,
)
