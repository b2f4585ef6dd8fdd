"""Where processes wait, and in whose code: ``bpf/stacks.bcc.c`` compiled by bcc, symbols by bcc's tables.

For seconds that somebody looks, not for the agent: bcc costs 180 MB and some seconds to compile, the program 1 to
3 µs a wait. User stacks follow frame pointers; what was built without them stops early or lacks a caller.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import select
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tailspan.collect.bpf import headers
from tailspan.collect.bpf.compiler import missing_helpers
from tailspan.collect.bpf.preflight import require_privilege
from tailspan.collect.bpf.symbols import Frame, Symbols
from tailspan.errors import CannotError, ProbeError, UsageError

PROGRAM = Path(__file__).resolve().parents[2] / "_bpf" / "stacks.bcc.c"
MAX_PROCESSES = 64
_MAX_THREADS = 16384
_MAX_PLACES = 16384
_MAX_STACKS = 8192
_SHORT, _LOST_WAIT, _LOST_PLACE = range(3)
#: The outermost of these, and what is inside of it, is how the scheduler was entered: of every stack.
_SCHEDULER = "__schedule"
#: What bpf_get_stackid() gives for a stack that another one has the place of; all else: there is none.
_TABLE_FULL = (-errno.EEXIST, -errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class ThreadWait:
    """One thread's waits at one place. Stacks innermost first, empty where there is none."""

    tgid: int
    tid: int
    comm: str
    count: int
    blocked_ns: int  #: until it was woken
    runq_ns: int  #: from then until it ran
    longest_ns: int  #: of ``blocked_ns``
    unfinished: int  #: of ``count``, how many were not over at the end
    throughout: bool  #: it waited before anybody looked: longer than is known, and its user stack is one frame
    stack_lost: bool  #: the table of stacks was full
    user: tuple[Frame, ...]
    kernel: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class Waits:
    """What one look has brought."""

    seconds: float
    rows: tuple[ThreadWait, ...]
    short: tuple[int, int]  #: waits below the floor: how many, and their ns
    lost: tuple[int, int]  #: waits that a table had no place for, or whose end was not seen; and their known ns
    ended: tuple[int, ...]  #: processes that had ended by then: what they loaded late has no symbols


@dataclass(slots=True)
class _Place:
    """Of one thread: ids of its stacks, and times."""

    tgid: int
    tid: int
    comm: str
    kernel: int
    user: int
    times: tuple[int, int, int, int]  # count, blocked, runq, longest
    unfinished: int = 0


@dataclass(frozen=True, slots=True)
class _Asleep:
    """A thread that is off the CPU, by /proc. ``switches``: how often it left one so far."""

    tgid: int
    comm: str
    switches: int


class Stacks:
    """Attached from the constructor until :meth:`close`. One look: :meth:`wait`, then :meth:`read`, once.

    Raises :class:`UsageError` for what is no process, and :class:`CannotError` where this machine or user cannot.
    """

    def __init__(self, pids: Sequence[int], floor_ns: int, program: Path = PROGRAM) -> None:
        self._pids = tuple(dict.fromkeys(pids))
        self._floor_ns = floor_ns
        _require_processes(self._pids)
        _require_root()
        bcc = headers.import_bcc()
        with contextlib.ExitStack() as opened:
            self._bpf = _compile(bcc, program, floor_ns)
            opened.callback(self._bpf.cleanup)
            self._processes = _Processes(self._pids)
            opened.callback(self._processes.close)
            self._symbols = Symbols(bcc, self._pids)
            opened.callback(self._symbols.close)
            self._attach()
            self._opened = opened.pop_all()

    def __enter__(self) -> Stacks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._opened.close()

    def wait(self, seconds: float) -> None:
        """Until the time is over, or all processes have ended."""
        self._processes.wait(seconds)

    def read(self) -> Waits:
        """Detaches, then gives what there was."""
        asleep = {tid: now for tid, now in _asleep(self._pids).items() if self._asleep.get(tid) == now}
        still = [_waiting_throughout(tid) for tid in asleep]  # while they do
        self._detach()
        end_ns = time.monotonic_ns()
        ended = self._processes.ended()
        self._symbols.look_again(pid for pid in self._pids if pid not in ended)
        places = [*self._finished(), *self._unfinished(end_ns)]
        seen = {place.tid for place in places}
        rows = [self._row(place) for place in places]
        window_ns = end_ns - self._start_ns
        for (tid, known), stacks in zip(asleep.items(), still, strict=True):
            if tid not in seen and window_ns >= self._floor_ns:
                rows.append(self._throughout(tid, known, window_ns, *stacks))
        sums = [self._sum(which) for which in (_SHORT, _LOST_WAIT, _LOST_PLACE)]
        return Waits(
            window_ns / 1e9,
            tuple(rows),
            sums[_SHORT],
            (sums[_LOST_WAIT][0] + sums[_LOST_PLACE][0], sums[_LOST_PLACE][1]),
            ended,
        )

    def _attach(self) -> None:
        followed = self._bpf[b"followed"]
        for pid in self._pids:
            followed[followed.Key(pid)] = followed.Leaf(1)
        try:
            for tracepoint, function in ((b"sched_wakeup", b"on_wakeup"), (b"sched_switch", b"on_switch")):
                self._bpf.attach_raw_tracepoint(tracepoint, function)
        except Exception as error:  # bcc raises nothing narrower
            raise ProbeError(f"cannot attach to the scheduler: {error}") from None
        self._start_ns = time.monotonic_ns()
        self._asleep = _asleep(self._pids)

    def _detach(self) -> None:
        for tracepoint in (b"sched_switch", b"sched_wakeup"):
            self._bpf.detach_raw_tracepoint(tracepoint)

    def _finished(self) -> Iterator[_Place]:
        for key, value in self._bpf[b"totals"].items():
            times = (value.count, value.blocked_ns, value.runq_ns, value.longest_ns)
            comm = value.comm.decode(errors="replace")
            yield _Place(key.tgid, key.tid, comm, key.kernel_stack, key.user_stack, times)

    def _unfinished(self, end_ns: int) -> Iterator[_Place]:
        for key, value in self._bpf[b"waiting"].items():
            ready_ns = value.ready_mono_ns or end_ns
            blocked_ns = max(ready_ns - value.off_mono_ns, 0)
            if blocked_ns >= self._floor_ns:
                times = (1, blocked_ns, max(end_ns - ready_ns, 0), blocked_ns)
                comm = value.comm.decode(errors="replace")
                yield _Place(value.tgid, key.value, comm, value.kernel_stack, value.user_stack, times, 1)

    def _row(self, place: _Place) -> ThreadWait:
        return ThreadWait(
            *(place.tgid, place.tid, place.comm, *place.times, place.unfinished),
            throughout=False,
            stack_lost=place.kernel in _TABLE_FULL or place.user in _TABLE_FULL,
            user=self._symbols.user(place.tgid, self._addresses(place.user)),
            kernel=tuple(outside_scheduler(self._symbols.kernel(self._addresses(place.kernel)))),
        )

    def _throughout(
        self, tid: int, known: _Asleep, window_ns: int, counter: int | None, kernel: tuple[Frame, ...]
    ) -> ThreadWait:
        return ThreadWait(
            *(known.tgid, tid, known.comm, 1, window_ns, 0, window_ns, 1),
            throughout=True,
            stack_lost=False,
            user=self._symbols.user(known.tgid, () if counter is None else (counter,)),
            kernel=kernel,
        )

    def _addresses(self, stack: int) -> tuple[int, ...]:
        if stack < 0:
            return ()
        table, place = (b"stacks", stack) if stack < _MAX_STACKS else (b"more_stacks", stack - _MAX_STACKS)
        return tuple(self._bpf[table].walk(place))

    def _sum(self, which: int) -> tuple[int, int]:
        cpus = self._bpf[b"sums"][ctypes.c_int(which)]
        return sum(cpu.count for cpu in cpus), sum(cpu.ns for cpu in cpus)


class _Processes:
    """Which of some processes have ended; a pid that is given to another one meanwhile is not taken for it."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._open: dict[int, int] = {}
        self._poll = select.poll()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                self._open[fd] = pid
                self._poll.register(fd, select.POLLIN)
        self._ended: set[int] = set(pids) - set(self._open.values())

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and self._running():
            self._look(left)

    def ended(self) -> tuple[int, ...]:
        self._look(0)
        return tuple(sorted(self._ended))

    def close(self) -> None:
        for fd in self._open:
            os.close(fd)
        self._open.clear()

    def _running(self) -> bool:
        return any(pid not in self._ended for pid in self._open.values())

    def _look(self, seconds: float) -> None:
        for fd, _ in self._poll.poll(seconds * 1000):
            self._poll.unregister(fd)
            self._ended.add(self._open[fd])


def outside_scheduler(frames: Sequence[Frame]) -> list[Frame]:
    """A kernel stack without the frames inside of ``schedule()``, and without it."""
    names = [name for name, _ in frames]
    start = names.index(_SCHEDULER) + 1 if _SCHEDULER in names else 0
    start += names[start : start + 1] == ["schedule"]
    return list(frames[start:])


def _require_processes(pids: Sequence[int]) -> None:
    if len(pids) > MAX_PROCESSES:
        raise UsageError(f"{len(pids)} processes: at most {MAX_PROCESSES} at once")
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        except OSError:
            raise UsageError(f"no process {pid}") from None
        tgid = int(re.search(r"^Tgid:\s*(\d+)", status, re.M)[1])  # type: ignore[index]
        if tgid != pid:
            raise UsageError(f"{pid} is a thread of process {tgid}: --pid {tgid} has all of its threads")


def _require_root() -> None:
    if os.geteuid() != 0:
        raise CannotError("stacks of other processes, and symbols of the kernel, are for root: use sudo")
    require_privilege()  # a container's root may lack it


def _compile(bcc: Any, program: Path, floor_ns: int) -> Any:
    try:
        text = program.read_bytes()  # bytes here and below: bcc warns of anything else
    except OSError as error:
        raise CannotError(f"cannot read {program}: {error.strerror}") from None
    sizes = {
        "MIN_NS": floor_ns,
        "MAX_PROCESSES": MAX_PROCESSES,
        "MAX_THREADS": _MAX_THREADS,
        "MAX_PLACES": _MAX_PLACES,
        "MAX_STACKS": _MAX_STACKS,
    }
    # Made anew each time, in 0.2 s: what root compiles into the kernel is then nobody's to change.
    with tempfile.TemporaryDirectory(prefix="tailspan-headers-") as folder:
        found = headers.find(Path(folder))
        defined = [f"-D{name}={value}" for name, value in sizes.items()]
        with found.in_use():
            try:
                return bcc.BPF(text=text, cflags=["-w", *defined, *missing_helpers(found)])
            except Exception as error:  # bcc raises nothing narrower
                raise ProbeError(f"bcc cannot load {program.name} with headers of {found.why}: {error}") from None


def _asleep(pids: Iterable[int]) -> dict[int, _Asleep]:
    """Threads that are blocked now; those that end meanwhile are left out."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError, AttributeError, KeyError, ValueError):
                    status = task.joinpath("status").read_text(errors="replace")
                    facts = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.M))
                    if facts["State"][0] in "SD":
                        switches = int(facts["voluntary_ctxt_switches"]) + int(facts["nonvoluntary_ctxt_switches"])
                        found[int(task.name)] = _Asleep(pid, facts["Name"], switches)
    return found


def _waiting_throughout(tid: int) -> tuple[int | None, tuple[Frame, ...]]:
    """Where a blocked thread is: its program counter, and its kernel stack; as far as /proc says."""
    counter, kernel = None, ""
    with contextlib.suppress(OSError, ValueError):
        counter = int(Path(f"/proc/{tid}/syscall").read_text().split()[-1], 16)
    with contextlib.suppress(OSError):
        kernel = Path(f"/proc/{tid}/stack").read_text()
    frames = [(name, "kernel") for name in re.findall(r"^\[<\w*>\] (\S+?)(?:\+0x|$)", kernel, re.M)]
    return counter, tuple(outside_scheduler(frames))
