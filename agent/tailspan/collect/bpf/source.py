"""The kernel as a source of batches: load what this kernel can, attach per probe, drain all rings."""

from __future__ import annotations

import resource
import select
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from tailspan.collect import kin
from tailspan.collect.bpf import libbpf
from tailspan.collect.bpf.loader import Link, ProgramObject
from tailspan.collect.bpf.probes import PROBES
from tailspan.collect.bpf.programs import Options, Programs
from tailspan.collect.bpf.ring import RINGS, Ring, drain
from tailspan.errors import CannotError, ProbeError
from tailspan.timeline.tables import LOSS
from tailspan.wire.events import SOCKET_OWNER, SYSCALL_HIST, SYSCALL_KEY, THREAD_STATE, RecordClass

Table = npt.NDArray[np.void]

#: Rings that fill slowly, and that nothing is judged by between two thorough drains.
_SLOW_RINGS = ("syscall_rings", "connection_rings", "incident_rings")
#: Maps that say what goes on now: they are worth nothing once nobody has looked for a while. The last three are
#: tables with one of the loaders only.
_OF_THE_MOMENT = ("cpus", "deep_sleepers", "issues", "follows", "conns", "listeners")

#: The map's, and a copy of it for each of its two mappings, which Python's mmap keeps.
_FILES_PER_RING = 3
#: Programs, links, maps, sockets, logs and spools; and connections, which are bounded.
_OTHER_FILES = 512


@dataclass(slots=True)
class Batch:
    """What one drain brought. ``drained_mono_ns``: every record written before is in this or an earlier batch."""

    drained_mono_ns: int
    cycles: Table
    slices: Table
    thread_events: Table
    syscalls: Table
    sockets: Table
    connections: Table
    blocks: Table
    incidents: Table
    gpu_calls: Table
    losses: Table
    fill: float  #: of the ring that was fullest, 0 to 1


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where :meth:`BpfSource.resume` has begun anew."""

    states: Table  #: of all followed threads (THREAD_STATE rows)
    born: dict[int, int]  #: child -> parent: processes that were started meanwhile, and are followed now


@dataclass(frozen=True, slots=True)
class _Pause:
    followed: frozenset[int]  # tgids
    mono_ns: int
    ticks: int


@dataclass(slots=True)
class _Loaded:
    object: ProgramObject
    links: dict[str, dict[str, Link]] = field(default_factory=dict)  # probe -> program -> link
    rings: dict[str, list[Ring]] = field(default_factory=dict)


class BpfSource:
    """The constructor raises :class:`CannotError` when a required probe cannot be had, and says how to mend it."""

    def __init__(self, options: Options | None = None, programs: Programs | None = None) -> None:
        """``programs``: that are being loaded already, with options of their own."""
        programs = programs or Programs(options)
        self._lost = np.zeros(RecordClass.COUNT, np.int64)
        self._counted_ns = time.monotonic_ns()  # when the loss counters were last read
        self._asking = threading.Lock()  # one port is asked for at a time
        self._half_full = select.epoll()  # rings that have become so
        self._only_threads: set[int] = set()  # tgids that are followed without their children
        self._pause: _Pause | None = None
        self._tuning = (0, False)
        self._programs, self._cpus, self.status = programs, programs.cpus, programs.status
        self._loaded = _Loaded(programs.loaded())
        try:
            self._make_rings()
            for probe in PROBES:
                if probe.default and self.status[probe.name].loaded:
                    self.attach(probe.name)
            programs.require()
        except BaseException:
            self.close()
            raise

    @property
    def options(self) -> Options:
        return self._programs.options

    @property
    def loader(self) -> Literal["core", "bcc"]:
        return self._programs.choice.loader

    @property
    def loader_why(self) -> str:
        """Why that loader; where it is bcc, also what it compiled on, and what it cannot tell. One line."""
        return "; ".join((self._programs.choice.why, *self._loaded.object.remarks))

    def attach(self, name: str) -> None:
        """Attach a loaded probe; a failure is in its status, not raised. Attached twice is attached once."""
        status = self.status[name]
        if status.attached or not status.loaded:
            return
        links: dict[str, Link] = {}
        try:
            for program in () if status.probe.in_libraries else self._programs.of(status.probe):
                links[program] = self._loaded.object.attach(program)
        except ProbeError as error:
            for link in links.values():
                link.close()
            status.why = str(error)
            return
        self._loaded.links[name] = links
        status.attached, status.why = True, status.partly

    def detach(self, name: str) -> None:
        for link in self._loaded.links.pop(name, {}).values():
            link.close()
        self.status[name].attached = False

    @property
    def is_paused(self) -> bool:
        return self._pause is not None

    @property
    def only_threads(self) -> frozenset[int]:
        """tgids that are, or were, followed without their children."""
        return frozenset(self._only_threads)

    def pause(self) -> Table:
        """Take off every program that runs at events, and let go of all threads, until :meth:`resume`.

        Returns the state of all followed threads (THREAD_STATE rows) just before. What the rings still hold can be
        drained. Meanwhile nothing can be attached, detached, followed or let go of; iterators can be read.
        """
        if self._pause:
            raise ProbeError("it is paused already")
        states = self.threads()
        followed = frozenset(states["tgid"].tolist())
        self._pause = _Pause(followed, time.monotonic_ns(), kin.now_ticks())
        try:
            for links in self._loaded.links.values():
                for program in [program for program in links if not _is_iterator(program)]:
                    links.pop(program).close()
            self._wait_for_programs()
            self._forget_all()
        except ProbeError:
            self.resume()
            raise
        return states

    def resume(self) -> Resumed:
        """Attach again what was attached, and begin anew with those that were followed and their new children.

        Raises :class:`CannotError` where a required probe cannot be attached again.
        """
        if not self._pause:
            raise ProbeError("it is not paused")
        pause, self._pause = self._pause, None
        for name in [probe.name for probe in PROBES if self.status[probe.name].attached]:
            self._attach_again(name)
        self._programs.require()
        there = {tgid for tgid in pause.followed if kin.is_older(tgid, pause.ticks)}
        self._only_threads &= there
        born = kin.born_since(pause.ticks, there - self._only_threads, self._started_since(pause.mono_ns))
        states = self.follow(sorted(self._only_threads), only_threads=True)
        states = self.follow([*sorted(there - self._only_threads), *born])
        return Resumed(states, born)

    def tune(self, short_wait_ns: int = 0, slices: bool = True) -> None:
        """From now on. ``short_wait_ns``: instead of the option of that name; 0: that one. Not ``slices``: who had
        the CPU that a followed thread waited for is not written."""
        self._tuning = (short_wait_ns, not slices)
        self._write_tuning()

    def follow(self, tgids: list[int], only_threads: bool = False) -> Table:
        """Adopt every thread of these processes; from now on also their new threads and children.

        ``only_threads``: not their children. Returns the state of all followed threads (THREAD_STATE rows), those
        of other processes included.
        """
        if self._pause:
            raise ProbeError("nobody can be followed while it is paused")
        if only_threads:
            self._only_threads.update(tgids)
        else:
            self._only_threads.difference_update(tgids)
        targets = self._loaded.object.map("targets")
        for tgid in tgids:
            targets.update(struct.pack("<I", tgid), b"\2" if only_threads else b"\1")
        states = self.threads()
        # Adopted threads carry their storage with them: the table is only needed while the walk adopts, and a
        # tgid left in it would follow whoever is given that number next.
        for tgid in tgids:
            targets.delete(struct.pack("<I", tgid))
        if self.status["tcp"].attached:  # the sockets they have already
            self._loaded.links["tcp"]["iter_sockets"].read_iterator()
        self._only_threads.intersection_update(states["tgid"].tolist())  # others have ended
        return states

    def unfollow(self, tgids: list[int]) -> None:
        """Let go of every thread of these processes: no record of theirs is written from now on.

        Their child processes are still followed. It is no error if one has ended, or was never followed.
        """
        if self._pause:
            raise ProbeError("nobody can be let go of while it is paused")
        self._only_threads.difference_update(tgids)
        targets = self._loaded.object.map("targets")
        for tgid in tgids:
            targets.update(struct.pack("<I", tgid), b"\3")
        self.threads()
        if self.status["tcp"].attached:  # what their sockets do would be recorded too
            self._loaded.links["tcp"]["iter_sockets"].read_iterator()
        for tgid in tgids:
            targets.delete(struct.pack("<I", tgid))

    def threads(self) -> Table:
        """State of every followed thread now (THREAD_STATE rows), with the interval that is still open."""
        raw = self._loaded.links["lifecycle"]["iter_threads"].read_iterator()
        return np.frombuffer(raw, THREAD_STATE)

    def socket_owners(self, port: int) -> Table:
        """Who on this host holds a TCP socket that is connected to ``port`` (SOCKET_OWNER rows).

        One row per process and socket; in any network namespace. From any thread. Raises :class:`ProbeError` where
        the probe "owners" is not attached.
        """
        with self._asking:
            self._loaded.object.map("owners_of").update(struct.pack("<I", 0), struct.pack("<I", port))
            return np.frombuffer(self._iterator("owners", "iter_owners").read_iterator(), SOCKET_OWNER)

    def processes(self) -> Table:
        """Every process of this host (SOCKET_OWNER rows without a socket). Otherwise as :meth:`socket_owners`."""
        return np.frombuffer(self._iterator("owners", "iter_processes").read_iterator(), SOCKET_OWNER)

    def drain(self, thorough: bool = True) -> Batch:
        """Empty the rings; those that fill slowly, and the loss counters, only when ``thorough``."""
        now = time.monotonic_ns()
        tables, fill = {}, 0.0
        for name, (_, dtype) in RINGS.items():
            rings = self._loaded.rings[name] if thorough or name not in _SLOW_RINGS else []
            tables[name], fullest = drain(rings, dtype)
            fill = max(fill, fullest)
        return Batch(
            now,
            tables["cycle_rings"],
            tables["slice_rings"],
            tables["thread_rings"],
            tables["syscall_rings"],
            tables["socket_rings"],
            tables["connection_rings"],
            tables["block_rings"],
            tables["incident_rings"],
            tables["gpu_call_rings"],
            self._losses(now) if thorough else np.empty(0, LOSS),
            fill,
        )

    def wait(self, seconds: float) -> bool:
        """Until a ring has become half full, at most so long. Returns whether one has, since this was last asked.

        Not one of those that only a thorough drain empties.
        """
        return bool(self._half_full.poll(seconds))

    @property
    def uprobes_are_perf_events(self) -> bool:
        """One each, which kernels want CAP_SYS_ADMIN for; else a link, which they want nothing for."""
        return self.status["gpu"].loaded and not self._programs.uprobe_multi

    def attach_functions(
        self, program: str, tgid: int, path: Path, sites: list[tuple[int, int]]
    ) -> libbpf.Uprobes:
        """A program of a probe ``in_libraries`` on (offset, cookie) of a file, in one process."""
        returns = program.endswith("_return")
        return self._loaded.object.attach_uprobes(program, tgid, path, sites, returns, self._programs.uprobe_multi)

    def count_gpu_calls(self, tgid: int, kind: int) -> None:
        """From now on; a count that there is goes on."""
        key = struct.pack("<II", tgid, kind)
        counts = self._loaded.object.map("gpu_call_counts")
        if counts.lookup(key, 8 * self._cpus) is None:
            counts.update(key, bytes(8 * self._cpus))

    def gpu_calls_counted(self, tgid: int, kind: int) -> int:
        counts = self._loaded.object.map("gpu_call_counts")
        raw = counts.lookup(struct.pack("<II", tgid, kind), 8 * self._cpus)
        return int(np.frombuffer(raw, np.uint64).sum()) if raw else 0

    def forget_gpu_calls(self, tgid: int, kind: int) -> None:
        self._loaded.object.map("gpu_call_counts").delete(struct.pack("<II", tgid, kind))

    def syscall_histograms(self) -> list[tuple[int, int, Table]]:
        """(tgid, syscall number, SYSCALL_HIST row summed over CPUs) for every pair seen."""
        hists = self._loaded.object.map("syscall_hists")
        found = []
        for key in hists.keys(SYSCALL_KEY.itemsize):
            raw = hists.lookup(key, SYSCALL_HIST.itemsize * self._cpus)
            if raw is None:
                continue
            per_cpu = np.frombuffer(raw, SYSCALL_HIST)
            total = np.zeros((), SYSCALL_HIST)
            for name in ("count", "total_ns", "slots"):
                total[name] = per_cpu[name].sum(axis=0)
            tgid, nr = struct.unpack("<Ii", key)
            found.append((tgid, nr, total))
        return found

    def clear_syscall_histograms(self) -> None:
        hists = self._loaded.object.map("syscall_hists")
        for key in hists.keys(SYSCALL_KEY.itemsize):
            hists.delete(key)

    def run_times(self) -> dict[str, tuple[int, int]]:
        """Program -> (ns spent, runs) since load; zeros unless ``kernel.bpf_stats_enabled`` is 1."""
        times = {}
        for status in self.status.values():
            for program in self._programs.of(status.probe) if status.loaded else ():
                text = Path(f"/proc/self/fdinfo/{self._loaded.object.program_fd(program)}").read_text()
                fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
                times[program] = (int(fields.get("run_time_ns", 0)), int(fields.get("run_cnt", 0)))
        return times

    def close(self) -> None:
        for name in list(self._loaded.links):
            self.detach(name)
        for rings in self._loaded.rings.values():
            for ring in rings:
                ring.close()
        self._loaded.rings.clear()
        self._half_full.close()
        self._loaded.object.close()

    def _attach_again(self, name: str) -> None:
        """What :meth:`pause` has taken off; on failure as :meth:`attach`."""
        status, links = self.status[name], self._loaded.links[name]
        try:
            for program in () if status.probe.in_libraries else self._programs.of(status.probe):
                if program not in links:
                    links[program] = self._loaded.object.attach(program)
        except ProbeError as error:
            self.detach(name)
            status.why = str(error)

    def _forget_all(self) -> None:
        """Nothing is attached: threads and sockets lose what is kept of them, and CPUs what goes on there."""
        self._write_tuning(forgets=True)
        try:
            if self.status["tcp"].attached:
                self._loaded.links["tcp"]["iter_sockets"].read_iterator()
            self.threads()
            for name in _OF_THE_MOMENT:
                self._loaded.object.clear(name)
        finally:
            self._write_tuning()

    def _write_tuning(self, forgets: bool = False) -> None:
        short_wait_ns, no_slices = self._tuning
        value = struct.pack("<QII", short_wait_ns, no_slices, forgets)
        self._loaded.object.map("tunings").update(bytes(4), value)

    def _wait_for_programs(self) -> None:
        """Until those that were running when they were taken off have ended: a map of maps waits for that when it
        is changed."""
        ring = self._loaded.rings["cycle_rings"][0]
        self._loaded.object.map("cycle_rings").update(bytes(4), struct.pack("<I", ring.fd))

    def _started_since(self, mono_ns: int) -> list[int]:
        """Processes that may have been; without the probe "owners", all that there are."""
        try:
            processes = self.processes()
        except ProbeError:
            return kin.all_pids()
        young: list[int] = processes["tgid"][processes["started_mono_ns"] >= mono_ns].tolist()
        return young

    def _iterator(self, probe: str, program: str) -> Link:
        if not self.status[probe].attached:
            raise ProbeError(f"probe {probe}: {self.status[probe].why or 'it is not attached'}")
        return self._loaded.links[probe][program]

    def _make_rings(self) -> None:
        _allow_files(_FILES_PER_RING * len(RINGS) * self._cpus)
        for name, (_, dtype) in RINGS.items():
            size = getattr(self.options, name.removesuffix("s") + "_bytes")
            self._loaded.rings[name] = []
            for _ in range(self._cpus):
                ring = Ring(libbpf.create_ring(size), size, dtype)
                self._loaded.rings[name].append(ring)
                if name not in _SLOW_RINGS:  # by edge: with any record it is readable, and only one of them wakes
                    self._half_full.register(ring.fd, select.EPOLLIN | select.EPOLLET)
        with ThreadPoolExecutor(len(RINGS)) as pool:  # each map has the kernel wait for an RCU grace period
            list(pool.map(self._fill, RINGS))

    def _fill(self, name: str) -> None:
        """Put its rings into the map."""
        fds = [ring.fd for ring in self._loaded.rings[name]]
        self._loaded.object.map(name).update_all(
            struct.pack(f"<{len(fds)}I", *range(len(fds))), struct.pack(f"<{len(fds)}I", *fds), len(fds)
        )

    def _losses(self, now: int) -> Table:
        losses = self._loaded.object.map("losses")
        rows = []
        for klass in range(RecordClass.COUNT):
            raw = losses.lookup(struct.pack("<I", klass), 8 * self._cpus)
            total = int(np.frombuffer(raw, np.uint64).sum()) if raw else 0
            if total > self._lost[klass]:
                rows.append((self._counted_ns, now, total - self._lost[klass], klass, 0))
                self._lost[klass] = total
        self._counted_ns = now
        return np.array(rows, LOSS)


def _is_iterator(program: str) -> bool:
    return program.startswith("iter_")


def _allow_files(needed: int) -> None:
    """A soft limit of 1,024, which is common, is used up by the rings of 37 CPUs: take more where that is allowed.

    Raises :class:`CannotError` where it is not.
    """
    wanted = needed + _OTHER_FILES
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (allowed, most) or allowed >= wanted:
        return
    if most < wanted:
        raise CannotError(
            f"the rings take {needed} file descriptors, and the hard limit of this process is {most}:"
            f" raise it (LimitNOFILE=, ulimit -Hn) to {wanted}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
