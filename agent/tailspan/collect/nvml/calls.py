"""Calls into NVML, each counted and timed, and what its errors mean for who asked."""

from __future__ import annotations

import ctypes
import threading
import time
from collections import Counter
from typing import Any

LIBRARY = "libnvidia-ml.so.1"

#: nvmlReturn_t.
SUCCESS = 0
UNINITIALIZED = 1
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
LIB_RM_VERSION_MISMATCH = 18
NO_DATA = 21
ARGUMENT_VERSION_MISMATCH = 25
DEPRECATED = 26
UNKNOWN = 999

#: It will say the same next time. An identifier that a driver does not know is an invalid argument to it.
_REFUSALS = frozenset(
    {NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, INVALID_ARGUMENT, ARGUMENT_VERSION_MISMATCH, DEPRECATED}
)
#: No failures: that there is nothing (more) is an answer. pynvml raises even success where it expected a size.
_NOTHING = frozenset({SUCCESS, NOT_FOUND, NO_DATA})
_DISCONNECTED = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, LIB_RM_VERSION_MISMATCH})


class NvmlError(Exception):
    """A call failed. The text is NVML's."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class LostError(NvmlError):
    """The driver cannot reach that GPU any more."""


class DisconnectedError(NvmlError):
    """Nothing answers until NVML is initialised again: the driver was unloaded, or loaded anew."""


class Nvml:
    """pynvml. It is imported with the first connection: a host without the library pays nothing for it."""

    def __init__(self) -> None:
        self._pynvml: Any = None
        self._lock = threading.Lock()
        self.calls = 0
        self.call_ns = 0
        self.failures: Counter[str] = Counter()

    def connect(self) -> None:
        if self._pynvml is None:
            try:
                ctypes.CDLL(LIBRARY)
                import pynvml
            except (OSError, ImportError) as error:
                self._count(0, 0, "NVML Shared Library Not Found")
                raise NvmlError(LIBRARY_NOT_FOUND, str(error)) from error
            self._pynvml = pynvml
        self.call("nvmlInit")

    def call(self, name: str, *args: Any, waits: bool = False) -> Any:
        """What the function returns. ``waits``: it sleeps until something happens, and its end is no failure; its
        time is not the driver's. Raises NvmlError, or one of its kinds where nothing else will answer either.
        """
        began_ns = time.monotonic_ns()
        failed = ""
        try:
            return self._function(name)(*args)
        except self._pynvml.NVMLError as error:
            raised = _error(int(error.value), str(error))
            if raised.code not in _NOTHING and not (waits and raised.code == TIMEOUT):
                failed = str(raised)
            raise raised from error
        except (ValueError, TypeError, ctypes.ArgumentError) as error:  # its text is no text, or a type is unknown
            failed = "Unknown Error"
            raise NvmlError(UNKNOWN, str(error)) from error
        finally:
            self._count(1, 0 if waits else time.monotonic_ns() - began_ns, failed)

    def make(self, structure: str) -> Any:
        """An empty ctypes structure of pynvml's."""
        return getattr(self._pynvml, structure)()

    def text(self, code: int) -> str:
        return str(self._pynvml.NVMLError(code))

    def _function(self, name: str) -> Any:
        try:
            return getattr(self._pynvml, name)
        except AttributeError:
            raise self._pynvml.NVMLError(FUNCTION_NOT_FOUND) from None

    def _count(self, calls: int, ns: int, failed: str) -> None:
        with self._lock:
            self.calls += calls
            self.call_ns += ns
            if failed:
                self.failures[failed] += 1


def _error(code: int, text: str) -> NvmlError:
    if code == GPU_IS_LOST:
        return LostError(code, text)
    return DisconnectedError(code, text) if code in _DISCONNECTED else NvmlError(code, text)


def address(handle: Any) -> int:
    """Of an nvmlDevice_t: the same for each that means the same device."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


class Asked:
    """Calls about one device. What it refused is asked again only while ``again`` is set."""

    def __init__(self, nvml: Nvml, handle: Any) -> None:
        self.nvml, self.handle = nvml, handle
        self.again = True
        self.refused: dict[str, str] = {}
        self._older: set[str] = set()

    @property
    def unreadable(self) -> dict[str, str]:
        """Without the functions in whose place an older one answered."""
        return {name: text for name, text in self.refused.items() if name not in self._older}

    def ask(self, name: str, *args: Any, what: str = "") -> Any:
        """What the function says of the device; None where it does not say. ``what`` tells calls of one function
        apart. Raises LostError and DisconnectedError.
        """
        key = f"{name}({what})" if what else name
        if not self.wants(key):
            return None
        try:
            said = self.nvml.call(name, self.handle, *args)
        except (LostError, DisconnectedError):
            raise
        except NvmlError as error:
            self.failed(key, error.code, str(error))
            return None
        self.refused.pop(key, None)
        return said

    def first(self, name: str, older: str, *args: Any) -> Any:
        """What the function says; where the driver lacks it, what the one says whose place it took."""
        said = self.ask(name, *args)
        self._older.discard(name)
        if said is None and self.refused.get(name) == self.nvml.text(FUNCTION_NOT_FOUND):
            said = self.ask(older, *args)
            if said is not None:
                self._older.add(name)
        return said

    def wants(self, key: str) -> bool:
        return self.again or key not in self.refused

    def failed(self, key: str, code: int, text: str) -> None:
        if code in _REFUSALS:
            self.refused[key] = text
