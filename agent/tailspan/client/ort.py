"""ONNX Runtime's own profile of a worker's slow runs: which operators took the time.

::

    def make(prefix):                                   # the worker's own session, but for its profile
        options.enable_profiling, options.profile_file_prefix = True, prefix
        return onnxruntime.InferenceSession(path, options)

    profiler = tailspan.client.ort.Profiler(session, make)

    output, profile = profiler.run(lambda session: session.run(None, feeds), size=len(batch))
    if profile is not None:
        for operator in profile.operators():
            request.add_span(*operator)

    profiler.open(seconds=5)                            # when somebody asks for it, e.g. by a signal

ONNX Runtime keeps a session's profile to itself until the profile ends, and it ends for good (to profile a single
run is in its C API since 1.25, and not in Python's). So while the window is open a second session runs in place of
the worker's own; after a slow run its profile is read, for that run, and the next one is made. Meanwhile, and for
runs that come while another one is profiled, the worker's own session runs.

What it costs: outside a window, the test of one attribute. In it, a second copy of the model in memory, and the
CPU time to make it. A window is bounded in seconds and in sessions, a session in runs and so its file in bytes.
All files lie in a folder that nobody else may enter, and are removed with it.

A request whose operators are told waits until they are read, for milliseconds: put a span around that.

An operator's time is that of its thread. On a GPU that is the time to launch its kernels, or to wait for them.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

#: The longest window, and the sessions that are made for one.
MAX_WINDOW_S = 60.0
MAX_SESSIONS = 16
#: Runs of the first session, whose file says how many the next one may have.
FIRST_RUNS = 16
MAX_RUNS = 1024
#: Of one profile's file, but the first one's, and of that part of it which is read: the last run's.
MAX_FILE_BYTES = 16 << 20
MAX_READ_BYTES = 4 << 20
#: Runs of one size that say what is usual, how many it takes at least, and how many sizes are kept.
USUAL_RUNS, LEAST_RUNS, MAX_SIZES = 64, 8, 64
#: A request has 256 spans at most, and others than these.
MAX_OPERATORS = 48
#: How soon the end of the process ends a window: a thread that is inside ONNX Runtime then would abort it.
POLL_S = 0.1
#: How long who asks for the operators waits until they are read.
READ_S = 1.0
#: ONNX Runtime's clock and ours agree within this, or the clock was set meanwhile.
TOLERANCE_US = 1000

_OPERATOR_SUFFIX = "_kernel_time"


class Session(Protocol):
    """Of ``onnxruntime.InferenceSession``, or of what a worker wraps it in."""

    def end_profiling(self) -> str: ...

    def get_profiling_start_time_ns(self) -> int: ...


S = TypeVar("S", bound=Session)
T = TypeVar("T")


class Operator(NamedTuple):
    """What :meth:`ActiveRequest.add_span <tailspan.client.request.ActiveRequest.add_span>` takes."""

    name: str  #: ``Conv /layer1/conv``; of several short ones the longest, and how many more
    tid: int
    start_mono_ns: int
    end_mono_ns: int


class Profile:
    """Of one run. Its file is read on a thread of its own."""

    def __init__(self, tid: int, start_mono_ns: int, end_mono_ns: int) -> None:
        self.tid = tid
        self.start_mono_ns = start_mono_ns
        self.end_mono_ns = end_mono_ns
        # CLOCK_REALTIME is what ONNX Runtime on Linux stamps with, whatever its documentation says.
        self.unix_ahead_ns = _unix_ahead_ns()
        self._operators: list[Operator] = []
        self._read = threading.Event()

    def operators(self) -> list[Operator]:
        """In order of time, inside the run. None if it could not be read within a second: then it is counted."""
        self._read.wait(READ_S)
        return self._operators

    def finish(self, operators: list[Operator]) -> None:
        self._operators = operators
        self._read.set()


class _Profiled(Generic[S]):
    """A session whose profile has not ended. One run at a time: to end it during another would fail that one."""

    def __init__(self, session: S, max_runs: int) -> None:
        self.session = session
        self.lock = threading.Lock()
        self.left = max_runs
        self.profile: Profile | None = None
        self.spent = threading.Event()

    def take(self) -> bool:
        """For one run, unless it is taken or spent: then ``lock`` is to be released."""
        if not self.lock.acquire(blocking=False):
            return False
        if self.spent.is_set():
            self.lock.release()
            return False
        return True


class Profiler(Generic[S]):
    """Around the runs of one model. Safe to use from any thread; it never raises but what a run raises.

    ``make(prefix)``: another session over the same model, made with ``enable_profiling`` and ``prefix`` as its
    ``profile_file_prefix``. It is called on a thread of its own; let it make the runs that a new session is slow
    at. A run is slow if it takes more than ``factor`` times what is usual for its size in a window.
    ``slow_only=False``: all are taken for slow, so that each run that is profiled takes a session.
    """

    def __init__(
        self, session: S, make: Callable[[str], S], *, factor: float = 2.0, slow_only: bool = True
    ) -> None:
        self.session = session
        self.failed = 0  #: sessions that could not be made or run, and profiles that could not be read
        self._make = make
        self._factor = factor
        self._slow_only = slow_only
        self._profiled: _Profiled[S] | None = None
        self._usual: dict[int, deque[int]] = {}
        self._max_runs = FIRST_RUNS
        self._until_mono_ns = 0
        self._thread: threading.Thread | None = None

    def open(self, seconds: float) -> None:
        """Profile runs for so long from now, a minute at most. What fails meanwhile ends it, and is counted."""
        try:
            self._until_mono_ns = time.monotonic_ns() + int(min(max(seconds, 0), MAX_WINDOW_S) * 1e9)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve_window, name="ort-profile")
                self._thread.start()
        except Exception:
            self.failed += 1

    def run(self, execute: Callable[[S], T], size: int = 1) -> tuple[T, Profile | None]:
        """What ``execute`` returns for the session that is to run, and the run's profile if it was slow.

        ``size``: of the batch; runs of one size are compared. A profiled session that fails is given up, and
        ``execute`` is called again with the worker's own: whatever that raises is raised.
        """
        profiled = self._profiled
        if profiled is None or not profiled.take():
            return execute(self.session), None
        try:
            start_mono_ns = time.monotonic_ns()
            try:
                result = execute(profiled.session)
            except Exception:
                self._give_up(profiled)
            else:
                return result, self._look_at(profiled, size, start_mono_ns, time.monotonic_ns())
        finally:
            profiled.lock.release()
        return execute(self.session), None

    def _give_up(self, profiled: _Profiled[S]) -> None:
        """And close the window: a second model may be more than the memory holds."""
        self.failed += 1
        self._until_mono_ns = 0
        profiled.spent.set()

    def _look_at(self, profiled: _Profiled[S], size: int, start_mono_ns: int, end_mono_ns: int) -> Profile | None:
        profiled.left -= 1
        try:
            if self._is_slow(size, end_mono_ns - start_mono_ns) or not self._slow_only:
                profiled.profile = Profile(threading.get_native_id(), start_mono_ns, end_mono_ns)
        except Exception:  # a size that is none
            self.failed += 1
        if profiled.profile is not None or profiled.left <= 0:
            profiled.spent.set()
        return profiled.profile

    def _is_slow(self, size: int, ns: int) -> bool:
        """Against the median of the runs of its size before it."""
        if size not in self._usual:
            if len(self._usual) >= MAX_SIZES:
                return False
            self._usual[size] = deque(maxlen=USUAL_RUNS)
        usual = self._usual[size]
        slow = len(usual) >= LEAST_RUNS and ns > self._factor * sorted(usual)[len(usual) // 2]
        usual.append(ns)
        return slow

    def _serve_window(self) -> None:
        try:
            for _ in range(MAX_SESSIONS):
                if self._left_s() <= 0:
                    break
                with tempfile.TemporaryDirectory(prefix="tailspan-ort-") as folder:
                    self._serve_session(folder)
        except Exception:  # no memory for the session, no room for its file, whatever the worker's own code raises
            self.failed += 1

    def _serve_session(self, folder: str) -> None:
        """Have one session run until it is spent or the window is over, and read its profile."""
        profiled = _Profiled(self._make(str(Path(folder, "run"))), self._max_runs)
        self._profiled = profiled
        while self._left_s() > 0 and not profiled.spent.wait(POLL_S):
            pass
        self._profiled = None
        with profiled.lock:  # after the run that has it
            profiled.spent.set()
        profile = profiled.profile
        operators: list[Operator] = []
        try:
            path = profiled.session.end_profiling()
            self._learn(path, self._max_runs - profiled.left)
            if profile is not None:
                operators = read(path, profiled.session.get_profiling_start_time_ns(), profile)
        finally:
            if profile is not None:
                profile.finish(operators)

    def _left_s(self) -> float:
        if not threading.main_thread().is_alive():
            return 0
        return (self._until_mono_ns - time.monotonic_ns()) / 1e9

    def _learn(self, path: str, runs: int) -> None:
        """How many runs the next session may have, so that its file stays within its bound."""
        run_bytes = Path(path).stat().st_size // max(runs, 1) + 1
        self._max_runs = max(1, min(MAX_RUNS, MAX_FILE_BYTES // run_bytes))


class _Event(NamedTuple):
    name: str
    tid: int
    start_us: int  #: since the session began to profile
    end_us: int


def read(path: str, session_start_unix_ns: int, profile: Profile) -> list[Operator]:
    """The operators of the run that ended last. Raises ValueError, or whatever a damaged file leads to."""
    first, last = profile.start_mono_ns, profile.end_mono_ns
    to_mono_ns = session_start_unix_ns - profile.unix_ahead_ns

    def to_mono(us: int) -> int:
        return min(max(us * 1000 + to_mono_ns, first), last)

    events = _last_events(path, (first - to_mono_ns) // 1000, (last - to_mono_ns) // 1000)
    operators = [Operator(e.name, e.tid, to_mono(e.start_us), to_mono(e.end_us)) for e in events]
    return readable(operators, (last - first) // MAX_OPERATORS)


def readable(operators: list[Operator], floor_ns: int) -> list[Operator]:
    """The longest of them. Those that last less than ``floor_ns`` together, one after another, are one.

    Such a one includes what the thread did between them.
    """
    groups: list[list[Operator]] = []
    for operator in sorted(operators, key=lambda o: (o.start_mono_ns, -o.end_mono_ns)):
        first = groups[-1][0] if groups else operator
        if groups and first.tid == operator.tid and operator.end_mono_ns - first.start_mono_ns < floor_ns:
            groups[-1].append(operator)
        else:
            groups.append([operator])
    merged = sorted(map(_merged, groups), key=_length, reverse=True)[:MAX_OPERATORS]
    return sorted(merged, key=lambda o: o.start_mono_ns)


def _merged(group: list[Operator]) -> Operator:
    name = max(group, key=_length).name + (f" +{len(group) - 1}" if len(group) > 1 else "")
    return Operator(name, group[0].tid, group[0].start_mono_ns, max(o.end_mono_ns for o in group))


def _length(operator: Operator) -> int:
    return operator.end_mono_ns - operator.start_mono_ns


def _last_events(path: str, first_us: int, last_us: int) -> list[_Event]:
    """The operators from the run's first microsecond to its last. An event is a line, written when it ends."""
    with open(path, "rb") as file:
        skipped = max(0, os.fstat(file.fileno()).st_size - MAX_READ_BYTES)
        file.seek(skipped)
        lines = file.read(MAX_READ_BYTES).splitlines()
    found = False
    operators: list[_Event] = []
    for line in reversed(lines[1:]):  # the first is the list's bracket, or part of an event
        if not line.startswith(b"{"):
            continue
        raw = json.loads(line.rstrip(b", "))
        event = _event(raw)
        if event.end_us < first_us - TOLERANCE_US:
            break
        if raw["name"] == "model_run":
            found |= event.start_us >= first_us - TOLERANCE_US and event.end_us <= last_us + TOLERANCE_US
            continue
        inside = first_us <= (event.start_us + event.end_us) // 2 <= last_us
        if inside and raw["cat"] == "Node" and raw["name"].endswith(_OPERATOR_SUFFIX):
            operators.append(event)
    else:
        if skipped:
            raise ValueError(f"the run takes more than {MAX_READ_BYTES} bytes of the file")
    if not found:
        raise ValueError("the run is not in the file, or the clock was set meanwhile")
    return operators


def _event(raw: dict[str, Any]) -> _Event:
    node = raw["name"].removesuffix(_OPERATOR_SUFFIX)
    operator = raw["args"].get("op_name", "")
    start_us = int(raw["ts"])
    return _Event(f"{operator} {node}".strip(), int(raw["tid"]), start_us, start_us + int(raw["dur"]))


def _unix_ahead_ns() -> int:
    """CLOCK_REALTIME less CLOCK_MONOTONIC, the tightest of three looks: this thread may lose its CPU in one."""
    looks = []
    for _ in range(3):
        before = time.monotonic_ns()
        unix = time.time_ns()
        after = time.monotonic_ns()
        looks.append((after - before, unix - (before + after) // 2))
    return min(looks)[1]
