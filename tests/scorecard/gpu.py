"""The GPU that the scorecard's faults are injected into: not a real one, see :mod:`tests.fakes`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests.fakes import build
from tests.fakes.device import H100, FakeGpu

#: Of one request's work on it.
KERNEL_NS, LAUNCHES = 500_000, 12
COPY_BYTES, ALLOCATE_BYTES = 1 << 20, 16 << 20
GIB = 1 << 30


class Card:
    """One GPU, the worker's and its neighbours'."""

    def __init__(self, folder: Path) -> None:
        self._script = folder / "nvml.script"
        self._script.write_text("")
        self.gpu = FakeGpu(folder / "gpu", kernel_ns=KERNEL_NS)
        libraries = [build.library("cuda.c", "libcuda.so.1"), build.library("nvml.c", "libnvidia-ml.so.1")]
        path = [*map(str, libraries), os.environ.get("LD_LIBRARY_PATH", "")]
        #: For programs that shall see it.
        self.environment = {
            "FAKE_GPU": str(self.gpu.path),
            "FAKE_NVML": str(self._script),
            "LD_LIBRARY_PATH": ":".join(filter(None, path)),
        }

    @contextlib.contextmanager
    def set(self, **fields: int) -> Iterator[None]:
        """Fields of the device, as they were when it closes."""
        device = self.gpu.devices[0]
        before = {name: getattr(device, name) for name in fields}
        device.set(**fields)
        try:
            yield
        finally:
            device.set(**before)

    @contextlib.contextmanager
    def scripted(self, *lines: str) -> Iterator[None]:
        """What NVML says, until it closes."""
        self._write(lines)
        try:
            yield
        finally:
            self._write(())

    def _write(self, lines: tuple[str, ...]) -> None:
        part = self._script.with_suffix(".part")
        part.write_text("".join(f"{line}\n" for line in lines))
        part.replace(self._script)


HIGHEST_MHZ = H100["sm_max_mhz"]
