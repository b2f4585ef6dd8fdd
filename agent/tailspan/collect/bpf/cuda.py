"""Probes on the CUDA driver and runtime of processes: found in their maps, taken off where they cost too much.

They go into those processes only: nobody else on the host pays. The runtime calls the driver, and of calls within
calls the outermost is recorded, so both may be probed; launches are counted in the driver alone.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tailspan.collect.bpf.libbpf import Uprobes
from tailspan.collect.bpf.source import BpfSource
from tailspan.collect.elf import function_offsets
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
    **dict.fromkeys(("cuMemAllocPitch_v2", "cuMemCreate", "cuMemHostRegister_v2"), (_ALLOC, 0)),
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

#: Files that may have the driver, and those that may have the runtime: of its own, or linked into them.
_DRIVER_FILE = re.compile(r"/libcuda\.so[^/]*$")
_RUNTIME_FILE = re.compile(r"/(libcudart\.so|[^/]*(cuda|onnxruntime|tensorrt|nvinfer|torch|ggml))[^/]*$")
_MAPPED = re.compile(r"^\S+ ..x. \S+ (\S+) (\d+) +(/.*)$", re.MULTILINE)

File = tuple[str, int]  #: device and inode, as /proc/PID/maps has them


@dataclass(frozen=True, slots=True)
class CudaStatus:
    processes: int  #: that have a library with probes in it
    attached: int  #: functions, in all processes
    off: Mapping[str, int]  #: kind -> processes in which it was too frequent and is left alone
    hits: Mapping[str, int]  #: kind -> calls in all; never goes back
    errors: Mapping[str, int]  #: why a file could not be probed -> how often


@dataclass(slots=True)
class _Process:
    born: str  #: start time, as /proc/PID/stat has it: who is given the number next is another one
    due_s: float = 0.0
    files: dict[File, Path] = field(default_factory=dict)
    probes: dict[tuple[File, GpuCallKind], list[Uprobes]] = field(default_factory=dict)
    counts: dict[GpuCallKind, int] = field(default_factory=dict)
    too_many: Counter[GpuCallKind] = field(default_factory=Counter)
    off_until_s: dict[GpuCallKind, float] = field(default_factory=dict)
    pause_s: dict[GpuCallKind, float] = field(default_factory=dict)  #: the last one of each kind


class CudaProbes:
    """Does nothing where the probe ``gpu`` is not to be had. ``calls_per_s``: of one kind in one process."""

    def __init__(self, source: BpfSource, calls_per_s: int = 10_000) -> None:
        self._source = source
        self._calls_per_s = calls_per_s
        self._processes: dict[int, _Process] = {}
        self._offsets: dict[File, dict[str, int]] = {}
        self._hits: Counter[str] = Counter({kind.name.lower(): 0 for kind in GpuCallKind if kind.name != "COUNT"})
        self._errors: Counter[str] = Counter()
        self._polled_s = time.monotonic()

    def poll(self, tgids: Iterable[int]) -> None:
        """Look for libraries of these processes, count, and take off what is too frequent."""
        if not self._source.status["gpu"].attached:
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

    def status(self) -> CudaStatus:
        off = Counter(kind.name.lower() for process in self._processes.values() for kind in process.off_until_s)
        probed = [process for process in self._processes.values() if process.probes]
        attached = sum(probes[0].count for process in probed for probes in process.probes.values())
        return CudaStatus(len(probed), attached, dict(off), dict(self._hits), dict(self._errors))

    def close(self) -> None:
        for tgid in list(self._processes):
            self._forget(tgid)

    def _look(self, tgid: int, now: float) -> None:
        try:
            born = Path(f"/proc/{tgid}/stat").read_text().rpartition(")")[2].split()[19]
            maps = Path(f"/proc/{tgid}/maps").read_text(errors="replace")
        except OSError as error:  # it has gone, or is another user's
            self._errors[f"/proc/PID/maps: {error.strerror}"] += not isinstance(error, FileNotFoundError)
            self._processes.setdefault(tgid, _Process("")).due_s = now + LATER_S
            return
        process = self._processes.get(tgid)
        if process is None or process.born != born:
            self._forget(tgid)
            process = self._processes[tgid] = _Process(born)
        for dev, inode, path in set(_MAPPED.findall(maps)):
            file = (dev, int(inode))
            if file not in process.files and (_DRIVER_FILE.search(path) or _RUNTIME_FILE.search(path)):
                process.files[file] = Path(f"/proc/{tgid}/root{path}")
                self._probe(tgid, process, file, tuple(GpuCallKind)[: _LAUNCH + 1])
        process.due_s = now + (LATER_S if process.probes else SOON_S)

    def _probe(self, tgid: int, process: _Process, file: File, kinds: Iterable[GpuCallKind]) -> None:
        path = process.files[file]
        wanted = DRIVER if _DRIVER_FILE.search(str(path)) else RUNTIME
        try:
            if file not in self._offsets:
                self._offsets[file] = function_offsets(path, wanted)
            for kind in kinds:
                sites = [
                    (offset, int(kind) | wanted[name][1] << 8)
                    for name, offset in self._offsets[file].items()
                    if wanted[name][0] is kind
                ]
                if sites and kind not in process.off_until_s:
                    self._source.count_gpu_calls(tgid, kind)
                    process.probes[file, kind] = self._attach(kind, tgid, path, sites)
        except (CannotError, ProbeError) as error:
            reason = str(error).removeprefix(f"{path}: ")
            if not self._errors[reason]:
                logger.warning("no CUDA probes in %s of pid %d: %s", path, tgid, reason)
            self._errors[reason] += 1
            return
        names = self._offsets[file]
        if names:
            logger.info("%d CUDA functions of %s are probed in pid %d", len(names), path.name, tgid)

    def _attach(self, kind: GpuCallKind, tgid: int, path: Path, sites: list[tuple[int, int]]) -> list[Uprobes]:
        if kind is _LAUNCH:
            return [self._source.attach_functions("on_gpu_launch", tgid, path, sites)]
        entry = self._source.attach_functions("on_gpu_call", tgid, path, sites)
        try:
            return [entry, self._source.attach_functions("on_gpu_return", tgid, path, sites)]
        except ProbeError:
            entry.close()
            raise

    def _count(self, seconds: float, now: float) -> None:
        for tgid, process in self._processes.items():
            for kind in {kind for _, kind in process.probes}:
                total = self._source.gpu_calls_counted(tgid, kind)
                more = total - process.counts.get(kind, 0)
                process.counts[kind] = total
                self._hits[kind.name.lower()] += more
                process.too_many[kind] = process.too_many[kind] + 1 if more > self._calls_per_s * seconds else 0
                if process.too_many[kind] >= POLLS_TOO_MANY:
                    self._take_off(tgid, process, kind, more / seconds, now)
            for kind in [kind for kind, until_s in process.off_until_s.items() if until_s <= now]:
                del process.off_until_s[kind]
                for file in process.files:
                    self._probe(tgid, process, file, (kind,))

    def _take_off(self, tgid: int, process: _Process, kind: GpuCallKind, rate: float, now: float) -> None:
        for at in [at for at in process.probes if at[1] is kind]:
            for probes in process.probes.pop(at):
                probes.close()
        pause_s = min(2 * process.pause_s.get(kind, OFF_S / 2), MAX_OFF_S)
        process.pause_s[kind], process.off_until_s[kind] = pause_s, now + pause_s
        process.too_many[kind] = 0
        logger.warning(
            "pid %d makes %.0f CUDA calls/s of kind %s, more than gpu.calls_per_s = %d: not probed for %.0f s",
            *(tgid, rate, kind.name.lower(), self._calls_per_s, pause_s),
        )

    def _forget(self, tgid: int) -> None:
        process = self._processes.pop(tgid, None)
        if process is None:
            return
        for (_, kind), probes in process.probes.items():
            for each in probes:
                each.close()
            more = self._source.gpu_calls_counted(tgid, kind) - process.counts.get(kind, 0)
            self._hits[kind.name.lower()] += more
            process.counts[kind] = process.counts.get(kind, 0) + more
        for kind in GpuCallKind:
            self._source.forget_gpu_calls(tgid, kind)
