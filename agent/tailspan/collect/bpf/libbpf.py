"""A thin ctypes binding to ``libbpf.so.1``: open, knobs, load, attach, maps. Typed, and without policy."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from ctypes import POINTER, byref, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from tailspan.collect.bpf.btf import Btf
from tailspan.errors import CannotError, ProbeError

MAP_TYPE_RINGBUF = 27
# include/uapi/linux/bpf.h
_LINK_CREATE = 28
_TRACE_UPROBE_MULTI = 48
_F_UPROBE_MULTI_RETURN = 1
_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}

_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_SIGNATURES: dict[str, tuple[Any, ...]] = {  # name: (result, arguments...)
    "libbpf_set_print": (c_void_p, _PRINT),
    "bpf_object__open_file": (c_void_p, c_char_p, c_void_p),
    "bpf_object__load": (c_int, c_void_p),
    "bpf_object__close": (None, c_void_p),
    "bpf_object__btf": (c_void_p, c_void_p),
    "btf__raw_data": (c_void_p, c_void_p, POINTER(c_uint32)),
    "bpf_object__find_program_by_name": (c_void_p, c_void_p, c_char_p),
    "bpf_object__find_map_by_name": (c_void_p, c_void_p, c_char_p),
    "bpf_object__next_map": (c_void_p, c_void_p, c_void_p),
    "bpf_program__set_autoload": (c_int, c_void_p, c_bool),
    "bpf_program__fd": (c_int, c_void_p),
    "bpf_program__attach": (c_void_p, c_void_p),
    "bpf_program__attach_uprobe_opts": (c_void_p, c_void_p, c_int, c_char_p, c_size_t, c_void_p),
    "bpf_program__set_expected_attach_type": (c_int, c_void_p, c_int),
    "bpf_link__fd": (c_int, c_void_p),
    "bpf_link__destroy": (c_int, c_void_p),
    "bpf_iter_create": (c_int, c_int),
    "bpf_map__fd": (c_int, c_void_p),
    "bpf_map__name": (c_char_p, c_void_p),
    "bpf_map__set_max_entries": (c_int, c_void_p, c_uint32),
    "bpf_map__initial_value": (c_void_p, c_void_p, POINTER(c_size_t)),
    "bpf_map_create": (c_int, c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p),
    "bpf_map_update_elem": (c_int, c_int, c_void_p, c_void_p, c_uint64),
    "bpf_map_update_batch": (c_int, c_int, c_void_p, c_void_p, POINTER(c_uint32), c_void_p),
    "bpf_map_lookup_elem": (c_int, c_int, c_void_p, c_void_p),
    "bpf_map_delete_elem": (c_int, c_int, c_void_p),
    "bpf_map_get_next_key": (c_int, c_int, c_void_p, c_void_p),
    "libbpf_num_possible_cpus": (c_int,),
}


class _Library:
    """The loaded library; what it says goes to ``messages``, bounded, because a verifier log is long."""

    def __init__(self) -> None:
        try:
            self.dll = ctypes.CDLL("libbpf.so.1", use_errno=True)
        except OSError:
            raise CannotError("libbpf.so.1 is not installed: apt-get install libbpf1") from None
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(self.dll, name)
            function.restype, function.argtypes = result, arguments
        self.messages: list[str] = []
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.syscall = self._libc.syscall
        self._libc.vsnprintf.argtypes = (c_char_p, c_size_t, c_char_p, c_void_p)
        self._print = _PRINT(self._keep)  # held here: libbpf keeps the bare pointer
        self.dll.libbpf_set_print(self._print)

    def _keep(self, level: int, format_: bytes, arguments: int) -> int:
        if level < 2:  # LIBBPF_WARN, LIBBPF_INFO
            buffer = ctypes.create_string_buffer(1 << 16)
            self._libc.vsnprintf(buffer, len(buffer), format_, arguments)
            self.messages.append(buffer.value.decode(errors="replace").strip())
            del self.messages[:-200]
        return 0


_library: _Library | None = None


def library() -> _Library:
    global _library
    if _library is None:
        _library = _Library()
    return _library


def possible_cpus() -> int:
    return int(library().dll.libbpf_num_possible_cpus())


class Map:
    """One BPF map by its fd. Keys and values are bytes."""

    def __init__(self, fd: int, value_size: int = 0) -> None:
        self.fd, self.value_size = fd, value_size

    def update(self, key: bytes, value: bytes) -> None:
        if library().dll.bpf_map_update_elem(self.fd, key, value, 0):
            raise ProbeError(f"map update: {os.strerror(ctypes.get_errno())}")

    def update_all(self, keys: bytes, values: bytes, count: int) -> None:
        """``count`` keys and values, packed. A map of maps waits for an RCU grace period a call: so one call."""
        done = c_uint32(count)
        if library().dll.bpf_map_update_batch(self.fd, keys, values, byref(done), None):
            key_size, value_size = len(keys) // count, len(values) // count
            for i in range(count):  # a kernel without batches for this type of map
                self.update(keys[i * key_size :][:key_size], values[i * value_size :][:value_size])

    def lookup(self, key: bytes, size: int) -> bytes | None:
        """``size`` bytes of the value; for per-CPU maps the size of all CPUs' values. None: no such key."""
        value = ctypes.create_string_buffer(size)
        if library().dll.bpf_map_lookup_elem(self.fd, key, value):
            return None
        return value.raw

    def delete(self, key: bytes) -> bool:
        return not library().dll.bpf_map_delete_elem(self.fd, key)

    def keys(self, size: int) -> list[bytes]:
        found: list[bytes] = []
        key, following = None, ctypes.create_string_buffer(size)
        while not library().dll.bpf_map_get_next_key(self.fd, key, following):
            key = following.raw
            found.append(key)
        return found


def create_ring(size: int) -> int:
    """A ring buffer map of ``size`` bytes (a power of two, at least a page); returns its fd."""
    fd = int(library().dll.bpf_map_create(MAP_TYPE_RINGBUF, b"tailspan_ring", 0, 0, size, None))
    if fd < 0:
        raise ProbeError(f"cannot create a ring buffer of {size} bytes: {os.strerror(-fd)}")
    return fd


class Link:
    """An attached program; detached by :meth:`close`."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    @property
    def fd(self) -> int:
        return int(library().dll.bpf_link__fd(self._pointer))

    def close(self) -> None:
        if self._pointer:
            library().dll.bpf_link__destroy(self._pointer)
            self._pointer = 0

    def read_iterator(self) -> bytes:
        """Run an attached iterator program once; everything it wrote."""
        fd = int(library().dll.bpf_iter_create(self.fd))
        if fd < 0:
            raise ProbeError(f"cannot run the task iterator: {os.strerror(-fd)}")
        try:
            chunks = []
            while chunk := os.read(fd, 1 << 16):
                chunks.append(chunk)
            return b"".join(chunks)
        finally:
            os.close(fd)


class Uprobes:
    """One program on some functions of one file, in one process; taken off by :meth:`close`."""

    def __init__(self, fds: list[int], links: list[int], count: int) -> None:
        self._fds, self._links, self.count = fds, links, count

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        for link in self._links:
            library().dll.bpf_link__destroy(link)
        self._fds, self._links = [], []


class _UprobeOptions(ctypes.Structure):
    """struct bpf_uprobe_opts of libbpf.h"""

    _fields_ = (
        ("sz", c_size_t),
        ("ref_ctr_offset", c_size_t),
        ("bpf_cookie", c_uint64),
        ("retprobe", c_bool),
        ("func_name", c_char_p),
    )


class BpfObject:
    """An object file: opened, then adjusted, then loaded once."""

    def __init__(self, path: Path) -> None:
        self._dll = library().dll
        self._pointer = self._dll.bpf_object__open_file(str(path).encode(), None)
        if not self._pointer:
            code = ctypes.get_errno()
            hint = ": build it with 'make bpf'" if code == errno.ENOENT else ""
            raise ProbeError(f"cannot open BPF object {path}: {os.strerror(code)}{hint}")

    def close(self) -> None:
        if self._pointer:
            self._dll.bpf_object__close(self._pointer)
            self._pointer = 0

    def set_knob(self, name: str, value: int | bytes) -> None:
        """Set a ``const volatile`` variable before loading; an array is given as its bytes."""
        size = c_uint32()
        raw = self._dll.btf__raw_data(self._dll.bpf_object__btf(self._pointer), byref(size))
        offset, width = Btf(ctypes.string_at(raw, size.value)).variables(".rodata")[name]
        map_pointer = None
        while map_pointer := self._dll.bpf_object__next_map(self._pointer, map_pointer):
            if self._dll.bpf_map__name(map_pointer).endswith(b".rodata"):
                length = c_size_t()
                start = self._dll.bpf_map__initial_value(map_pointer, byref(length))
                raw_value = value if isinstance(value, bytes) else value.to_bytes(width, "little")
                assert len(raw_value) == width, name
                ctypes.memmove(start + offset, raw_value, width)
                return
        raise ProbeError("the BPF object has no .rodata")

    def set_max_entries(self, name: str, entries: int) -> None:
        self._dll.bpf_map__set_max_entries(self._map(name), entries)

    def skip_program(self, name: str) -> None:
        self._dll.bpf_program__set_autoload(self._program(name), False)

    def load(self) -> None:
        """Raises :class:`ProbeError`; what libbpf said is in ``library().messages``."""
        library().messages.clear()
        result = self._dll.bpf_object__load(self._pointer)
        if result:
            raise ProbeError(f"cannot load the BPF object: {os.strerror(-result)}")

    def map(self, name: str) -> Map:
        return Map(int(self._dll.bpf_map__fd(self._map(name))))

    def program_fd(self, name: str) -> int:
        return int(self._dll.bpf_program__fd(self._program(name)))

    def attach(self, name: str) -> Link:
        pointer = self._dll.bpf_program__attach(self._program(name))
        if not pointer:
            raise ProbeError(f"cannot attach {name}: {os.strerror(ctypes.get_errno())}")
        return Link(pointer)

    def use_uprobe_multi(self, name: str) -> None:
        """Before loading: the program is to be attached with :meth:`attach_uprobes`, ``multi``."""
        self._dll.bpf_program__set_expected_attach_type(self._program(name), _TRACE_UPROBE_MULTI)

    def attach_uprobes(
        self, name: str, pid: int, path: Path, sites: list[tuple[int, int]], returns: bool, multi: bool
    ) -> Uprobes:
        """On each (offset in the file, cookie), in one process. ``returns``: when the function returns.

        ``multi``: one link for all of them (since 6.6), which CAP_BPF and CAP_PERFMON suffice for; else a perf
        event each, which wants CAP_SYS_ADMIN.
        """
        if multi:
            fd = self._uprobe_multi(name, pid, path, sites, returns)
            if fd < 0:
                raise ProbeError(f"uprobes: {os.strerror(-fd)}")
            return Uprobes([fd], [], len(sites))
        uprobes = Uprobes([], [], len(sites))
        for offset, cookie in sites:
            options = _UprobeOptions(ctypes.sizeof(_UprobeOptions), 0, cookie, returns, None)
            link = self._dll.bpf_program__attach_uprobe_opts(
                self._program(name), pid, str(path).encode(), offset, byref(options)
            )
            if not link:
                uprobes.close()
                raise ProbeError(f"uprobe: {os.strerror(ctypes.get_errno())}")
            uprobes._links.append(link)
        return uprobes

    def uprobe_multi_takes_processes(self, name: str) -> bool:
        """Whether its pid means a process. Kernels before 6.10 took it for one thread, and saw no other.

        Told apart as libbpf does: only the later ones look at the pid before they look at the path.
        """
        return self._uprobe_multi(name, -1, Path("/"), [(0, 0)], False) == -errno.EINVAL

    def _uprobe_multi(self, name: str, pid: int, path: Path, sites: list[tuple[int, int]], returns: bool) -> int:
        """The link's descriptor, or -errno. BPF_LINK_CREATE of bpf(2); libbpf has a function for it since 1.3."""
        where = ctypes.create_string_buffer(str(path).encode())
        offsets = (c_uint64 * len(sites))(*(offset for offset, _ in sites))
        cookies = (c_uint64 * len(sites))(*(cookie for _, cookie in sites))
        attribute = struct.pack(
            "<4I4Q2Ii4x",
            *(self.program_fd(name), 0, _TRACE_UPROBE_MULTI, 0),
            *(ctypes.addressof(where), ctypes.addressof(offsets), 0, ctypes.addressof(cookies)),
            *(len(sites), _F_UPROBE_MULTI_RETURN if returns else 0, pid),
        )
        fd = int(library().syscall(_BPF_SYSCALL[platform.machine()], _LINK_CREATE, attribute, len(attribute)))
        return fd if fd >= 0 else -ctypes.get_errno()

    def _map(self, name: str) -> int:
        pointer = self._dll.bpf_object__find_map_by_name(self._pointer, name.encode())
        if not pointer:
            raise ProbeError(f"the BPF object has no map {name}")
        return int(pointer)

    def _program(self, name: str) -> int:
        pointer = self._dll.bpf_object__find_program_by_name(self._pointer, name.encode())
        if not pointer:
            raise ProbeError(f"the BPF object has no program {name}")
        return int(pointer)
