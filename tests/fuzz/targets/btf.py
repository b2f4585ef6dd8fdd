"""BTF: of the BPF object, and of the kernel."""

from __future__ import annotations

import contextlib
import random
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailspan.collect.bpf.btf import _DATASEC, _ENUM, _STRUCT, Btf, elf_section, kernel_has
from tailspan.errors import CannotError
from tests.fuzz import mutation
from tests.fuzz.target import Change, Target
from tests.fuzz.targets import scratch

_MOST = 8
_NAMES = ("runner", "cycle", "next", "nobody")
_HEADER = struct.Struct("<HBBIIIII")
_CODE = """
typedef unsigned int u32; typedef long s64;
enum kind { IDLE, BUSY = 7, LAST = -1 };
struct runner { u32 tid; char comm[16]; };
struct cycle { s64 run_mono_ns; unsigned long sum; enum kind kind; const u32 cpu; struct runner runner;
               unsigned short ports[3]; unsigned short pad; };
struct node { struct node *next; union { u32 a; float b; }; u32 bits : 3; };
struct cycle anchor __attribute__((section(".anchors"), used));
struct node other __attribute__((section(".anchors"), used));
"""


def check(data: bytes) -> None:
    _check_names(data)
    with contextlib.suppress(CannotError):
        data = elf_section(data, ".BTF")
    try:
        found = Btf(data)
    except CannotError as error:
        assert str(error)
        return
    for kind in found._types[: 4 * _MOST]:
        with contextlib.suppress(CannotError):
            if kind.kind == _STRUCT:
                dtype = found.struct(kind.name)
                assert 0 <= dtype.itemsize < 1 << 31
                fields: Mapping[str, Any] = dtype.fields or {}
                assert all(at + field.itemsize <= dtype.itemsize for field, at, *_ in fields.values())
        with contextlib.suppress(CannotError):
            if kind.kind == _ENUM:
                assert all(-(1 << 31) <= value < 1 << 31 for value in found.enum(kind.name).values())
        with contextlib.suppress(CannotError):
            if kind.kind == _DATASEC:
                assert all(offset >= 0 and size >= 0 for offset, size in found.variables(kind.name).values())


def _check_names(data: bytes) -> None:
    file = scratch.folder("btf") / "vmlinux"
    file.write_bytes(data)
    try:
        there = kernel_has(_NAMES, file)
    except CannotError:
        return
    assert there == {name for name in _NAMES if name.encode() in _strings_of(data)}


def _strings_of(blob: bytes) -> set[bytes]:
    """The strings of a blob whose header is whole."""
    _, _, _, header, _, _, string_at, string_len = _HEADER.unpack_from(blob)
    return set(blob[header + string_at : header + string_at + string_len].split(b"\0"))


def seeds() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        code, made = Path(folder) / "code.c", Path(folder) / "code.o"
        code.write_text(_CODE)
        command = ["clang", "-target", "bpf", "-g", "-O0", "-c", str(code), "-o", str(made)]
        subprocess.run(command, check=True, cwd=folder)
        blob = elf_section(made.read_bytes(), ".BTF")
    return {
        "types": blob,
        "object": _elf_of(blob),
        "cut": blob[: len(blob) // 2],
        "cycle": _cycle(),
        "wide": _wide(),
    }


def _elf_of(blob: bytes) -> bytes:
    """The least that an object needs to have a section of that name."""
    names = b"\0.shstrtab\0.BTF\0"
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 1, 247, 1, 0, 0, 64 + len(names) + len(blob), 0, 64, 0, 0, 64, 3, 1
    )
    section = struct.Struct("<IIQQQQIIQQ")
    tables = bytes(64)
    tables += section.pack(1, 3, 0, 0, 64, len(names), 0, 0, 1, 0)
    tables += section.pack(11, 1, 0, 0, 64 + len(names), len(blob), 0, 0, 1, 0)
    return header + names + blob + tables


def _blob(types: bytes, strings: bytes) -> bytes:
    return _HEADER.pack(0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings


def _cycle() -> bytes:
    """A struct that holds itself by way of a typedef."""
    of_struct = struct.pack("<III", 1, _STRUCT << 24 | 1, 8) + struct.pack("<III", 3, 2, 0)
    return _blob(of_struct + struct.pack("<III", 5, 8 << 24, 1), b"\0s\0m\0t\0")


def _wide() -> bytes:
    """Each struct has two of the next: of twenty of them the first has a million fields."""
    types = b""
    for number in range(1, 21):
        types += struct.pack("<III", 1, _STRUCT << 24 | 2, 4)
        types += struct.pack("<III", 3, number + 1, 0) + struct.pack("<III", 5, number + 1, 0)
    types += struct.pack("<III", 7, 1 << 24, 4) + struct.pack("<I", 32)
    return _blob(types, b"\0s\0a\0b\0int\0")


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    if len(data) <= _HEADER.size or rng.random() < 0.2:
        return change(data, len(data) + 32)
    if rng.random() < 0.1:
        return mutation.word(data[: _HEADER.size], rng, start=4) + data[_HEADER.size :]
    return mutation.word(data, rng, start=_HEADER.size)


TARGET = Target(
    name="btf",
    reads="type information of the kernel and of BPF objects, by `collect.bpf.btf`",
    holds="CannotError, or layouts whose fields lie in their struct; types that hold themselves or one another "
    "without end are refused in bounded time",
    sources=("tailspan.collect.bpf.btf",),
    check=check,
    seeds=seeds,
    mutate=mutate,
    words=(b".BTF", b"\x9f\xeb\x01\0", b"\0\0\0\x04", b"\0\0\0\x03", b"\xff\xff\xff\xff"),
)
