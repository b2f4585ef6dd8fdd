"""Names of addresses, by bcc's tables: of the kernel, and of the files that processes run.

bcc's own cache for a process is not used: that of 0.26 closes a descriptor by chance, of whatever is open (its
``ModulePath::fd_`` has no value where a perf map is absent; mended by "syms: Initialize ModulePath::fd_ to invalid
FD"). What is below it is: its reader of symbol tables, with separate debug files and all.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailspan.collect.elf import open_file

#: (function, file it is in); either is "" where it is not known.
Frame = tuple[str, str]

#: Of one file. Programs with all their debug symbols have more; what is beyond has no name.
MAX_SYMBOLS = 2_000_000
#: Functions may lie within others: so many are looked at, from the last that begins before an address.
_NESTED = 16
_FUNCTIONS = 1 << 2 | 1 << 10  # STT_FUNC, STT_GNU_IFUNC of elf(5)

_SYMBOL = ctypes.CFUNCTYPE(c_int, c_char_p, c_uint64, c_uint64, c_void_p)
_SECTION = ctypes.CFUNCTYPE(c_int, c_uint64, c_uint64, c_uint64, c_void_p)


@dataclass(frozen=True, slots=True)
class _Mapping:
    """Executable memory of a process. ``file`` is None where no file, or none that can be read, is behind it."""

    pages: range
    offset: int
    name: str
    file: _File | None


class Symbols:
    """Files are opened at the start, and stay so: a process's own names are gone once it has ended.

    ``bcc`` is the module. Not for several threads.
    """

    def __init__(self, bcc: Any, pids: Iterable[int]) -> None:
        self._bcc = bcc
        self._kernel = bcc.SymbolCache(-1)
        self._files: dict[tuple[int, int], _File] = {}
        self._mappings: dict[int, list[_Mapping]] = {}
        self._known: dict[tuple[int, int], Frame] = {}
        self.look_again(pids)

    def close(self) -> None:
        self._bcc.lib.bcc_free_symcache(self._kernel.cache, -1)
        for file in self._files.values():
            file.close()
        self._files.clear()

    def look_again(self, pids: Iterable[int]) -> None:
        """What these processes have mapped by now. Of one that has ended, what it had is kept."""
        for pid in pids:
            self._mappings[pid] = self._map(pid) or self._mappings.get(pid, [])

    def kernel(self, addresses: Sequence[int]) -> tuple[Frame, ...]:
        return tuple(self._kernel_frame(address) for address in _callers(addresses))

    def user(self, pid: int, addresses: Sequence[int]) -> tuple[Frame, ...]:
        """Up to what is no code: there the register that ought to have a frame's address had something else."""
        frames = []
        for address in _callers(addresses):
            mapping = next((mapping for mapping in self._mappings[pid] if address in mapping.pages), None)
            if mapping is None and self._mappings[pid]:
                break
            frames.append(self._user_frame(pid, address, mapping))
        return tuple(frames)

    def _map(self, pid: int) -> list[_Mapping]:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
        except OSError:
            return []
        found = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) ..x\S* ([0-9a-f]+) \S+ (\d+) *(.*)$", maps, re.M)
        return [
            _Mapping(
                range(int(start, 16), int(end, 16)),
                int(offset, 16),
                Path(path.removesuffix(" (deleted)")).name,
                self._open(pid, f"{start}-{end}") if int(inode) else None,
            )
            for start, end, offset, inode, path in found
        ]

    def _open(self, pid: int, pages: str) -> _File | None:
        """By the mapping, not by its path: that is another file in a container, or none any more."""
        with contextlib.suppress(OSError):
            descriptor = open_file(Path(f"/proc/{pid}/map_files/{pages}"))
            about = os.fstat(descriptor)
            key = about.st_dev, about.st_ino
            if key in self._files:
                os.close(descriptor)
            else:
                self._files[key] = _File(self._bcc, descriptor)
            return self._files[key]
        return None

    def _kernel_frame(self, address: int) -> Frame:
        if (-1, address) not in self._known:
            name, _, module = self._kernel.resolve(address, False)
            self._known[-1, address] = _text(name), _text(module)
        return self._known[-1, address]

    def _user_frame(self, pid: int, address: int, mapping: _Mapping | None) -> Frame:
        if mapping is None:
            return "", ""
        if (pid, address) not in self._known:
            offset = address - mapping.pages.start + mapping.offset
            self._known[pid, address] = mapping.file.function(offset) if mapping.file else "", mapping.name
        return self._known[pid, address]


class _File:
    """An open ELF file and its functions, read when the first is asked for."""

    def __init__(self, bcc: Any, descriptor: int) -> None:
        self._bcc = bcc
        self._descriptor = descriptor
        self._sections: list[tuple[int, int, int]] = []  # address, size, offset in the file
        self._functions: list[tuple[int, bool, int, int, bytes]] | None = None  # by address; the best name last

    def close(self) -> None:
        os.close(self._descriptor)

    def function(self, offset: int) -> str:
        """The innermost function that has this offset in the file; "" if none has."""
        if self._functions is None:
            self._functions = self._read()
        for first, size, begin in self._sections:
            if begin <= offset < begin + size:
                return self._at(offset - begin + first)
        return ""

    def _at(self, address: int) -> str:
        assert self._functions is not None
        after = bisect_right(self._functions, address, key=lambda function: function[0])
        for first, _, _, size, name in reversed(self._functions[max(after - _NESTED, 0) : after]):
            if address < first + size:
                return _text(demangled(name))
        return ""

    def _read(self) -> list[tuple[int, bool, int, int, bytes]]:
        """Of several names of one address the best is one without underscores, and short: it is put last."""
        functions: list[tuple[int, bool, int, int, bytes]] = []

        def keep(name: bytes, first: int, size: int, _: int | None) -> int:
            functions.append((first, not name.startswith(b"_"), -len(name), size, name))
            return -(len(functions) >= MAX_SYMBOLS)

        def keep_section(first: int, size: int, offset: int, _: int | None) -> int:
            self._sections.append((first, size, offset))
            return 0

        library = self._bcc.lib
        library.bcc_elf_foreach_sym.argtypes = (c_char_p, _SYMBOL, POINTER(self._bcc.bcc_symbol_option), c_void_p)
        library.bcc_elf_foreach_load_section.argtypes = (c_char_p, _SECTION, c_void_p)
        path = f"/proc/self/fd/{self._descriptor}".encode()
        option = self._bcc.bcc_symbol_option(1, 1, 0, _FUNCTIONS)  # debug files, their checksums, not lazy
        library.bcc_elf_foreach_sym(path, _SYMBOL(keep), byref(option), None)
        library.bcc_elf_foreach_load_section(path, _SECTION(keep_section), None)
        return sorted(functions)


def demangled(name: bytes) -> bytes:
    """A C++ name as it is written; any other as it is."""
    if not name.startswith((b"_Z", b"___Z")):
        return name
    libc, runtime = ctypes.CDLL(None), ctypes.CDLL("libstdc++.so.6")
    runtime.__cxa_demangle.argtypes = (c_char_p, c_char_p, POINTER(c_size_t), POINTER(c_int))
    runtime.__cxa_demangle.restype = c_void_p
    libc.free.argtypes = (c_void_p,)
    written = runtime.__cxa_demangle(name, None, None, None)
    if not written:
        return name
    text = ctypes.string_at(written)
    libc.free(written)
    return text


def _callers(addresses: Sequence[int]) -> list[int]:
    """All but the first are where a call returns to, which may be the next function's first instruction."""
    return [address - bool(index) for index, address in enumerate(addresses)]


def _text(name: bytes | None) -> str:
    return (name or b"").decode(errors="replace")
