"""The CUDA driver, by ctypes: which GPU a process has, and a little work on it, with or without ONNX Runtime's.

ctypes lets go of the GIL for as long as a call takes. Names and signatures are those of cuda.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any
from uuid import UUID

from tailspan.errors import CannotError

LIBRARY = "libcuda.so.1"

_POINTER = POINTER(c_void_p)
_ARGUMENTS: dict[str, list[Any]] = {
    "cuInit": [c_uint],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDeviceGetUuid": [c_void_p, c_int],
    "cuDeviceGetUuid_v2": [c_void_p, c_int],
    "cuDevicePrimaryCtxRetain": [_POINTER, c_int],
    "cuCtxSetCurrent": [c_void_p],
    "cuModuleLoadData": [_POINTER, c_char_p],
    "cuModuleUnload": [c_void_p],
    "cuModuleGetFunction": [_POINTER, c_void_p, c_char_p],
    "cuMemAlloc_v2": [POINTER(c_uint64), c_size_t],
    "cuMemFree_v2": [c_uint64],
    "cuMemcpyHtoD_v2": [c_uint64, c_void_p, c_size_t],
    "cuMemcpyDtoH_v2": [c_void_p, c_uint64, c_size_t],
    "cuLaunchKernel": [c_void_p, *[c_uint] * 7, c_void_p, _POINTER, _POINTER],
    "cuStreamSynchronize": [c_void_p],
}

#: One thread that does nothing for so many nanoseconds. The driver compiles it for the GPU that is there.
_SPIN = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry spin(.param .u64 spin_ns)
{
    .reg .u64 %time<4>;
    .reg .pred %early;
    ld.param.u64 %time1, [spin_ns];
    mov.u64 %time2, %globaltimer;
    add.u64 %time2, %time2, %time1;
again:
    mov.u64 %time3, %globaltimer;
    setp.lt.u64 %early, %time3, %time2;
    @%early bra again;
    ret;
}
"""


class CudaError(Exception):
    """A call that did not return CUDA_SUCCESS."""

    def __init__(self, function: str, result: int) -> None:
        super().__init__(f"{function} returned CUresult {result}")
        self.result = result


class _Driver:
    """Calls by name, each checked. Raises OSError where there is no driver."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        function = self._function(name)
        if result := function(*arguments):
            raise CudaError(name, result)

    def device(self, ordinal: int) -> int:
        device = c_int()
        self.call("cuDeviceGet", byref(device), ordinal)
        return device.value

    def uuid(self, name: str, device: int) -> UUID:
        raw = ctypes.create_string_buffer(16)
        self.call(name, raw, device)
        return UUID(bytes=raw.raw)

    def _function(self, name: str) -> Callable[..., int]:
        function = getattr(self._library, name)
        function.argtypes = _ARGUMENTS[name]
        return function  # type: ignore[no-any-return]


def device_uuid(ordinal: int = 0) -> str:
    """As NVML has it, ``GPU-…`` or ``MIG-…``; empty where there is no such device.

    ``ordinal``: among the devices that this process may use (``CUDA_VISIBLE_DEVICES``).
    """
    try:
        driver = _Driver()
        device = driver.device(ordinal)
        whole = own = driver.uuid("cuDeviceGetUuid", device)
        # Of a part of a GPU it gives the part's, where the older function gives the whole GPU's.
        with contextlib.suppress(AttributeError):  # a driver from before 11.4, which knows of no parts
            own = driver.uuid("cuDeviceGetUuid_v2", device)
    except (OSError, AttributeError, CudaError):  # no driver, one from before 9.2, no device
        return ""
    return f"GPU-{whole}" if own == whole else f"MIG-{own}"


class Device:
    """One GPU with a kernel of ours and a buffer. Any thread may use it. A call that fails raises CudaError."""

    def __init__(self, ordinal: int = 0, kernel_ns: int = 0, buffer_bytes: int = 1 << 20) -> None:
        """Raises CannotError where there is no such device."""
        self.uuid = device_uuid(ordinal)
        try:
            self._driver = _Driver()
            self._context = c_void_p()
            self._call = self._driver.call
            self._call("cuDevicePrimaryCtxRetain", byref(self._context), self._driver.device(ordinal))
            self._threads = threading.local()
            self._spin = c_void_p()
            self._host = ctypes.create_string_buffer(buffer_bytes)
            self._buffer = self.allocate(buffer_bytes)
            self._call("cuModuleGetFunction", byref(self._spin), self._module(), b"spin")
        except (OSError, AttributeError, CudaError) as error:
            raise CannotError(f"no CUDA device {ordinal}: {error}") from None
        spin_ns = c_uint64(kernel_ns)
        self._kernel_ns = spin_ns
        self._parameters = (c_void_p * 1)(ctypes.addressof(spin_ns))

    def run(self, launches: int, nbytes: int) -> None:
        """What a small model does for a batch: copy in, compute, wait, copy out."""
        self.copy_in(nbytes)
        self.launch(launches)
        self.synchronize()
        self.copy_out(nbytes)

    def launch(self, launches: int) -> None:
        """Kernels, one after another; it does not wait for them."""
        self._enter()
        for _ in range(launches):
            self._call("cuLaunchKernel", self._spin, 1, 1, 1, 1, 1, 1, 0, None, self._parameters, None)

    def synchronize(self) -> None:
        self._enter()
        self._call("cuStreamSynchronize", None)

    def copy_in(self, nbytes: int) -> None:
        self._enter()
        self._call("cuMemcpyHtoD_v2", self._buffer, self._host, self._fitting(nbytes))

    def copy_out(self, nbytes: int) -> None:
        self._enter()
        self._call("cuMemcpyDtoH_v2", self._host, self._buffer, self._fitting(nbytes))

    def allocate(self, nbytes: int) -> int:
        """An address for :meth:`free`."""
        self._enter()
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), nbytes)
        return address.value

    def free(self, address: int) -> None:
        self._enter()
        self._call("cuMemFree_v2", address)

    def load(self) -> None:
        """Load code, as the first run of a kernel does, and unload it."""
        self._call("cuModuleUnload", self._module())

    def _module(self) -> c_void_p:
        self._enter()
        module = c_void_p()
        self._call("cuModuleLoadData", byref(module), _SPIN)
        return module

    def _enter(self) -> None:
        """A context is current for one thread."""
        if not hasattr(self._threads, "entered"):
            self._call("cuCtxSetCurrent", self._context)
            self._threads.entered = True

    def _fitting(self, nbytes: int) -> int:
        if not 0 <= nbytes <= len(self._host):
            raise ValueError(f"{nbytes} bytes, and the buffer has {len(self._host)}")
        return nbytes
