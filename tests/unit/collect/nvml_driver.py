"""The real pynvml over our libnvidia-ml.so.1 (tests/fakes/nvml.c), in this process, for as long as a test."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from tailspan.collect.nvml import calls
from tests.fakes import build
from tests.fakes.device import FakeGpu

SONAME = "libnvidia-ml.so.1"


class Driver:
    """GPUs, and the script of what NVML says of them."""

    def __init__(self, folder: Path, count: int, **fields: int) -> None:
        self.gpu = FakeGpu(folder / "gpu", count, **fields)
        self.script = folder / "script"
        self.say()

    def say(self, *lines: str) -> None:
        part = self.script.with_suffix(".part")
        part.write_text("".join(f"{line}\n" for line in lines))
        part.replace(self.script)

    def runs(self, pid: int, place: int = 0, memory_bytes: int = 0, busy_ns: int = 0, gpu: int = 0) -> None:
        process = self.gpu.devices[gpu].processes[place]
        process.memory_bytes, process.busy_ns = memory_bytes, busy_ns
        process.pid = pid


@pytest.fixture
def make_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Driver]]:
    """Driver(count, **fields of each device); one a test."""
    path = build.library("nvml.c", SONAME) / SONAME
    monkeypatch.setattr(calls, "LIBRARY", str(path))
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(path)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    made: list[Driver] = []

    def make(count: int = 1, **fields: int) -> Driver:
        made.append(Driver(tmp_path, count, **fields))
        monkeypatch.setenv("FAKE_GPU", str(made[-1].gpu.path))
        monkeypatch.setenv("FAKE_NVML", str(made[-1].script))
        return made[-1]

    yield make
    for driver in made:
        driver.say()  # ends delays


@pytest.fixture
def driver(make_driver: Callable[..., Driver]) -> Driver:
    """One GPU, an H100."""
    return make_driver()
