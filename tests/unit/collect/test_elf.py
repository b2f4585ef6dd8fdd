"""Functions of ELF files by name: those that the linker made, and whatever else may be mapped by a process."""

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan.collect.elf import function_offsets, open_file
from tailspan.errors import CannotError
from tests.fakes import build

NAMES = ("cuStreamSynchronize", "cuMemAlloc_v2", "cuGraphLaunch", "StreamSynchronize", "cuStream", "main")


@pytest.fixture(scope="module")
def library() -> Path:
    return build.library("cuda.c", "libcuda.so.1") / "libcuda.so.1"


def offsets_in(path: Path, names: Collection[str]) -> dict[str, int]:
    file = open_file(path)
    try:
        return function_offsets(file, names)
    finally:
        os.close(file)


def test_functions_are_where_the_loader_maps_them(library: Path) -> None:
    offsets = offsets_in(library, NAMES)

    # The same bytes in memory, at the address that dlsym gives, and in the file.
    loaded, raw = ctypes.CDLL(str(library)), library.read_bytes()
    assert set(offsets) == {"cuStreamSynchronize", "cuMemAlloc_v2", "cuGraphLaunch"}
    for name, offset in offsets.items():
        address = ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value
        assert address is not None
        assert ctypes.string_at(address, 32) == raw[offset : offset + 32]


def test_a_static_function_is_in_the_symbol_table_until_it_is_stripped(tmp_path: Path) -> None:
    code, runner = tmp_path / "code.c", tmp_path / "code"
    code.write_text(
        "static __attribute__((noinline)) int cuStream(int x) { return x + 7; }\n"
        "int main(void) { return cuStream(0) - 7; }\n"
    )
    subprocess.run(["clang", "-O0", str(code), "-o", str(runner)], check=True)

    assert set(offsets_in(runner, NAMES)) == {"cuStream", "main"}
    subprocess.run(["clang", "-O0", "-s", str(code), "-o", str(runner)], check=True)
    assert offsets_in(runner, NAMES) == {}


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"#!/bin/sh\n" * 99, b"\x7fELF\x01\x01" + bytes(99)])
def test_what_is_no_elf_file_is_said(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)

    with pytest.raises(CannotError, match="not readable as ELF"):
        offsets_in(file, NAMES)


@pytest.mark.parametrize("at", [32, 40], ids=["segments", "sections"])
@pytest.mark.parametrize("offset", [2**31, 2**62, 2**63, 2**64 - 1])
def test_headers_that_lie_outside_are_said(library: Path, tmp_path: Path, at: int, offset: int) -> None:
    raw = bytearray(library.read_bytes())
    struct.pack_into("<Q", raw, at, offset)
    (tmp_path / "damaged").write_bytes(raw)

    with pytest.raises(CannotError, match="not readable as ELF"):
        offsets_in(tmp_path / "damaged", NAMES)


def test_what_is_no_file_is_said_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "none", tmp_path, tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(OSError):
            open_file(path)


@given(st.data())
def test_a_damaged_one_gives_offsets_inside_or_an_error(library: Path, data: st.DataObject) -> None:
    raw = bytearray(library.read_bytes())
    # Its header, and those of its sections; a byte, or an address or size that no file has.
    places = st.integers(0, 63) | st.integers(len(raw) - 2500, len(raw) - 9)
    words = st.integers(0, 255).map(lambda byte: bytes([byte])) | st.sampled_from(
        [struct.pack("<Q", value) for value in (0, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)]
    )
    for _ in range(data.draw(st.integers(1, 8))):
        at, word = data.draw(places), data.draw(words)
        raw[at : at + len(word)] = word
    damaged = library.parent / "damaged"
    damaged.write_bytes(raw[: data.draw(st.just(len(raw)) | st.integers(0, len(raw)))])

    try:
        offsets = offsets_in(damaged, NAMES)
    except CannotError:
        return
    assert all(0 < offset < damaged.stat().st_size for offset in offsets.values())


def test_the_interpreter_itself_is_read_in_no_time() -> None:
    assert offsets_in(Path(sys.executable).resolve(), ("main", "no such function")).keys() <= {"main"}
