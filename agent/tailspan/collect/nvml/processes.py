"""Who uses a GPU, and how much of it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt

from tailspan.collect.nvml.calls import Asked
from tailspan.timeline.gpus import GpuProcess
from tailspan.timeline.tables import ABSENT, GPU_PROCESS

_NOT_AVAILABLE = 2**64 - 1
_LISTS = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
_SHARES = "nvmlDeviceGetProcessUtilization"


class Processes:
    """Of one GPU or MIG instance."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._seen_us = 0  # the driver's time of its latest sample

    def read(self) -> tuple[GpuProcess, ...]:
        """Those that the driver lists, or has seen at work since the last time."""
        memory = self._memory()
        shares = self._shares()
        pids = sorted(memory.keys() | (shares or {}).keys())
        return tuple(
            GpuProcess(
                tgid=pid,
                comm=_comm(pid),
                memory_bytes=memory.get(pid),
                sm=None if shares is None else shares.get(pid, 0.0),
            )
            for pid in pids
        )

    def _memory(self) -> dict[int, int | None]:
        """A process that computes and draws is in both lists, with the same memory."""
        found: dict[int, int | None] = {}
        for name in _LISTS:
            for process in self._asked.first(name + "_v3", name + "_v2") or ():
                used = process.usedGpuMemory
                known = None if used is None or used >= _NOT_AVAILABLE else int(used)
                found[int(process.pid)] = (
                    max(known, found.get(int(process.pid)) or 0) if known is not None else None
                )
        return found

    def _shares(self) -> dict[int, float] | None:
        """Mean of the driver's samples since the last time. None where it has none of anybody: it does not say
        whether all rested or nobody looked.
        """
        samples = self._asked.ask(_SHARES, self._seen_us)
        percents: dict[int, list[int]] = defaultdict(list)
        for sample in samples or ():
            self._seen_us = max(self._seen_us, int(sample.timeStamp))
            if sample.pid and sample.smUtil <= 100:
                percents[int(sample.pid)].append(int(sample.smUtil))
        return {pid: fmean(each) / 100 for pid, each in percents.items()} or None


def rows(
    gpu: int, start_mono_ns: int, end_mono_ns: int, processes: tuple[GpuProcess, ...]
) -> npt.NDArray[np.void]:
    found = np.zeros(len(processes), GPU_PROCESS)
    found["start_mono_ns"], found["end_mono_ns"], found["gpu"] = start_mono_ns, end_mono_ns, gpu
    for row, process in zip(found, processes, strict=True):
        row["tgid"] = process.tgid
        row["comm"] = process.comm.encode()
        row["memory_bytes"] = ABSENT if process.memory_bytes is None else process.memory_bytes
        row["sm_percent"] = ABSENT if process.sm is None else round(100 * process.sm)
    return found


def _comm(pid: int) -> str:
    """ "" of one that has ended, or that is in no PID namespace of ours."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").removesuffix("\n")
    except OSError:
        return ""
