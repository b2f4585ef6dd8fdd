"""Where functions are in a program or library: by name to an offset in the file, as uprobes want it.

Format: elf(5). Any ELF file of 64 bits may come, whole or damaged: a symbol that cannot be followed is not there.
Read, not mapped: a file that is cut short meanwhile would end who has it mapped.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tailspan.errors import CannotError

#: A table of symbols or of their names that is longer is left out: those of programs with all their debug symbols.
MAX_TABLE_BYTES = 64 << 20

_HEADER = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_SYMTAB, _DYNSYM, _LOAD, _EXECUTABLE, _FUNC = 2, 11, 1, 1, 2

Table = npt.NDArray[np.void]


def open_file(path: Path) -> int:
    """A descriptor of a regular file. Raises OSError; never waits, whatever has been put in the file's place."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return file


def function_offsets(file: int, names: Collection[str]) -> dict[str, int]:
    """Those of the names that are functions of the open file. Raises :class:`CannotError` if it is no ELF file."""
    try:
        return _function_offsets(file, names)
    except (OSError, struct.error, ValueError, OverflowError) as error:
        raise CannotError(f"not readable as ELF: {error}") from None


def _function_offsets(file: int, names: Collection[str]) -> dict[str, int]:
    magic, bits, order, *_, segments_at, sections_at, _, _, segment_size, segments, section_size, sections, _ = (
        _HEADER.unpack(_read(file, 0, _HEADER.size))
    )
    if (magic, bits, order) != (b"\x7fELF", 2, 1):
        raise ValueError("not a file of 64 bits, little-endian")
    if (segment_size, section_size) != (_SEGMENT.size, _SECTION.size):
        raise ValueError("headers of an unknown size")
    loaded = list(_SEGMENT.iter_unpack(_read(file, segments_at, segments * segment_size)))
    tables = list(_SECTION.iter_unpack(_read(file, sections_at, sections * section_size)))
    end = os.fstat(file).st_size
    found: dict[str, int] = {}
    for wanted in (_SYMTAB, _DYNSYM):  # one of each at most
        symbols, strings = _symbols(file, tables, wanted)
        for name, value in _values(symbols, strings, names).items():
            if 0 < (offset := _in_file(value, loaded)) < end:
                found[name] = offset
    return found


def _symbols(file: int, tables: list[tuple[int, ...]], wanted: int) -> tuple[Table, bytes]:
    """The functions in a table of this kind, and the bytes that their names are in."""
    for _, kind, _, _, at, size, strings, *_ in tables:
        if kind != wanted or strings >= len(tables):
            continue
        _, _, _, _, names_at, names_size, *_ = tables[strings]
        if max(size, names_size) > MAX_TABLE_BYTES:
            break
        symbols = np.frombuffer(_read(file, at, size // _SYMBOL.itemsize * _SYMBOL.itemsize), _SYMBOL)
        functions = (symbols["info"] & 15 == _FUNC) & (symbols["section"] != 0)
        return symbols[functions], _read(file, names_at, names_size)
    return np.empty(0, _SYMBOL), b""


def _read(file: int, at: int, size: int) -> bytes:
    """Raises ValueError where the file has less, OverflowError where no file has so much."""
    read = os.pread(file, size, at)
    if len(read) < size:
        raise ValueError("it ends too early")
    return read


def _values(symbols: Table, strings: bytes, names: Collection[str]) -> dict[str, int]:
    """Addresses by name. A name may be the end of another's string: linkers share them."""
    values: dict[str, int] = {}
    for name in names:
        ends, at = [], strings.find(name.encode() + b"\0")
        while at >= 0:
            ends.append(at)
            at = strings.find(name.encode() + b"\0", at + 1)
        if ends:
            of_name = symbols["value"][np.isin(symbols["name"], ends)]
            if len(of_name):
                values[name] = int(of_name[0])
    return values


def _in_file(address: int, segments: list[tuple[int, ...]]) -> int:
    """Offset of an address; 0, which is the header's, where no segment of code has it."""
    for kind, flags, offset, first, _, size, *_ in segments:
        if kind == _LOAD and flags & _EXECUTABLE and first <= address < first + size:
            return address - first + offset
    return 0
