"""Names of addresses, by bcc's tables: of this process, whose addresses are known."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailspan.collect.bpf.headers import import_bcc
from tailspan.collect.bpf.symbols import Symbols, demangled

pytestmark = pytest.mark.kernel

LIBC = ctypes.CDLL(None)


@pytest.fixture
def symbols() -> Iterator[Symbols]:
    found = Symbols(import_bcc(), [os.getpid()])
    yield found
    found.close()


def address(function: str) -> int:
    pointer = ctypes.cast(getattr(LIBC, function), ctypes.c_void_p).value
    assert pointer
    return pointer


def descriptors() -> dict[str, str]:
    links = {}
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that this lists with
            links[fd.name] = str(fd.readlink())
    return links


def test_function_has_its_name_and_file(symbols: Symbols) -> None:
    ((name, file),) = symbols.user(os.getpid(), [address("getppid") + 1])
    assert name.endswith("getppid")
    assert file.startswith("libc")


def test_caller_is_where_the_call_is_not_where_it_returns_to(symbols: Symbols) -> None:
    # the first is where the CPU is, the second what follows a call: here the one before this function
    first, second = symbols.user(os.getpid(), [address("getppid"), address("getppid")])
    assert first[0].endswith("getppid")
    assert not second[0].endswith("getppid")


def test_stack_ends_where_there_is_no_code(symbols: Symbols) -> None:
    here = address("getppid")
    assert len(symbols.user(os.getpid(), [here, 0x7F, here])) == 1
    assert symbols.user(os.getpid(), [0x7F]) == ()


def test_code_in_no_file_has_no_name_and_goes_on(symbols: Symbols) -> None:
    with mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC | mmap.PROT_WRITE) as code:
        start = ctypes.addressof(ctypes.c_char.from_buffer(code))
        symbols.look_again([os.getpid()])
        jitted, after = symbols.user(os.getpid(), [start + 8, address("getppid") + 2])
    assert jitted[0] == ""
    assert after[0].endswith("getppid")


def test_process_that_has_ended_keeps_its_names(symbols: Symbols) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        while "libc" not in Path(f"/proc/{other.pid}/maps").read_text():
            assert other.poll() is None
        symbols.look_again([other.pid])
        maps = Path(f"/proc/{other.pid}/maps").read_text().splitlines()
    finally:
        other.kill()
        other.wait()
    symbols.look_again([other.pid])
    base = next(int(line.partition("-")[0], 16) for line in maps if "libc" in line)
    own = next(
        int(line.partition("-")[0], 16)
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "libc.so" in line
    )
    ((name, _),) = symbols.user(other.pid, [base + address("getppid") - own])
    assert name.endswith("getppid")


def test_kernel_function_has_its_name(symbols: Symbols) -> None:
    known = next(
        line.split() for line in Path("/proc/kallsyms").read_text().splitlines() if line.endswith(" T vfs_read")
    )
    assert symbols.kernel([int(known[0], 16) + 1]) == (("vfs_read", "kernel"),)


def test_no_descriptor_of_anybody_is_touched() -> None:
    bcc = import_bcc()
    before = descriptors()
    for _ in range(20):
        found = Symbols(bcc, [os.getpid()])
        found.user(os.getpid(), [address("getppid"), address("getppid")])
        found.look_again([os.getpid()])
        assert {fd: link for fd, link in descriptors().items() if fd in before} == before
        found.close()
    assert descriptors() == before


def test_names_of_cpp_are_written_out() -> None:
    assert demangled(b"_ZN3app11read_configEl") == b"app::read_config(long)"
    assert demangled(b"_Znot_one") == b"_Znot_one"
    assert demangled(b"getppid") == b"getppid"
