"""All probes at once: off and on again to measure what they cost, less of them when they cost too much."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

import numpy as np

from tailspan import clock
from tailspan.attribute.shedding import GPU_CALLS, RAISED_FLOOR_NS, SHORT_WAITS, SLICES, SYSCALLS, VERDICTS
from tailspan.collect.bpf.cuda import CudaProbes
from tailspan.collect.bpf.source import BpfSource
from tailspan.collect.bpf.syscalls import SyscallTracing
from tailspan.collect.following import Following
from tailspan.collect.targets import Reason
from tailspan.pipeline import Pipeline
from tailspan.timeline.evidence import Table
from tailspan.wire.events import THREAD_EVENT, THREAD_STATE, ThreadEventKind


class Probing:
    """What :class:`tailspan.cost.price.Agent` asks for. ``short_wait_ns``: the configured floor of waits."""

    def __init__(
        self,
        source: BpfSource,
        syscalls: SyscallTracing,
        cuda: CudaProbes,
        following: Following,
        pipeline: Pipeline,
        short_wait_ns: int,
    ) -> None:
        self._source, self._syscalls, self._cuda = source, syscalls, cuda
        self._following, self._pipeline = following, pipeline
        self._short_wait_ns = short_wait_ns
        self._shed: frozenset[str] = frozenset()
        self._seen_last = np.empty(0, THREAD_STATE)  # of all threads, when probes went off
        self._heard: list[tuple[list[int], Reason]] = []  # since then

    @property
    def is_off(self) -> bool:
        return self._source.is_paused

    def look(self) -> Table:
        """All followed threads (THREAD_STATE rows); while probes are off, as they were before."""
        return self._seen_last if self.is_off else self._source.threads()

    def hear(self, pids: Iterable[int], reason: Reason) -> None:
        """:meth:`Following.heard`; while probes are off nobody can be followed: as soon as they are on."""
        if self.is_off:
            self._heard.append((list(pids), reason))
        else:
            self._following.heard(pids, reason)

    def look_for_cuda(self) -> None:
        """Probe those followed processes that have mapped the driver since the last look."""
        if not self.is_off and GPU_CALLS not in self._shed:
            self._cuda.poll(self._pipeline.threads.processes())

    def switch_probes(self, on: bool) -> None:
        """Every program that runs at events, off and on again. While they are off nobody is followed."""
        if not on:
            self._cuda.lift()
            self._seen_last = self._source.pause()
            return
        resumed = self._source.resume()
        self._pipeline.threads.see(resumed.states)
        self._following.born(_births(resumed.born))
        heard, self._heard = self._heard, []
        for pids, reason in heard:
            self._following.heard(pids, reason)

    def worker_cpu_ns(self) -> dict[int, int]:
        """CPU time in all, of each process that is followed with its children."""
        found = {}
        for tgid in self._pipeline.threads.processes() - self._source.only_threads:
            with contextlib.suppress(OSError):  # it has ended
                found[tgid] = clock.process_cpu_ns(tgid)
        return found

    def shed(self, steps: frozenset[str]) -> None:
        """Do without these steps of attribute.shedding, and with all others."""
        self._syscalls.shed(SYSCALLS in steps)
        if GPU_CALLS in steps - self._shed:
            self._cuda.lift()
        floor_ns = max(RAISED_FLOOR_NS, self._short_wait_ns) if SHORT_WAITS in steps else 0
        self._source.tune(floor_ns, slices=SLICES not in steps)
        self._pipeline.shed_verdicts(VERDICTS in steps)
        self._shed = steps

    def idle_steps(self) -> set[str]:
        """Steps that save nothing now."""
        idle = set() if self._syscalls.is_wanted else {SYSCALLS}
        return idle if self._cuda.status().processes or GPU_CALLS in self._shed else idle | {GPU_CALLS}

    def run_times(self) -> dict[str, tuple[int, int]]:
        return self._source.run_times()


def _births(born: Mapping[int, int]) -> Table:
    """THREAD_EVENT rows of processes that nobody saw begin: child -> parent."""
    rows = np.zeros(len(born), THREAD_EVENT)
    rows["kind"] = ThreadEventKind.BORN
    rows["tid"] = rows["tgid"] = list(born)
    rows["parent_tgid"] = list(born.values())
    return rows
