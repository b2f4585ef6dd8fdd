"""Where processes wait, and in whose code: on a program whose functions and waits are known."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailspan.collect.bpf import stacks
from tailspan.collect.bpf.stacks import Stacks, ThreadWait

pytestmark = pytest.mark.kernel

MS = 1_000_000
READ_CONFIG = "app::read_config(long)"
Waiting = subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("waits") / "waits"
    flags = ["-O1", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-fno-exceptions"]
    source = Path(__file__).with_name("waits.cpp")
    subprocess.run(["clang", *flags, "-x", "c++", str(source), "-o", str(built)], check=True)
    return built


@contextlib.contextmanager
def waiting(program: Path, count: int) -> Iterator[list[Waiting]]:
    """Processes that wait for a line."""
    running = [subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in running:
            assert line(process) == "ready"
        yield running
    finally:
        for process in running:
            process.kill()
            process.communicate()


def line(process: Waiting) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def go(process: Waiting) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def functions(row: ThreadWait) -> list[str]:
    return [name for name, _ in row.user]


def bpf_descriptors() -> list[str]:
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(fd.readlink()))
    return sorted(link for link in links if "bpf" in link)


def test_23_waits_are_found_in_their_function_also_of_a_process_that_has_ended(program: Path) -> None:
    before = bpf_descriptors()
    with waiting(program, 4) as (stays, ends, idle, other):
        with Stacks([stays.pid, ends.pid, idle.pid], floor_ns=MS) as look:
            for process in (stays, ends, other):
                go(process)
                assert line(process) == "done"
            ends.communicate(b"\n")  # it ends
            look.wait(0.05)
            found = look.read()

        for process in (stays, ends):
            (served,) = [row for row in found.rows if row.tid == process.pid and READ_CONFIG in functions(row)]
            at = functions(served).index(READ_CONFIG)
            assert served.user[at : at + 3] == tuple(
                (name, program.name) for name in (READ_CONFIG, "serve()", "main")
            )
            assert "hrtimer_nanosleep" in [name for name, _ in served.kernel]
            assert not {"schedule", "__schedule"} & {name for name, _ in served.kernel}
            assert (served.tgid, served.comm) == (process.pid, program.name)
            assert 23 - found.lost[0] <= served.count <= 23
            assert served.count * 10 * MS <= served.blocked_ns <= found.seconds * 1e9
            assert 10 * MS <= served.longest_ns <= served.blocked_ns - (served.count - 1) * 10 * MS
            assert served.runq_ns >= 0
            assert (served.unfinished, served.throughout, served.stack_lost) == (0, False, False)
        assert found.ended == (ends.pid,)

        # AND one that waits for its next line is not over, one that did so all the time is no less seen
        (unfinished,) = [row for row in found.rows if row.tid == stays.pid and row.unfinished]
        assert (unfinished.count, unfinished.throughout) == (1, False)
        (throughout,) = [row for row in found.rows if row.tid == idle.pid]
        assert (throughout.count, throughout.unfinished, throughout.throughout) == (1, 1, True)
        assert throughout.blocked_ns == pytest.approx(found.seconds * 1e9)
        assert functions(throughout) in (["read"], ["__read"], ["__GI___libc_read"], ["__libc_read"])
        assert throughout.kernel[0][0].endswith("pipe_read")

    # AND short waits are counted, a process that was not asked for is not there, and nothing is left behind
    late = sum(row.count for row in found.rows if "app::check(long)" in functions(row))
    assert found.short[0] >= 2 * 7 - late - found.lost[0]
    assert 0 < found.short[1] < found.short[0] * MS
    assert found.lost[0] <= 5  # a virtual machine loses a switch now and then
    assert other.pid not in {row.tgid for row in found.rows}
    assert bpf_descriptors() == before


def test_what_overflows_is_counted(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_MAX_PLACES", 1)
    monkeypatch.setattr(stacks, "_MAX_STACKS", 1)
    with waiting(program, 2) as (first, second), Stacks([first.pid, second.pid], floor_ns=MS) as look:
        for process in (first, second):
            go(process)
            assert line(process) == "done"
        found = look.read()
    # one of them had the only place, and one stack of two the only bucket
    assert found.lost[0] >= 20
    assert found.lost[1] >= 20 * 10 * MS
    assert any(row.stack_lost for row in found.rows)
    assert not any(row.stack_lost and row.user and row.kernel for row in found.rows)


@pytest.mark.parametrize("end", ["interrupt", "terminate", "death"])
def test_command_ends_early_with_what_it_has(end: str, program: Path, tmp_path: Path) -> None:
    with waiting(program, 1) as (process,):
        command = [sys.executable, "-m", "tailspan", "stacks", "--pid", str(process.pid), "--for", "1h", "--json"]
        running = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            # what a shell runs in the background ignores it, and so would this
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            assert running.stderr is not None
            assert b"looking for" in running.stderr.readline()
            go(process)
            assert line(process) == "done"
            if end == "death":
                process.kill()
            else:
                running.send_signal(signal.SIGINT if end == "interrupt" else signal.SIGTERM)
            out, err = running.communicate(timeout=60)
        finally:
            running.kill()
            running.wait()
    assert running.returncode == 0, err
    body = json.loads(out)
    (served,) = [
        place for place in body["places"] if READ_CONFIG in [frame["function"] for frame in place["user"]]
    ]
    assert 23 - body["lost"]["count"] <= served["count"] <= 23
    assert served["threads"][0]["pid"] == process.pid
    assert body["ended"] == ([process.pid] if end == "death" else [])
    assert list(tmp_path.iterdir()) == []


def test_user_without_privileges_is_told(nobodys_python: tuple[str, dict[str, str]]) -> None:
    interpreter, environment = nobodys_python
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", interpreter, "-m", "tailspan"]
    done = subprocess.run(
        [*command, "stacks", "--pid", "1"], env=environment, cwd="/", capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert "use sudo" in done.stderr
    assert done.stderr.count("\n") == 1
