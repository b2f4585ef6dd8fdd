"""The interpreter's own lock is where the client says, and the worker's locks are not."""

from __future__ import annotations

import ctypes
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan.client import runtime
from tests.conftest import eventually


def test_the_range_is_that_of_the_symbol_that_the_linker_finds() -> None:
    ((first, past),) = runtime.locks()
    symbol = ctypes.c_char.in_dll(ctypes.pythonapi, "_PyRuntime")
    assert first == ctypes.addressof(symbol)
    # AND it is one piece of memory that can be written
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, rights, *_ = line.split()
        if rights.startswith("rw"):
            spans.append([int(address, 16) for address in addresses.split("-")])
    covered = first
    for low, high in spans:  # .data and .bss are neighbours
        if low <= covered < high:
            covered = high
    assert past <= covered


# Two threads compute, so one always waits for the GIL; a third waits for a lock that nobody releases.
WAITERS = """
import json, sys, threading, time
from tailspan.client import runtime

tids, lock = {}, threading.Lock()
lock.acquire()

def wants_lock():
    tids["lock"] = threading.get_native_id()
    lock.acquire()

def computes():
    tids["gil"] = threading.get_native_id()
    while True:
        pass

for target in (wants_lock, computes):
    threading.Thread(target=target, daemon=True).start()
while len(tids) < 2:
    time.sleep(0.001)
print(json.dumps({"tids": tids, "locks": runtime.locks()}), flush=True)
while True:
    pass
"""

FUTEX = {"x86_64": 202, "aarch64": 98}


def test_a_wait_for_the_gil_is_on_a_word_inside_and_a_wait_for_a_lock_is_not() -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITERS], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        ((first, past),) = facts["locks"]

        def futex_word(thread: str) -> int:
            """The address on which it sleeps; 0 while it does not."""
            text = Path(f"/proc/{process.pid}/task/{facts['tids'][thread]}/syscall").read_text()
            number, *arguments = text.split()
            return int(arguments[0], 16) if number in map(str, FUTEX.values()) else 0

        for _ in range(23):
            eventually(lambda: first <= futex_word("gil") < past, "a thread sleeps on the GIL")
        eventually(
            lambda: futex_word("lock") and not first <= futex_word("lock") < past, "a thread sleeps on a lock"
        )
        # AND it stays there
        assert len({futex_word("lock") for _ in range(23)}) == 1
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_another_interpreter_has_no_such_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.implementation, "name", "pypy")
    assert runtime.locks() == []


def test_what_cannot_be_found_is_no_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_SYMBOL", b"_PyRuntim")  # the beginning of a name is no name
    assert runtime.locks() == []


def the_interpreters_file() -> bytes:
    for path in runtime._mapped_files():
        if path == str(Path("/proc/self/exe").readlink()) or Path(path).name.startswith("libpython"):
            content = Path(path).read_bytes()
            if runtime.find_symbol(io.BytesIO(content), b"_PyRuntime"):
                return content
    pytest.fail("no file of this process exports _PyRuntime")


def test_a_file_of_another_kind_has_no_symbols(tmp_path: Path) -> None:
    content = the_interpreters_file()
    assert runtime.find_symbol(io.BytesIO(b"#!/bin/sh\n" + bytes(100)), b"_PyRuntime") is None
    assert runtime.find_symbol(io.BytesIO(content[:4] + b"\x01" + content[5:]), b"_PyRuntime") is None
    assert runtime.find_symbol(io.BytesIO(content), b"no_such_symbol") is None


HEADER = the_interpreters_file()[:4096]


@given(st.data())
def test_a_damaged_file_is_an_ordinary_error(data: st.DataObject) -> None:
    """``locks()`` takes any Exception for "not found"; what must not happen is a hang or a crash."""
    content = bytearray(HEADER)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, 63))] = data.draw(st.integers(0, 255))
    try:
        found = runtime.find_symbol(io.BytesIO(bytes(content)), b"_PyRuntime")
    except Exception:
        return
    assert found is None
