"""The device behind both libraries (``device.h``), as the tests see it: a file, mapped."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Any

#: Of device.h; every field is 8 bytes.
MAGIC = 0x7550476B61660002
DEVICES, PROCESSES = 4, 16
_FIELDS = (
    *("free_at_mono_ns", "memory_total_bytes", "sm_mhz", "sm_max_mhz", "cold_mhz", "cold_after_ns", "warm_ns"),
    *("reasons", "kernel_ns", "copy_bytes_per_s", "alloc_ns", "free_ns", "load_ns", "alloc_result", "sync_result"),
    *("hang_ns", "sync_sleeps", "warm_since_mono_ns", "launches"),
)

#: An H100 at rest, but for its kernels, which take a millisecond.
H100 = {
    "memory_total_bytes": 80 << 30,
    "sm_mhz": 1980,
    "sm_max_mhz": 1980,
    "kernel_ns": 1_000_000,
    "copy_bytes_per_s": 25_000_000_000,
    "alloc_ns": 20_000,
    "free_ns": 20_000,
    "load_ns": 2_000_000,
    "sync_sleeps": 1,
}


class _Process(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("pid", "busy_ns", "memory_bytes")]


class Device(ctypes.Structure):
    """Fields as in ``struct fake_device``; set them while programs run."""

    _fields_ = [*((name, ctypes.c_uint64) for name in _FIELDS), ("processes", _Process * PROCESSES)]

    def set(self, **fields: int) -> None:
        for name, value in fields.items():
            assert name in _FIELDS, name
            setattr(self, name, value)


class _Gpu(ctypes.Structure):
    _fields_ = [("magic", ctypes.c_uint64), ("count", ctypes.c_uint64), ("devices", Device * DEVICES)]


class FakeGpu:
    """``path`` goes to programs as ``FAKE_GPU``."""

    def __init__(self, path: Path, count: int = 1, **fields: int) -> None:
        self.path = path
        path.write_bytes(bytes(ctypes.sizeof(_Gpu)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(_Gpu))
        gpu = _Gpu.from_buffer(self._map)
        self.devices: Any = gpu.devices
        for device in gpu.devices[:count]:
            device.set(**H100 | fields)
        gpu.count = count
        gpu.magic = MAGIC
