"""Probes on the CUDA driver and runtime of processes: found in their maps, taken off where they cost too much.

They go into those processes only: nobody else on the host pays. The runtime calls the driver, and of calls within
calls the outermost is recorded, so both may be probed; launches are counted in the driver alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tailspan.collect.bpf.libbpf import Uprobes
from tailspan.collect.bpf.source import BpfSource
from tailspan.collect.elf import function_offsets, open_file
from tailspan.collect.host import character_majors
from tailspan.errors import CannotError, ProbeError
from tailspan.wire.events import GpuCallKind

logger = logging.getLogger(__name__)

#: How often a process is looked at again: until it has a library, and then for others that come later.
SOON_S, LATER_S = 2.0, 10.0
#: Processes that one poll looks at.
LOOKS_PER_POLL = 16
#: How long a kind that was too frequent is left alone, at first and at most.
OFF_S, MAX_OFF_S = 60.0, 3600.0
#: So many polls in a row a kind must be too frequent.
POLLS_TOO_MANY = 2
#: Why the libraries of a process are not found, and what it takes.
OTHERS_CLOSED = "processes of other users may not be looked into"
ROOT_CLOSED = "the files of another user's container may not be looked into"
MEND = "CAP_SYS_PTRACE"
#: Files whose functions are remembered.
MAX_FILES = 64
#: The kernel lets who takes a probe off wait some 50 ms. So many threads do; the agent's main thread never.
CLOSERS = 4

_SYNC, _COPY, _ALLOC = GpuCallKind.SYNC, GpuCallKind.COPY, GpuCallKind.ALLOC
_FREE, _LOAD, _LAUNCH = GpuCallKind.FREE, GpuCallKind.LOAD, GpuCallKind.LAUNCH

#: Function -> (kind, which argument is a number of bytes, from 1; 0: none). Names of cuda.h; ``_ptsz`` and
#: ``_ptds`` are those of programs that have a default stream for each thread.
DRIVER: dict[str, tuple[GpuCallKind, int]] = {
    **dict.fromkeys(("cuStreamSynchronize", "cuStreamSynchronize_ptsz", "cuEventSynchronize"), (_SYNC, 0)),
    **dict.fromkeys(("cuCtxSynchronize", "cuCtxSynchronize_v2"), (_SYNC, 0)),
    **dict.fromkeys(("cuMemcpy", "cuMemcpy_ptds", "cuMemcpyHtoD_v2", "cuMemcpyHtoD_v2_ptds"), (_COPY, 3)),
    **dict.fromkeys(("cuMemcpyDtoH_v2", "cuMemcpyDtoH_v2_ptds", "cuMemcpyDtoD_v2"), (_COPY, 3)),
    **dict.fromkeys(("cuMemAlloc_v2", "cuMemAllocManaged", "cuMemAllocHost_v2", "cuMemHostAlloc"), (_ALLOC, 2)),
    **dict.fromkeys(("cuMemAllocAsync", "cuMemAllocAsync_ptsz"), (_ALLOC, 2)),
    **dict.fromkeys(("cuMemAllocFromPoolAsync", "cuMemAllocFromPoolAsync_ptsz"), (_ALLOC, 2)),
    **dict.fromkeys(("cuMemCreate", "cuMemHostRegister_v2"), (_ALLOC, 2)),
    "cuMemAllocPitch_v2": (_ALLOC, 0),
    **dict.fromkeys(("cuMemFree_v2", "cuMemFreeHost", "cuMemFreeAsync", "cuMemFreeAsync_ptsz"), (_FREE, 0)),
    **dict.fromkeys(("cuMemRelease", "cuMemHostUnregister"), (_FREE, 0)),
    **dict.fromkeys(
        ("cuModuleLoad", "cuModuleLoadData", "cuModuleLoadDataEx", "cuModuleLoadFatBinary"), (_LOAD, 0)
    ),
    **dict.fromkeys(("cuLibraryLoadData", "cuLibraryLoadFromFile"), (_LOAD, 0)),
    **dict.fromkeys(
        ("cuLaunchKernel", "cuLaunchKernel_ptsz", "cuLaunchKernelEx", "cuLaunchKernelEx_ptsz"), (_LAUNCH, 0)
    ),
    **dict.fromkeys(("cuLaunchCooperativeKernel", "cuLaunchCooperativeKernel_ptsz"), (_LAUNCH, 0)),
    **dict.fromkeys(("cuGraphLaunch", "cuGraphLaunch_ptsz"), (_LAUNCH, 0)),
}
RUNTIME: dict[str, tuple[GpuCallKind, int]] = {
    **dict.fromkeys(("cudaStreamSynchronize", "cudaStreamSynchronize_ptsz", "cudaEventSynchronize"), (_SYNC, 0)),
    "cudaDeviceSynchronize": (_SYNC, 0),
    **dict.fromkeys(("cudaMemcpy", "cudaMemcpy_ptds"), (_COPY, 3)),
    **dict.fromkeys(("cudaMalloc", "cudaMallocManaged", "cudaMallocHost", "cudaHostAlloc"), (_ALLOC, 2)),
    **dict.fromkeys(("cudaFree", "cudaFreeHost"), (_FREE, 0)),
}

#: Files that may have the driver, and those that may have the runtime: of its own, or linked into them. The
#: program itself, which is mapped first, may have it whatever its name is.
_DRIVER_FILE = re.compile(r"/libcuda\.so[^/]*$")
_RUNTIME_FILE = re.compile(r"/(libcudart\.so|[^/]*(cuda|onnxruntime|tensorrt|nvinfer|torch|ggml))[^/]*$")
_MAPPED = re.compile(r"^\S+ ..x. \S+ (\S+) (\d+) +(/.*)$", re.MULTILINE)

File = tuple[str, int]  #: device and inode, as /proc/PID/maps has them

#: First bytes of instructions that the kernel emulates under a probe (arch/x86/kernel/uprobes.c): push, nop, call,
#: jmp. Any other is single-stepped: another trap, some microseconds, and ten times that in some virtual machines.
_EMULATED = re.compile(rb"\x41?[\x50-\x57]|\x90|\x66*\x0f\x1f|[\xe8\xe9\xeb]", re.DOTALL)
#: What is single-stepped may be called so much less often.
DEARER = 10


@dataclass(frozen=True, slots=True)
class _Places:
    """Of one file: where its functions are."""

    sites: Mapping[GpuCallKind, list[tuple[int, int]]]  #: (offset in the file, cookie)
    stepped: frozenset[GpuCallKind]  #: kinds of which one at least is single-stepped


@dataclass(frozen=True, slots=True)
class CudaStatus:
    processes: int  #: that have a library with probes in it
    attached: int  #: functions, in all processes
    off: Mapping[str, int]  #: kind -> processes in which it was too frequent and is left alone
    hits: Mapping[str, int]  #: kind -> calls in all; never goes back
    errors: Mapping[str, int]  #: why a file or process could not be probed -> how often


@dataclass(slots=True)
class _Process:
    born: str  #: start time, as /proc/PID/stat has it: who is given the number next is another one
    due_s: float = 0.0
    refused: str = ""  #: why we may not look into it
    files: dict[File, str] = field(default_factory=dict)  #: path as the process has it
    probes: dict[tuple[File, GpuCallKind], list[Uprobes]] = field(default_factory=dict)
    counts: dict[GpuCallKind, int] = field(default_factory=dict)
    too_many: Counter[GpuCallKind] = field(default_factory=Counter)
    stepped: set[GpuCallKind] = field(default_factory=set)
    off_until_s: dict[GpuCallKind, float] = field(default_factory=dict)
    pause_s: dict[GpuCallKind, float] = field(default_factory=dict)  #: the last one of each kind


def _close(probes: list[Uprobes]) -> None:
    for each in probes:
        each.close()


def _telling(path: str) -> bool:
    return bool(_DRIVER_FILE.search(path) or _RUNTIME_FILE.search(path))


def _hidden(tgid: int) -> bool:
    """It is there, and /proc does not show it."""
    try:
        os.kill(tgid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return not Path(f"/proc/{tgid}").exists()
    return False


def _open(tgid: int, file: File, path: str) -> int:
    """A descriptor of what the process has mapped. Where its root is closed to us: of ours, if it is the same."""
    with contextlib.suppress(PermissionError):
        return open_file(Path(f"/proc/{tgid}/root{path}"))
    with contextlib.suppress(FileNotFoundError):
        descriptor = open_file(Path(path))
        about = os.fstat(descriptor)
        if (f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}", about.st_ino) == file:
            return descriptor
        os.close(descriptor)
    raise PermissionError


class CudaProbes:
    """Does nothing where the probe ``gpu`` is not to be had.

    ``calls_per_s``: of one kind in one process; a tenth of it where the kernel has to single-step.
    """

    def __init__(self, source: BpfSource, calls_per_s: int = 10_000) -> None:
        self._source = source
        self._calls_per_s = calls_per_s
        self._processes: dict[int, _Process] = {}
        self._places: dict[tuple[object, ...], _Places] = {}
        self._closers = ThreadPoolExecutor(CLOSERS, "cuda-probes")
        self._hits: Counter[str] = Counter({kind.name.lower(): 0 for kind in GpuCallKind if kind.name != "COUNT"})
        self._errors: Counter[str] = Counter()
        self._polled_s = time.monotonic()

    def poll(self, tgids: Iterable[int]) -> None:
        """Look for libraries of these processes, count, and take off what is too frequent."""
        status = self._source.status["gpu"]
        if not status.attached:
            return
        wanted = set(tgids)
        for tgid in self._processes.keys() - wanted:
            self._forget(tgid)
        now = time.monotonic()
        self._count(max(now - self._polled_s, 1e-3), now)
        self._polled_s = now
        due = [tgid for tgid in wanted if tgid not in self._processes or self._processes[tgid].due_s <= now]
        for tgid in due[:LOOKS_PER_POLL]:
            self._look(tgid, now)
        status.why = next((process.refused for process in self._processes.values() if process.refused), "")
        status.mend = MEND if status.why else ""

    def status(self) -> CudaStatus:
        off = Counter(kind.name.lower() for process in self._processes.values() for kind in process.off_until_s)
        probed = [process for process in self._processes.values() if process.probes]
        attached = sum(probes[0].count for process in probed for probes in process.probes.values())
        return CudaStatus(len(probed), attached, dict(off), dict(self._hits), dict(self._errors))

    def lift(self) -> None:
        """Take all probes off; the next :meth:`poll` puts them back, but for those that were too frequent."""
        for process in self._processes.values():
            for probes in process.probes.values():
                self._closers.submit(_close, probes)
            process.probes.clear()
            process.files.clear()
            process.due_s = 0.0

    def close(self) -> None:
        for tgid in list(self._processes):
            self._forget(tgid)
        self._closers.shutdown()

    def _look(self, tgid: int, now: float) -> None:
        try:
            born = Path(f"/proc/{tgid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
            maps = Path(f"/proc/{tgid}/maps").read_text(errors="replace")
        except OSError as error:
            unread = self._processes.setdefault(tgid, _Process(""))
            unread.due_s = now + LATER_S
            if (isinstance(error, PermissionError) or _hidden(tgid)) and character_majors("nvidia"):
                self._refuse(unread, OTHERS_CLOSED)
            return
        process = self._processes.get(tgid)
        if process is None or process.born != born:
            self._forget(tgid)
            process = self._processes[tgid] = _Process(born)
        for at, (dev, inode, path) in enumerate(dict.fromkeys(_MAPPED.findall(maps))):
            file = (dev, int(inode))
            if (at == 0 or _telling(path)) and file not in process.files:
                process.files[file] = path
                self._probe(tgid, process, file, tuple(GpuCallKind)[: _LAUNCH + 1])
        process.due_s = now + (LATER_S if process.probes else SOON_S)

    def _probe(self, tgid: int, process: _Process, file: File, kinds: Iterable[GpuCallKind]) -> None:
        path = process.files[file]
        try:
            descriptor = _open(tgid, file, path)
        except PermissionError:
            if _telling(path):  # else it may be anything
                self._refuse(process, ROOT_CLOSED)
            return
        except OSError as error:
            self._fail(tgid, path, error.strerror or "unreadable")
            return
        try:
            places = self._places_of(descriptor, path)
            sites = places.sites
            process.stepped |= places.stepped
            for kind in kinds:
                if sites.get(kind) and kind not in process.off_until_s:
                    self._source.count_gpu_calls(tgid, kind)
                    # By descriptor: the file that the offsets are of, whatever has that name meanwhile.
                    here = Path(f"/proc/self/fd/{descriptor}")
                    process.probes[file, kind] = self._attach(kind, tgid, here, sites[kind])
        except (CannotError, ProbeError) as error:
            self._fail(tgid, path, str(error))
            return
        finally:
            os.close(descriptor)
        if sites:
            count = sum(map(len, sites.values()))
            logger.info("%d CUDA functions of %s are probed in pid %d", count, Path(path).name, tgid)

    def _places_of(self, descriptor: int, path: str) -> _Places:
        """Each place once: a function may have several names, and would be counted by each."""
        about = os.fstat(descriptor)
        wanted = DRIVER if _DRIVER_FILE.search(path) else RUNTIME
        # An inode's number is given again to the file that replaces it, and a probe in the midst of an instruction
        # would kill the process.
        identity = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns, id(wanted))
        if identity not in self._places:
            if len(self._places) >= MAX_FILES:
                self._places.clear()
            kinds = {offset: wanted[name] for name, offset in function_offsets(descriptor, wanted).items()}
            sites, stepped = defaultdict(list), set()
            for offset, (kind, argument) in kinds.items():
                sites[kind].append((offset, int(kind) | argument << 8))
                if not _EMULATED.match(os.pread(descriptor, 8, offset)):
                    stepped.add(kind)
            self._places[identity] = _Places(dict(sites), frozenset(stepped))
        return self._places[identity]

    def _attach(self, kind: GpuCallKind, tgid: int, path: Path, sites: list[tuple[int, int]]) -> list[Uprobes]:
        """In the order to take them off in: a call that is entered and never seen to return hides those within."""
        if kind is _LAUNCH:
            return [self._source.attach_functions("on_gpu_launch", tgid, path, sites)]
        leaving = self._source.attach_functions("on_gpu_return", tgid, path, sites)
        try:
            return [self._source.attach_functions("on_gpu_call", tgid, path, sites), leaving]
        except ProbeError:
            leaving.close()
            raise

    def _refuse(self, process: _Process, why: str) -> None:
        process.refused = why
        self._errors["permission"] += 1
        if self._errors["permission"] == 1:
            logger.warning("no CUDA probes: %s: needs %s", why, MEND)

    def _fail(self, tgid: int, path: str, reason: str) -> None:
        if not Path(f"/proc/{tgid}").exists():  # it has ended meanwhile
            return
        self._errors[reason] += 1
        if self._errors[reason] == 1:
            logger.warning("no CUDA probes in %s of pid %d: %s", path, tgid, reason)

    def _count(self, seconds: float, now: float) -> None:
        for tgid, process in self._processes.items():
            for kind in {kind for _, kind in process.probes}:
                total = self._source.gpu_calls_counted(tgid, kind)
                more = total - process.counts.get(kind, 0)
                process.counts[kind] = total
                self._hits[kind.name.lower()] += more
                limit = self._calls_per_s / (DEARER if kind in process.stepped else 1)
                process.too_many[kind] = process.too_many[kind] + 1 if more > limit * seconds else 0
                if process.too_many[kind] >= POLLS_TOO_MANY:
                    self._take_off(tgid, process, kind, more / seconds, limit, now)
            for kind in [kind for kind, until_s in process.off_until_s.items() if until_s <= now]:
                del process.off_until_s[kind]
                for file in process.files:
                    self._probe(tgid, process, file, (kind,))

    def _take_off(
        self, tgid: int, process: _Process, kind: GpuCallKind, rate: float, limit: float, now: float
    ) -> None:
        for at in [at for at in process.probes if at[1] is kind]:
            self._closers.submit(_close, process.probes.pop(at))
        pause_s = min(2 * process.pause_s.get(kind, OFF_S / 2), MAX_OFF_S)
        process.pause_s[kind], process.off_until_s[kind] = pause_s, now + pause_s
        process.too_many[kind] = 0
        logger.warning(
            "pid %d makes %.0f CUDA calls/s of kind %s, more than %.0f (gpu.calls_per_s): not probed for %.0f s",
            *(tgid, rate, kind.name.lower(), limit, pause_s),
        )

    def _forget(self, tgid: int) -> None:
        process = self._processes.pop(tgid, None)
        if process is None:
            return
        for (_, kind), probes in process.probes.items():
            self._closers.submit(_close, probes)
            more = self._source.gpu_calls_counted(tgid, kind) - process.counts.get(kind, 0)
            self._hits[kind.name.lower()] += more
            process.counts[kind] = process.counts.get(kind, 0) + more
        for kind in GpuCallKind:
            self._source.forget_gpu_calls(tgid, kind)
