"""Where functions are in a program or library: by name to an offset in the file, as uprobes want it.

Format: elf(5). Any ELF file of 64 bits may come, whole or damaged: a symbol that cannot be followed is not there.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tailspan.errors import CannotError

_HEADER = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_SYMTAB, _DYNSYM, _LOAD, _FUNC = 2, 11, 1, 2

Table = npt.NDArray[np.void]


def function_offsets(path: Path, names: Collection[str]) -> dict[str, int]:
    """Those of the names that are functions of the file. Raises :class:`CannotError` if it is no ELF file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as elf:
            return _function_offsets(elf, names)
    except (OSError, struct.error, ValueError) as error:
        raise CannotError(f"{path}: {error}") from None


def _function_offsets(elf: mmap.mmap, names: Collection[str]) -> dict[str, int]:
    magic, bits, order, *_, segments_at, sections_at, _, _, segment_size, segments, section_size, sections, _ = (
        _HEADER.unpack_from(elf)
    )
    if (magic, bits, order) != (b"\x7fELF", 2, 1):
        raise ValueError("not an ELF file of 64 bits, little-endian")
    loaded = [_SEGMENT.unpack_from(elf, segments_at + i * segment_size) for i in range(segments)]
    tables = [_SECTION.unpack_from(elf, sections_at + i * section_size) for i in range(sections)]
    found: dict[str, int] = {}
    for _, kind, _, _, at, size, strings, *_ in tables:
        if kind in (_SYMTAB, _DYNSYM) and strings < len(tables):
            symbols = np.frombuffer(elf[at : at + size // _SYMBOL.itemsize * _SYMBOL.itemsize], _SYMBOL)
            symbols = symbols[(symbols["info"] & 15 == _FUNC) & (symbols["section"] != 0)]
            _, _, _, _, names_at, names_size, *_ = tables[strings]
            values = _values(symbols, elf[names_at : names_at + names_size], names)
            found |= {name: offset for name, value in values.items() if (offset := _in_file(value, loaded))}
    return found


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
    """Offset of an address; 0, which is the header's, where no segment has it."""
    for kind, _, offset, first, _, size, *_ in segments:
        if kind == _LOAD and first <= address < first + size:
            return address - first + offset
    return 0
