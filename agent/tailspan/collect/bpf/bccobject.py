"""The programs of ``bpf/`` as bcc compiles them on this host: what :class:`libbpf.BpfObject` does, without BTF.

Maps are those that the compiled object names, made by us; what goes with a task or a socket there lies in hash
tables here. Iterators are programs that are run for the tasks in ``/proc`` and in those tables (bpf/walk.bcc.h).
"""

from __future__ import annotations

import os
import platform
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from tailspan.collect.bpf import libbpf
from tailspan.collect.bpf.compiler import Compiled, compile_programs, default_knobs
from tailspan.collect.bpf.libbpf import Map, MapShape, Tracepoint, Uprobes
from tailspan.collect.bpf.ring import Ring, drain
from tailspan.errors import ProbeError
from tailspan.wire.events import SOCKET_OWNER, THREAD_STATE

#: Threads that are followed at a time, and TCP sockets of theirs; more is counted as lost. 8 and 3 MB.
_MAX_OWNERS = 16384
#: Of bpf/walk.bcc.h.
_MAX_ASKED, _TASKS_AT_ONCE = 4096, 8
#: What many runs of an iterator write before it is read.
_ANSWERS_BYTES = 1 << 16
_RUNS_PER_READ = 32

_STORAGES = (libbpf.MAP_TYPE_TASK_STORAGE, libbpf.MAP_TYPE_SK_STORAGE)
#: Maps of this loader alone.
_OWN_MAPS = {
    "nothing": MapShape(libbpf.MAP_TYPE_ARRAY, 4, 1024, 1),
    "registers_at": MapShape(libbpf.MAP_TYPE_ARRAY, 4, 8, 1),
    "asked_for": MapShape(libbpf.MAP_TYPE_ARRAY, 4, 16 + 8 * _MAX_ASKED, 1),
    "answers": MapShape(libbpf.MAP_TYPE_RINGBUF, 0, 0, _ANSWERS_BYTES),
    "listeners": MapShape(libbpf.MAP_TYPE_HASH, 32, 8, 4096),
}
_BYTES, _KNOBS = "call_shapes", "knobs"
#: Distance of user space's registers from the bottom of a kernel stack, without their size: the stack's, less what
#: lies above them. What is right is tried: headers made from BTF do not say.
_STACKS = [size - above for size in (1 << 14, 1 << 15, 1 << 16, 1 << 13) for above in (0, 16)]
#: arm64 has grown struct pt_regs twice.
_REGISTERS_SIZES = {"x86_64": (168,), "aarch64": (336, 320, 304, 352)}

_LEAVES = 3  #: enum target_kind of bpf/maps.bpf.h
_MAP_LOAD, _BY_NUMBER = 0x18, 1  #: opcode of a 64-bit constant; its source register says that it is a map


class BccObject:
    """As :class:`libbpf.BpfObject`; ``programs``: name -> what it attaches to, as in the catalogue of probes."""

    def __init__(self, path: Path, programs: Mapping[str, str], vmlinux: Path) -> None:
        named = libbpf.BpfObject(path)
        try:
            self._shapes = {name: _shape(shape) for name, shape in named.shapes().items()} | _OWN_MAPS
        finally:
            named.close()
        self._programs = dict(programs)
        self._vmlinux = vmlinux
        self._knobs = default_knobs()
        self._shapes[_KNOBS] = MapShape(libbpf.MAP_TYPE_ARRAY, 4, 8, len(self._knobs))
        self._bytes = b""
        self._multi: set[str] = set()
        self._skipped: set[str] = set()
        self._map_fds: dict[str, int] = {}
        self._program_fds: dict[str, int] = {}
        self._walking = threading.Lock()
        self.remarks: tuple[str, ...] = ()

    def close(self) -> None:
        for fd in (*self._program_fds.values(), *self._map_fds.values()):
            os.close(fd)
        self._program_fds.clear()
        self._map_fds.clear()

    def set_knob(self, name: str, value: int | bytes) -> None:
        if isinstance(value, bytes):
            assert name == _BYTES, name
            self._bytes = value
            self._shapes[name] = MapShape(libbpf.MAP_TYPE_ARRAY, 4, 1, len(value))
        else:
            assert name in self._knobs, name
            self._knobs[name] = value

    def set_max_entries(self, name: str, entries: int) -> None:
        shape = self._shapes[name]
        self._shapes[name] = MapShape(shape.type, shape.key_size, shape.value_size, entries, shape.flags)

    def skip_program(self, name: str) -> None:
        self._skipped.add(name)

    def use_uprobe_multi(self, name: str) -> None:
        self._multi.add(name)

    def load(self) -> None:
        libbpf.library().messages.clear()
        numbers = {name: number for number, name in enumerate(self._shapes, 1)}
        names = (*self._programs, "find_registers")
        compiled = compile_programs(names, numbers, self._vmlinux)
        self.remarks = (compiled.why, *compiled.lacks)
        self._make_maps()
        fds = {number: self._map_fds[name] for name, number in numbers.items()}
        for name in names:
            if name not in self._skipped:
                self._load_program(name, compiled, fds)
        self._find_registers()

    def map(self, name: str) -> Map:
        return Map(self._map_fds[name])

    def clear(self, name: str) -> None:
        """As :meth:`libbpf.BpfObject.clear`; what goes with a task or a socket lies in tables here, and goes."""
        libbpf.clear(self.map(name), self._shapes[name])

    def program_fd(self, name: str) -> int:
        return self._program_fds[name]

    def attach(self, name: str) -> Tracepoint | Walk:
        needs = self._programs[name]
        if needs.startswith("btf_trace_"):
            return Tracepoint(needs.removeprefix("btf_trace_"), self._program_fds[name])
        return {
            "iter_threads": lambda: Walk(self._threads),
            "iter_sockets": lambda: Walk(self._sockets),
            "iter_processes": lambda: Walk(lambda: self._ask(name, _processes(), SOCKET_OWNER)),
            "iter_owners": lambda: Walk(lambda: self._ask_files(name, _processes())),
        }[name]()

    def attach_uprobes(
        self, name: str, pid: int, path: Path, sites: list[tuple[int, int]], returns: bool, multi: bool
    ) -> Uprobes:
        if not multi:
            raise ProbeError("uprobes of several processes need kernel 6.10, or the core loader")
        return libbpf.link_uprobes(self._program_fds[name], pid, path, sites, returns)

    def uprobe_multi_takes_processes(self, name: str) -> bool:
        return libbpf.uprobe_multi_takes_processes(self._program_fds[name])

    def _make_maps(self) -> None:
        for name, shape in self._shapes.items():
            if shape.type == libbpf.MAP_TYPE_ARRAY_OF_MAPS:
                pattern = libbpf.create_ring(4096)
                try:
                    self._map_fds[name] = libbpf.create_map(name, shape, pattern)
                finally:
                    os.close(pattern)
            else:
                self._map_fds[name] = libbpf.create_map(name, shape)
        self._fill(_BYTES, [bytes([byte]) for byte in self._bytes])
        self._fill(_KNOBS, [struct.pack("<Q", value) for value in self._knobs.values()])

    def _fill(self, name: str, values: list[bytes]) -> None:
        self.map(name).update_all(
            struct.pack(f"<{len(values)}I", *range(len(values))), b"".join(values), len(values)
        )

    def _load_program(self, name: str, compiled: Compiled, fds: Mapping[int, int]) -> None:
        needs = self._programs.get(name, "")
        type_ = libbpf.PROGRAM_KPROBE if needs == "trace_uprobe" else libbpf.PROGRAM_RAW_TRACEPOINT
        code = with_maps(compiled.programs[name], fds)
        self._program_fds[name] = libbpf.load_program(name, type_, code, name in self._multi)

    def _find_registers(self) -> None:
        machine = platform.machine()
        for size in _REGISTERS_SIZES[machine]:
            for stack in _STACKS:
                self.map("registers_at").update(bytes(4), struct.pack("<Q", stack - size))
                if libbpf.run_program(self._program_fds["find_registers"]) == libbpf.BPF_SYSCALL[machine]:
                    return
        raise ProbeError("it is not known where this kernel keeps the registers of user space")

    def _threads(self) -> bytes:
        """As iter_threads: adopt threads of targets, let go of those that leave, report all that are followed."""
        targets = self.map("targets")
        for key in targets.keys(4):
            kind = targets.lookup(key, 1)
            if kind and kind[0] != _LEAVES:
                self._ask("iter_threads", _threads_of(struct.unpack("<I", key)[0]), THREAD_STATE)
        follows = self.map("follows")
        tasks = np.frombuffer(follows.all_keys(8, self._shapes["follows"].value_size), np.uint64)
        return self._ask("iter_threads", tasks.tolist(), THREAD_STATE)

    def _sockets(self) -> bytes:
        """As iter_sockets, for what is followed and what leaves."""
        followed = np.unique(np.frombuffer(self._threads(), THREAD_STATE)["tgid"]).tolist()
        targets = [struct.unpack("<I", key)[0] for key in self.map("targets").keys(4)]
        return self._ask_files("iter_sockets", sorted({*followed, *targets}))

    def _ask(self, program: str, ids: list[int], dtype: np.dtype[np.void]) -> bytes:
        """Run an iterator for these tasks, by tid or by address; all that it writes."""

        def runs() -> Iterator[None]:
            for start in range(0, len(ids), _MAX_ASKED):
                asked = ids[start : start + _MAX_ASKED]
                self._ask_for(asked)
                for _ in range(0, len(asked), _TASKS_AT_ONCE):
                    libbpf.run_program(self._program_fds[program])
                    yield

        return self._answers(runs(), dtype)

    def _ask_files(self, program: str, tgids: list[int]) -> bytes:
        """Run an iterator for the open files of these processes."""

        def runs() -> Iterator[None]:
            for tgid in tgids:
                self._ask_for([tgid])
                while libbpf.run_program(self._program_fds[program]):
                    yield
                yield

        return self._answers(runs(), SOCKET_OWNER)

    def _ask_for(self, ids: list[int]) -> None:
        asked = np.zeros(2 + _MAX_ASKED, np.uint64)
        asked[1] = len(ids)
        asked[2 : 2 + len(ids)] = ids
        self.map("asked_for").update(bytes(4), asked.tobytes())

    def _answers(self, runs: Iterator[None], dtype: np.dtype[np.void]) -> bytes:
        """Run by run, and what they wrote. One walk at a time: there is one place to ask, and one to answer."""
        with self._walking:
            ring = Ring(os.dup(self._map_fds["answers"]), _ANSWERS_BYTES, dtype)
            try:
                parts = []
                for number, _ in enumerate(runs, 1):
                    if number % _RUNS_PER_READ == 0:
                        parts.append(drain([ring], dtype)[0].tobytes())
                parts.append(drain([ring], dtype)[0].tobytes())
                return b"".join(parts)
            finally:
                ring.close()


class Walk:
    """An iterator of the kind that :class:`libbpf.Link` is for BPF's own."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read

    def read_iterator(self) -> bytes:
        return self._read()

    def close(self) -> None:
        """Nothing is attached."""


def with_maps(code: bytes, fds: Mapping[int, int]) -> bytes:
    """Instructions in which each number of a map is its descriptor. Layout: struct bpf_insn of linux/bpf.h."""
    dtype = np.dtype([("code", "u1"), ("registers", "u1"), ("offset", "<i2"), ("value", "<i4")])
    instructions = np.frombuffer(code, dtype).copy()
    maps = (instructions["code"] == _MAP_LOAD) & (instructions["registers"] >> 4 == _BY_NUMBER)
    instructions["value"][maps] = [fds[number] for number in instructions["value"][maps].tolist()]
    return instructions.tobytes()


def _shape(shape: MapShape) -> MapShape:
    if shape.type in _STORAGES:
        return MapShape(libbpf.MAP_TYPE_HASH, 8, shape.value_size, _MAX_OWNERS)
    return shape


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _threads_of(tgid: int) -> list[int]:
    try:
        return [int(entry.name) for entry in Path(f"/proc/{tgid}/task").iterdir()]
    except OSError:  # it has ended
        return []
