"""A thin ctypes binding to ``libbpf.so.1``: open, knobs, load, attach, maps. Typed, and without policy."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from ctypes import (
    POINTER,
    byref,
    c_bool,
    c_char_p,
    c_int,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
    create_string_buffer,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailspan.collect.bpf.btf import Btf
from tailspan.errors import CannotError, ProbeError

# include/uapi/linux/bpf.h
MAP_TYPE_HASH, MAP_TYPE_ARRAY, MAP_TYPE_ARRAY_OF_MAPS = 1, 2, 12
MAP_TYPE_SK_STORAGE, MAP_TYPE_RINGBUF, MAP_TYPE_TASK_STORAGE = 24, 27, 29
PROGRAM_KPROBE, PROGRAM_RAW_TRACEPOINT = 2, 17
_LINK_CREATE = 28
_TRACE_UPROBE_MULTI = 48
_F_UPROBE_MULTI_RETURN = 1
BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
#: What the verifier says of one program, at most.
_LOG_SIZE = 1 << 20
#: Keys that are read at once: no bucket of a hash table has as many.
_BATCH = 512

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
    "bpf_map__is_internal": (c_bool, c_void_p),
    "bpf_map__type": (c_int, c_void_p),
    "bpf_map__key_size": (c_uint32, c_void_p),
    "bpf_map__value_size": (c_uint32, c_void_p),
    "bpf_map__max_entries": (c_uint32, c_void_p),
    "bpf_map__map_flags": (c_uint32, c_void_p),
    "bpf_map__set_max_entries": (c_int, c_void_p, c_uint32),
    "bpf_map__initial_value": (c_void_p, c_void_p, POINTER(c_size_t)),
    "bpf_map_create": (c_int, c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p),
    "bpf_map_update_elem": (c_int, c_int, c_void_p, c_void_p, c_uint64),
    "bpf_map_update_batch": (c_int, c_int, c_void_p, c_void_p, POINTER(c_uint32), c_void_p),
    "bpf_map_lookup_elem": (c_int, c_int, c_void_p, c_void_p),
    "bpf_map_lookup_batch": (c_int, c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), c_void_p),
    "bpf_map_delete_elem": (c_int, c_int, c_void_p),
    "bpf_map_get_next_key": (c_int, c_int, c_void_p, c_void_p),
    "bpf_prog_load": (c_int, c_int, c_char_p, c_char_p, c_void_p, c_size_t, c_void_p),
    "bpf_prog_test_run_opts": (c_int, c_int, c_void_p),
    "bpf_raw_tracepoint_open": (c_int, c_char_p, c_int),
    "bpf_enable_stats": (c_int, c_int),
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

    @contextlib.contextmanager
    def unheard(self) -> Iterator[None]:
        """Nothing that it says is kept meanwhile. To hear it, the interpreter has to be had for each of thousands
        of messages, most of which are not kept either."""
        self.dll.libbpf_set_print(_PRINT())
        try:
            yield
        finally:
            self.dll.libbpf_set_print(self._print)

    def _keep(self, level: int, format_: bytes, arguments: int) -> int:
        if level < 2:  # LIBBPF_WARN, LIBBPF_INFO
            buffer = create_string_buffer(1 << 16)
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
        value = create_string_buffer(size)
        if library().dll.bpf_map_lookup_elem(self.fd, key, value):
            return None
        return value.raw

    def delete(self, key: bytes) -> bool:
        return not library().dll.bpf_map_delete_elem(self.fd, key)

    def keys(self, size: int) -> list[bytes]:
        found: list[bytes] = []
        key, following = None, create_string_buffer(size)
        while not library().dll.bpf_map_get_next_key(self.fd, key, following):
            key = following.raw
            found.append(key)
        return found

    def all_keys(self, key_size: int, value_size: int) -> bytes:
        """Every key of a hash table, packed. In batches, since :meth:`keys` begins anew when one is deleted."""
        keys, values = create_string_buffer(_BATCH * key_size), create_string_buffer(_BATCH * value_size)
        place, found, at = c_uint64(), [], None
        while True:
            count = c_uint32(_BATCH)
            code = library().dll.bpf_map_lookup_batch(self.fd, at, byref(place), keys, values, byref(count), None)
            if code not in (0, -errno.ENOENT):
                raise ProbeError(f"map read: {os.strerror(-code)}")
            found.append(keys.raw[: count.value * key_size])
            if code:
                return b"".join(found)
            at = byref(place)


@dataclass(frozen=True, slots=True)
class MapShape:
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


class _MapOptions(ctypes.Structure):
    """The first of struct bpf_map_create_opts of bpf.h"""

    _fields_ = (
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
    )


def create_map(name: str, shape: MapShape, inner_fd: int = 0) -> int:
    """Returns its fd. ``inner_fd``: for a map of maps, one of those it will hold."""
    options = _MapOptions(ctypes.sizeof(_MapOptions), inner_map_fd=inner_fd, map_flags=shape.flags)
    sizes = (shape.key_size, shape.value_size, shape.max_entries)
    fd = int(library().dll.bpf_map_create(shape.type, name.encode()[:15], *sizes, byref(options)))
    if fd < 0:
        raise ProbeError(f"cannot create map {name}: {os.strerror(-fd)}")
    return fd


def clear(map_: Map, shape: MapShape) -> None:
    """Zero an array, empty a table. What is stored with its owner stays: a walk takes that."""
    if shape.type == MAP_TYPE_ARRAY:
        keys = struct.pack(f"<{shape.max_entries}I", *range(shape.max_entries))
        map_.update_all(keys, bytes(shape.value_size * shape.max_entries), shape.max_entries)
    elif shape.type not in (MAP_TYPE_TASK_STORAGE, MAP_TYPE_SK_STORAGE):
        for key in map_.keys(shape.key_size):
            map_.delete(key)


def enable_statistics() -> int:
    """The kernel counts how long each program runs while the descriptor that this returns is open (since 5.8).

    Raises :class:`ProbeError`, as without CAP_SYS_ADMIN.
    """
    fd = int(library().dll.bpf_enable_stats(0))  # BPF_STATS_RUN_TIME
    if fd < 0:
        raise ProbeError(f"no statistics of BPF programs: {os.strerror(-fd)}")
    return fd


def create_ring(size: int) -> int:
    """A ring buffer map of ``size`` bytes (a power of two, at least a page); returns its fd."""
    return create_map("tailspan_ring", MapShape(MAP_TYPE_RINGBUF, 0, 0, size))


class _ProgramOptions(ctypes.Structure):
    """The first of struct bpf_prog_load_opts of bpf.h"""

    _fields_ = (
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_int),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
        ("attach_btf_obj_fd", c_uint32),
        ("fd_array", c_void_p),
        ("func_info", c_void_p),
        ("func_info_cnt", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("line_info", c_void_p),
        ("line_info_cnt", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_char_p),
    )


def load_program(name: str, type_: int, instructions: bytes, multi: bool = False) -> int:
    """Returns its fd. ``multi``: it will be attached by :func:`link_uprobes`.

    Raises :class:`ProbeError`; what the verifier said is in ``library().messages``, as libbpf says it.
    """
    load = library().dll.bpf_prog_load
    options = _ProgramOptions(ctypes.sizeof(_ProgramOptions), 5, _TRACE_UPROBE_MULTI if multi else 0)
    given = (type_, name.encode()[:15], b"GPL", instructions, len(instructions) // 8, byref(options))
    fd = int(load(*given))
    if fd >= 0:
        return fd
    log = create_string_buffer(_LOG_SIZE)
    options.log_level, options.log_size, options.log_buf = 1, _LOG_SIZE, ctypes.cast(log, c_char_p)
    load(*given)
    said = log.value.decode(errors="replace")
    library().messages.append(f"prog '{name}': BPF program load failed: {os.strerror(-fd)}\n{said}")
    raise ProbeError(f"cannot load program {name}: {os.strerror(-fd)}")


class _RunOptions(ctypes.Structure):
    """struct bpf_test_run_opts of bpf.h"""

    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


def run_program(fd: int) -> int:
    """Run a raw tracepoint's program once, here and now (since 5.10); what it returned."""
    options = _RunOptions(ctypes.sizeof(_RunOptions))
    code = library().dll.bpf_prog_test_run_opts(fd, byref(options))
    if code:
        raise ProbeError(f"cannot run a program: {os.strerror(-code)}")
    return int(options.retval)


class Tracepoint:
    """A program on a raw tracepoint; taken off by :meth:`close`."""

    def __init__(self, event: str, program_fd: int) -> None:
        self._fd = int(library().dll.bpf_raw_tracepoint_open(event.encode(), program_fd))
        if self._fd < 0:
            raise ProbeError(f"cannot attach to {event}: {os.strerror(-self._fd)}")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read_iterator(self) -> bytes:
        raise ProbeError("a tracepoint cannot be read")


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


def link_uprobes(program_fd: int, pid: int, path: Path, sites: list[tuple[int, int]], returns: bool) -> Uprobes:
    """One link (since 6.6) for all (offset in the file, cookie), in one process. ``returns``: as they return."""
    fd = _link_uprobes(program_fd, pid, path, sites, returns)
    if fd < 0:
        raise ProbeError(f"uprobes: {os.strerror(-fd)}")
    return Uprobes([fd], [], len(sites))


def uprobe_multi_takes_processes(program_fd: int) -> bool:
    """Whether its pid means a process. Kernels before 6.10 took it for one thread, and saw no other.

    Told apart as libbpf does: only the later ones look at the pid before they look at the path.
    """
    return _link_uprobes(program_fd, -1, Path("/"), [(0, 0)], False) == -errno.EINVAL


def _link_uprobes(program_fd: int, pid: int, path: Path, sites: list[tuple[int, int]], returns: bool) -> int:
    """The link's descriptor, or -errno. BPF_LINK_CREATE of bpf(2); libbpf has a function for it since 1.3."""
    where = create_string_buffer(str(path).encode())
    offsets = (c_uint64 * len(sites))(*(offset for offset, _ in sites))
    cookies = (c_uint64 * len(sites))(*(cookie for _, cookie in sites))
    attribute = struct.pack(
        "<4I4Q2Ii4x",
        *(program_fd, 0, _TRACE_UPROBE_MULTI, 0),
        *(ctypes.addressof(where), ctypes.addressof(offsets), 0, ctypes.addressof(cookies)),
        *(len(sites), _F_UPROBE_MULTI_RETURN if returns else 0, pid),
    )
    fd = int(library().syscall(BPF_SYSCALL[platform.machine()], _LINK_CREATE, attribute, len(attribute)))
    return fd if fd >= 0 else -ctypes.get_errno()


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

    remarks: tuple[str, ...] = ()

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

    def shapes(self) -> dict[str, MapShape]:
        """Every map that the programs name, as it would be created."""
        dll, found, pointer = self._dll, {}, None
        while pointer := dll.bpf_object__next_map(self._pointer, pointer):
            if not dll.bpf_map__is_internal(pointer):
                found[dll.bpf_map__name(pointer).decode()] = MapShape(
                    int(dll.bpf_map__type(pointer)),
                    int(dll.bpf_map__key_size(pointer)),
                    int(dll.bpf_map__value_size(pointer)),
                    int(dll.bpf_map__max_entries(pointer)),
                    int(dll.bpf_map__map_flags(pointer)),
                )
        return found

    def clear(self, name: str) -> None:
        """Make of a map what it was when it was loaded, but for what is stored with its owner."""
        shape = self.shapes().get(name)
        if shape:
            clear(self.map(name), shape)

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
            return link_uprobes(self.program_fd(name), pid, path, sites, returns)
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
        return uprobe_multi_takes_processes(self.program_fd(name))

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
