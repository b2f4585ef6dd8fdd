"""Where CPython keeps its own lock, so that a wait for it can be told from any other wait on a futex.

The GIL's mutex and condition variable lie in ``_PyRuntime``, a static structure (3.11: in its ``ceval`` part;
since 3.12: in its main interpreter). The executable or libpython exports the symbol; its address and size are read
from that file and ``/proc/self/maps``, without the import of ctypes. The locks of ``threading`` are allocated one
by one, so they lie elsewhere.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import BinaryIO

_SYMBOL = b"_PyRuntime"

# https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html and, for the 64-bit layouts, elf.h
_ELF64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
_HEADER = struct.Struct("<16s2HI3QI6H")
_SEGMENT = struct.Struct("<2I6Q")
_SECTION = struct.Struct("<2I4Q2I2Q")
_SYMBOL_ENTRY = struct.Struct("<I2BH2Q")
_PT_LOAD = 1
_SHT_DYNSYM = 11


def locks() -> list[list[int]]:
    """Address ranges [first, past) in which this interpreter's own locks lie; none when they are not found."""
    try:
        return _locks() if sys.implementation.name == "cpython" else []
    except Exception:  # no /proc, a file that was replaced or cannot be read, no ELF as we know it ...
        return []


def _locks() -> list[list[int]]:
    executable = os.readlink("/proc/self/exe")  # noqa: PTH115 - to import pathlib takes 4 ms
    mapped = _mapped_files()
    # In the dynamic linker's order: what the executable defines comes before a library's.
    for path in sorted(mapped, key=executable.__ne__):
        if path == executable or path.rpartition("/")[2].startswith(("python", "libpython")):
            # The link opens an executable whose file was replaced, too.
            with open("/proc/self/exe" if path == executable else path, "rb") as file:
                found = find_symbol(file, _SYMBOL)
            if found is not None:
                first = mapped[path] + found[0]
                return [[first, first + found[1]]]
    return []


def _mapped_files() -> dict[str, int]:
    """Path -> the address of the file's first byte, in the order of addresses."""
    mapped: dict[str, int] = {}
    with open("/proc/self/maps", errors="surrogateescape") as maps:
        for line in maps:
            addresses, _, offset, _, _, *path = line.rstrip("\n").split(maxsplit=5)
            if path and int(offset, 16) == 0:
                mapped.setdefault(path[0], int(addresses.partition("-")[0], 16))
    return mapped


def find_symbol(file: BinaryIO, name: bytes) -> tuple[int, int] | None:
    """(address relative to where the file's first byte is mapped, bytes) of a symbol that the file exports.

    None when it defines no such symbol, or is no 64-bit little-endian ELF file. Raises whatever
    a damaged one leads to.
    """
    header = _HEADER.unpack(file.read(_HEADER.size))
    if not header[0].startswith(_ELF64_LITTLE_ENDIAN):
        return None
    segments_at, sections_at = header[5], header[6]
    segments, sections = header[10], header[12]
    (base,) = [
        vaddr
        for kind, _, offset, vaddr, *_ in _table(file, _SEGMENT, segments_at, segments)
        if kind == _PT_LOAD and offset == 0
    ]
    rows = _table(file, _SECTION, sections_at, sections)
    for _, kind, _, _, offset, size, link, *_ in rows:
        if kind == _SHT_DYNSYM:
            strings = _read(file, rows[link][4], rows[link][5])
            symbols = _SYMBOL_ENTRY.iter_unpack(_read(file, offset, size))
            for text, _, _, section, address, length in symbols:
                if section and length and strings.startswith(name + b"\0", text):
                    return address - base, length
    return None


def _table(file: BinaryIO, row: struct.Struct, offset: int, count: int) -> list[tuple[int, ...]]:
    return list(row.iter_unpack(_read(file, offset, count * row.size)))


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
