"""Record layouts and kernel features, read from BTF.

Format: Documentation/bpf/btf.rst of the kernel. Only what we need: structs of integers, char arrays and nested
structs; enums; and whether the running kernel has a type by some name.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tailspan.errors import CannotError

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_MAGIC = 0xEB9F
(_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST) = range(1, 11)
(_RESTRICT, _FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64) = range(11, 20)
#: Bytes behind the 12-byte type header: fixed, and per vlen.
_EXTRA = {
    _INT: (4, 0),
    _ARRAY: (12, 0),
    _STRUCT: (0, 12),
    _UNION: (0, 12),
    _ENUM: (0, 8),
    _FUNC_PROTO: (0, 8),
    _VAR: (4, 0),
    _DATASEC: (0, 12),
    _DECL_TAG: (4, 0),
    _ENUM64: (0, 12),
}
_ALIASES = (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)
#: Types within one another. A type that holds itself goes on for ever.
_MAX_DEPTH = 32
#: What Python and numpy raise on types that contradict themselves.
_UNREADABLE = (struct.error, IndexError, ValueError, KeyError, TypeError, OverflowError)


@dataclass(slots=True)
class _Type:
    kind: int
    name: str
    size_or_type: int
    body: bytes


class Btf:
    """Types of one BTF blob. Raises :class:`CannotError` if the bytes are no BTF."""

    def __init__(self, blob: bytes) -> None:
        try:
            self._types = _parse(blob)
        except _UNREADABLE as error:
            raise CannotError(f"not readable as BTF: {error}") from None
        self._dtypes: dict[tuple[int, bool], np.dtype[np.void]] = {}

    @classmethod
    def of_object(cls, path: Path) -> Btf:
        return cls(elf_section(path.read_bytes(), ".BTF"))

    def struct(self, name: str) -> np.dtype[np.void]:
        """The numpy dtype of ``struct name``. Fields that end in ``_ns`` come signed: they are subtracted."""
        for index, kind in enumerate(self._types):
            if kind.kind == _STRUCT and kind.name == name:
                with _readable(f"struct {name}"):
                    return np.dtype(self._dtype(index, "", 0))
        raise CannotError(f"no struct {name} in the BPF object's BTF")

    def enum(self, name: str) -> dict[str, int]:
        for kind in self._types:
            if kind.kind == _ENUM and kind.name == name:
                with _readable(f"enum {name}"):
                    pairs = struct.iter_unpack("<Ii", kind.body)
                    return {self._strings_at(offset): value for offset, value in pairs}
        raise CannotError(f"no enum {name} in the BPF object's BTF")

    def variables(self, section: str) -> dict[str, tuple[int, int]]:
        """Variable name -> (offset, size) in a data section, as libbpf has laid it out."""
        for kind in self._types:
            if kind.kind == _DATASEC and kind.name == section:
                with _readable(f"section {section}"):
                    triples = struct.iter_unpack("<III", kind.body)
                    return {self._types[var].name: (offset, size) for var, offset, size in triples}
        raise CannotError(f"no section {section} in the BPF object's BTF")

    def _strings_at(self, offset: int) -> str:
        return _string(self._types[0].body, offset)

    def _dtype(self, index: int, field: str, depth: int) -> np.dtype[np.void]:
        """Each type is made once: a struct may have a million fields, all of one that has one."""
        key = index, field.endswith("_ns")
        if key not in self._dtypes:
            if depth > _MAX_DEPTH:
                raise ValueError(f"field {field}: more than {_MAX_DEPTH} types within one another")
            self._dtypes[key] = self._made(self._types[index], field, depth + 1)
        return self._dtypes[key]

    def _made(self, kind: _Type, field: str, depth: int) -> np.dtype[np.void]:
        if kind.kind in _ALIASES:
            return self._dtype(kind.size_or_type, field, depth)
        if kind.kind == _INT:
            signed = kind.body[3] & 1 or field.endswith("_ns")
            return np.dtype(f"<{'i' if signed else 'u'}{kind.size_or_type}")
        if kind.kind == _ENUM:
            return np.dtype(f"<u{kind.size_or_type}")
        if kind.kind == _ARRAY:
            element, _, count = struct.unpack("<III", kind.body)
            if self._types[element].name == "char":
                return np.dtype(f"S{count}")
            return np.dtype((self._dtype(element, field, depth), (count,)))
        if kind.kind == _STRUCT:
            names, formats, offsets = [], [], []
            for name_offset, member, bit_offset in struct.iter_unpack("<III", kind.body):
                names.append(self._strings_at(name_offset))
                formats.append(self._dtype(member, names[-1], depth))
                offsets.append((bit_offset & 0xFFFFFF) // 8)
            return np.dtype(
                {"names": names, "formats": formats, "offsets": offsets, "itemsize": kind.size_or_type}
            )
        raise CannotError(f"field {field}: BTF kind {kind.kind} has no place in a record")


@contextlib.contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise CannotError(f"{what} is not readable in the BTF: {error}") from None


def _parse(blob: bytes) -> list[_Type]:
    magic, _, _, header, type_at, type_len, string_at, string_len = struct.unpack_from("<HBBIIIII", blob)
    if magic != _MAGIC:
        raise ValueError("wrong magic")
    strings = blob[header + string_at : header + string_at + string_len]
    types = [_Type(0, "", 0, strings)]  # type 0 is void; its body keeps the strings
    at, end = header + type_at, header + type_at + type_len
    while at < end:
        name_offset, info, size_or_type = struct.unpack_from("<III", blob, at)
        kind = info >> 24 & 31
        fixed, each = _EXTRA.get(kind, (0, 0))
        length = fixed + each * (info & 0xFFFF)
        at += 12
        types.append(_Type(kind, _string(strings, name_offset), size_or_type, blob[at : at + length]))
        at += length
    return types


def _string(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(b"\0", offset)].decode()


def elf_section(elf: bytes, name: str) -> bytes:
    """The bytes of one section of a 64-bit little-endian ELF file."""
    try:
        if elf[:6] != b"\x7fELF\x02\x01":
            raise ValueError("no 64-bit little-endian ELF file")
        (table,) = struct.unpack_from("<Q", elf, 40)
        entry, count, names = struct.unpack_from("<HHH", elf, 58)
        headers = [struct.unpack_from("<IIQQQQIIQQ", elf, table + i * entry) for i in range(count)]
        names_at = headers[names][4]
        for header in headers:
            if _string(elf, names_at + header[0]) == name:
                return elf[header[4] : header[4] + header[5]]
    except _UNREADABLE as error:
        raise CannotError(f"BPF object: {error}") from None
    raise CannotError(f"BPF object: no section {name}")


def kernel_has(names: Collection[str], path: Path = VMLINUX) -> frozenset[str]:
    """Those of ``names`` that the running kernel's BTF has: what can be attached to is never decided by version.

    Raises :class:`CannotError` where the kernel has no BTF.
    """
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise CannotError(
            f"no kernel BTF at {path} ({error.strerror}): the kernel needs CONFIG_DEBUG_INFO_BTF=y "
            "(Debian 12, Ubuntu 22.04, RHEL 9 and later have it)"
        ) from None
    try:
        magic, _, _, header, _, _, string_at, string_len = struct.unpack_from("<HBBIIIII", blob)
    except struct.error:
        magic = 0
    if magic != _MAGIC:
        raise CannotError(f"{path} is not readable as BTF")
    strings = blob[header + string_at : header + string_at + string_len]
    wanted = {name.encode(): name for name in names}
    # Some 120,000 names: whoever kept them all would have 15 MB of them.
    return frozenset(wanted[name] for name in wanted.keys() & strings.split(b"\0"))
