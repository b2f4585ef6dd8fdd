"""Operators of profiled runs, from ONNX Runtime itself, and from sessions that do worse."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailspan.client import Client, ort
from tailspan.client.ort import MAX_OPERATORS, MAX_SESSIONS, Operator, Profile, Profiler
from tailspan.wire.spans import Request
from tailspan.worker import model

from ...conftest import eventually
from .listener import Peer

LONG_S = 60.0
CLOCK_NS = 1_000_000
INPUT = np.ones((1, model.FEATURES), np.float32)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where profiles lie meanwhile: a folder of the test's own."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def loaded(tmp_path: Path) -> model.Model:
    return model.load(tmp_path, width=64, threads=1)


def execute(session: model.Model) -> Any:
    return session.run(INPUT)


def ready(profiler: Profiler[Any]) -> None:
    eventually(lambda: profiler._profiled is not None, "a profiled session is there")


def over(profiler: Profiler[Any]) -> None:
    thread = profiler._thread
    assert thread is not None
    profiler.open(0)
    if profiler._profiled is not None:
        profiler._profiled.spent.set()
    eventually(lambda: not thread.is_alive(), "the window is over")


def test_without_a_window_the_workers_own_session_runs(loaded: model.Model) -> None:
    def make(prefix: str) -> model.Model:
        raise AssertionError("nobody asked for it")

    profiler = Profiler(loaded, make, slow_only=False)
    for _ in range(23):
        session, profile = profiler.run(lambda session: session)
        assert session is loaded
        assert profile is None
    assert profiler.failed == 0


def test_the_operators_of_a_run_lie_in_it_and_make_up_most_of_it(loaded: model.Model) -> None:
    profiler = Profiler(loaded, loaded.profiled, slow_only=False)
    profiler.open(LONG_S)
    for _ in range(5):
        ready(profiler)
        start = time.monotonic_ns()
        output, profile = profiler.run(execute)
        end = time.monotonic_ns()
        assert output.shape == (1, model.CLASSES)
        assert profile is not None
        assert start <= profile.start_mono_ns <= profile.end_mono_ns <= end
        operators = profile.operators()
        # THEN they are in order, one after another, on the thread that ran, and inside the run
        assert operators
        assert {operator.tid for operator in operators} == {threading.get_native_id()}
        for before, after in pairwise(operators):
            assert before.end_mono_ns <= after.start_mono_ns
        assert profile.start_mono_ns <= operators[0].start_mono_ns
        assert operators[-1].end_mono_ns <= profile.end_mono_ns
        # AND they are most of it: eight convolutions, by ONNX Runtime's names for them
        assert sum(name.startswith("Conv ") for name, *_ in operators) == 8
        told_ns = sum(operator.end_mono_ns - operator.start_mono_ns for operator in operators)
        assert told_ns >= 0.5 * (profile.end_mono_ns - profile.start_mono_ns)
    over(profiler)
    assert profiler.failed == 0


def test_onnx_runtimes_clock_is_the_real_time_clock(loaded: model.Model, tmp_path: Path) -> None:
    before = time.time_ns()
    profiled = loaded.profiled(str(tmp_path / "p"))
    assert before <= profiled.get_profiling_start_time_ns() <= time.time_ns()
    # AND what it stamps is, by that clock, where ours has the run
    start = time.monotonic_ns()
    profiled.run(INPUT)
    profile = Profile(threading.get_native_id(), start, time.monotonic_ns())
    events = json.loads(Path(profiled.end_profiling()).read_text())
    (run,) = [event for event in events if event["name"] == "model_run"]
    began = profiled.get_profiling_start_time_ns() + run["ts"] * 1000 - profile.unix_ahead_ns
    assert start - CLOCK_NS <= began
    assert began + run["dur"] * 1000 <= profile.end_mono_ns + CLOCK_NS
    assert run["tid"] == threading.get_native_id()


def test_a_request_carries_its_operators(loaded: model.Model, client_and_peer: tuple[Client, Peer]) -> None:
    client, peer = client_and_peer
    profiler = Profiler(loaded, loaded.profiled, slow_only=False)
    profiler.open(LONG_S)
    ready(profiler)
    with client.request("r") as request:
        with request.span("run"):
            _, profile = profiler.run(execute)
        assert profile is not None
        for operator in profile.operators():
            request.add_span(*operator)
    over(profiler)
    run, *operators = peer.expect(Request).spans
    assert len(operators) >= 8
    assert all(run.start_mono_ns <= o.start_mono_ns <= o.end_mono_ns <= run.end_mono_ns for o in operators)
    assert client.dropped == 0


def test_only_slow_runs_are_told_and_only_against_runs_of_their_size(loaded: model.Model) -> None:
    profiler = Profiler(loaded, loaded.profiled, factor=20.0)
    profiler.open(LONG_S)
    ready(profiler)
    for _ in range(11):
        assert profiler.run(execute)[1] is None

    def slow(session: model.Model) -> None:
        for _ in range(100):
            session.run(INPUT)

    assert profiler.run(slow, size=8)[1] is None
    _, profile = profiler.run(slow)
    assert profile is not None
    # THEN the operators are the longest ones of all that it ran
    assert len(profile.operators()) == MAX_OPERATORS
    over(profiler)
    assert profiler.failed == 0


class Bad:
    """A session whose profile is what the test wants it to be."""

    def __init__(self, content: bytes | None = None, start_unix_ns: int = 0) -> None:
        self.content = content
        self.start_unix_ns = start_unix_ns
        self.path = ""

    def __call__(self, prefix: str) -> Bad:
        self.path = f"{prefix}.json"
        return self

    def end_profiling(self) -> str:
        if self.content is not None:
            Path(self.path).write_bytes(self.content)
        return self.path

    def get_profiling_start_time_ns(self) -> int:
        return self.start_unix_ns


def event(name: str, ts: int, dur: int, cat: str = "Node") -> bytes:
    raw = {"cat": cat, "pid": 1, "tid": 1, "dur": dur, "ts": ts, "ph": "X", "name": name, "args": {}}
    return json.dumps(raw).encode() + b",\n"


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"[\n]\n",
        b"[\n{]\n",
        b"\xff\xfe{" * 1000,
        b'[\n{"name": "model_run"}\n]',
        b"[\n" + event("model_run", 0, 10, "Session") + b"]",  # in 1970
        b"[\n" + event("Conv_kernel_time", 0, 10) * 200_000 + b"]",  # more than is read
    ],
    ids=lambda content: str(content)[:24],
)
def test_a_profile_that_cannot_be_read_is_counted_and_no_operators(content: bytes | None, folders: Path) -> None:
    bad = Bad(content)
    profiler = Profiler(bad, bad, slow_only=False)
    profiler.open(LONG_S)
    ready(profiler)
    result, profile = profiler.run(lambda session: 7)
    assert result == 7
    assert profile is not None
    assert profile.operators() == []
    thread = profiler._thread
    assert thread is not None
    eventually(lambda: not thread.is_alive(), "the window is over")
    assert profiler.failed == 1
    assert list(folders.iterdir()) == []


def test_a_session_that_cannot_be_made_closes_the_window(folders: Path) -> None:
    def make(prefix: str) -> Bad:
        raise MemoryError

    profiler = Profiler(Bad(), make)
    profiler.open(LONG_S)
    eventually(lambda: profiler.failed, "it is counted")
    assert profiler.run(lambda session: 7) == (7, None)
    assert list(folders.iterdir()) == []
    # AND the next window is tried
    thread = profiler._thread
    assert thread is not None
    thread.join()
    profiler.open(LONG_S)
    eventually(lambda: profiler.failed == 2, "it is counted again")


def test_a_run_that_fails_in_the_profiled_session_runs_in_the_workers_own() -> None:
    own, profiled = Bad(), Bad(b"[\n]\n")
    profiler = Profiler(own, profiled)
    profiler.open(LONG_S)
    ready(profiler)

    def execute(session: Bad) -> str:
        if session is profiled:
            raise RuntimeError("out of memory")
        return "own"

    assert profiler.run(execute) == ("own", None)
    assert profiler.failed == 1
    # AND the window is closed
    thread = profiler._thread
    assert thread is not None
    eventually(lambda: not thread.is_alive(), "the window is over")
    assert profiler._profiled is None


def test_what_a_run_of_the_workers_own_session_raises_is_raised() -> None:
    profiler = Profiler(Bad(), Bad(b"[\n]\n"))

    def fail(session: Bad) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        profiler.run(fail)
    profiler.open(LONG_S)
    ready(profiler)
    with pytest.raises(ZeroDivisionError):
        profiler.run(fail)


def test_a_size_that_is_none_costs_only_the_profile() -> None:
    profiler = Profiler(Bad(), Bad(b"[\n]\n"))
    profiler.open(LONG_S)
    ready(profiler)
    assert profiler.run(lambda session: 7, size=[8]) == (7, None)  # type: ignore[arg-type]
    assert profiler.failed == 1
    over(profiler)


def test_one_run_at_a_time_is_profiled() -> None:
    own, profiled = Bad(), Bad(b"[\n]\n")
    profiler = Profiler(own, profiled)
    profiler.open(LONG_S)
    ready(profiler)
    seen: list[Bad] = []

    def outer(session: Bad) -> None:
        seen.append(session)
        seen.append(profiler.run(lambda session: session)[0])

    profiler.run(outer)
    assert seen == [profiled, own]
    over(profiler)


def test_a_window_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "MAX_WINDOW_S", 0.05)
    profiler = Profiler(Bad(), Bad(b"[\n]\n"))
    profiler.open(3600)
    thread = profiler._thread
    assert thread is not None
    eventually(lambda: not thread.is_alive(), "the window is over")
    assert profiler._profiled is None


@pytest.mark.parametrize("seconds", ["long", None, float("nan"), -1, 0])
def test_a_wrong_time_opens_nothing(seconds: Any) -> None:
    profiler = Profiler(Bad(), Bad(b"[\n]\n"))
    profiler.open(seconds)
    if profiler._thread is not None:
        profiler._thread.join(10)
    assert profiler._profiled is None


def test_a_window_is_bounded_in_sessions_and_a_session_in_runs(
    monkeypatch: pytest.MonkeyPatch, folders: Path
) -> None:
    monkeypatch.setattr(ort, "MAX_FILE_BYTES", 1)
    made: list[str] = []

    def make(prefix: str) -> Bad:
        made.append(prefix)
        session = Bad(b"[\n]\n")
        assert oct(Path(prefix).parent.stat().st_mode & 0o777) == "0o700"
        return session(prefix)

    profiler = Profiler(Bad(), make, factor=1e9)
    profiler.open(LONG_S)
    thread = profiler._thread
    assert thread is not None
    ran = 0

    def run(session: Bad) -> None:
        nonlocal ran
        ran += session is not profiler.session

    while thread.is_alive():
        profiler.run(run)
    # THEN the first had its fixed number of runs, and the others one each, as little as their files may hold
    assert len(made) == MAX_SESSIONS
    assert ran == ort.FIRST_RUNS + MAX_SESSIONS - 1
    assert profiler.failed == 0
    assert list(folders.iterdir()) == []


def test_short_operators_one_after_another_are_one() -> None:
    before = [Operator(f"Add a{n}", 1, n * 10, n * 10 + 9) for n in range(11)]
    after = [Operator(f"Mul m{n}", 1, 2000 + n * 10, 2000 + n * 10 + 9) for n in range(12)]
    told = ort.readable([*before, Operator("Conv c", 1, 105, 1105), *after], 500)
    assert told == [
        Operator("Add a0 +10", 1, 0, 109),
        Operator("Conv c", 1, 105, 1105),
        Operator("Mul m0 +11", 1, 2000, 2119),
    ]


def test_operators_of_two_threads_are_never_one() -> None:
    operators = [Operator("Add", 1 + n % 2, n, n + 1) for n in range(6)]
    assert ort.readable(operators, 1000) == operators


def test_the_longest_operators_are_kept_in_order_of_time() -> None:
    operators = [Operator(f"Conv {n}", 1, n * 1000, n * 1000 + 100 + n) for n in range(MAX_OPERATORS + 23)]
    assert ort.readable(operators, 50) == operators[23:]


def test_profiles_leave_no_files(loaded: model.Model, folders: Path) -> None:
    profiler = Profiler(loaded, loaded.profiled, slow_only=False)
    profiler.open(LONG_S)
    ready(profiler)
    (folder,) = folders.iterdir()
    assert [path.stat().st_uid for path in folder.iterdir()] == [os.getuid()]
    _, profile = profiler.run(execute)
    assert profile is not None
    profile.operators()
    over(profiler)
    assert list(folders.iterdir()) == []
