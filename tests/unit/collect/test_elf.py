"""Functions of ELF files by name: those that the linker made, and whatever else may be mapped by a process."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan.collect.elf import function_offsets
from tailspan.errors import CannotError
from tests.fakes import build

NAMES = ("cuStreamSynchronize", "cuMemAlloc_v2", "cuGraphLaunch", "StreamSynchronize", "cuStream", "main")


@pytest.fixture(scope="module")
def library() -> Path:
    return build.library("cuda.c", "libcuda.so.1") / "libcuda.so.1"


def test_functions_are_where_the_loader_maps_them(library: Path) -> None:
    offsets = function_offsets(library, NAMES)

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

    assert set(function_offsets(runner, NAMES)) == {"cuStream", "main"}
    subprocess.run(["clang", "-O0", "-s", str(code), "-o", str(runner)], check=True)
    assert function_offsets(runner, NAMES) == {}


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"#!/bin/sh\n" * 99, b"\x7fELF\x01\x01" + bytes(99)])
def test_what_is_no_elf_file_is_said(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)

    with pytest.raises(CannotError, match=str(file)):
        function_offsets(file, NAMES)


def test_a_file_that_is_not_there_or_not_ours_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotError):
        function_offsets(tmp_path / "none", NAMES)
    with pytest.raises(CannotError):
        function_offsets(tmp_path, NAMES)


@given(st.data())
def test_a_damaged_one_gives_offsets_inside_or_an_error(library: Path, data: st.DataObject) -> None:
    raw = bytearray(library.read_bytes())
    headers = st.integers(0, 63) | st.integers(
        len(raw) - 2500, len(raw) - 1
    )  # its header, and those of its sections
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(headers)] = data.draw(st.integers(0, 255))
    damaged = library.parent / "damaged"
    damaged.write_bytes(raw[: data.draw(st.just(len(raw)) | st.integers(0, len(raw)))])

    try:
        offsets = function_offsets(damaged, NAMES)
    except CannotError:
        return
    assert all(offset > 0 for offset in offsets.values())


def test_the_interpreter_itself_is_read_in_no_time() -> None:
    assert function_offsets(Path(sys.executable).resolve(), ("main", "no such function")).keys() <= {"main"}
