from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tailspan.collect.bpf import headers
from tailspan.collect.bpf.stacks import MAX_PROCESSES, outside_scheduler
from tests.unit.cli.conftest import Run

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="what is asked first is whether it is root")


@pytest.fixture(scope="module")
def ended_pid() -> int:
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


def test_process_that_is_not_there_is_wrong_usage(run: Run, ended_pid: int) -> None:
    for pid in (ended_pid, 2**40):
        done = run("stacks", "--pid", os.getpid(), "--pid", pid)
        assert (done.code, done.out) == (2, "")
        assert done.err == f"tailspan: no process {pid}\n"


def test_thread_is_told_from_a_process(run: Run) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        done = run("stacks", "--pid", thread.native_id)
    finally:
        over.set()
        thread.join()
    assert done.code == 2
    assert f"{thread.native_id} is a thread of process {os.getpid()}: --pid {os.getpid()}" in done.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "--pid"),
        (["--pid", "0"], "no positive whole number"),
        (["--pid", "1", "--for", "2h"], "--for: at most 3600 s"),
        (["--pid", "1", "--min", "5s"], "--min is not shorter than --for"),
        (["--pid", "1", "--min", "soon"], "no duration"),
        (["--pid", "1", "--json", "--folded"], "not allowed with"),
        ([part for pid in range(1, MAX_PROCESSES + 2) for part in ("--pid", pid)], f"at most {MAX_PROCESSES}"),
    ],
)
def test_wrong_usage_is_exit_code_2(argv: list[object], said: str, run: Run) -> None:
    done = run("stacks", *argv)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_user_who_is_not_root_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    done = run("stacks", "--pid", os.getpid())
    assert (done.code, done.out) == (3, "")
    assert "use sudo" in done.err


@ROOT_ONLY
def test_missing_bcc_is_one_line_with_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    monkeypatch.setattr(headers, "PACKAGES", tmp_path)
    done = run("stacks", "--pid", os.getpid())
    assert (done.code, done.out) == (3, "")
    assert "apt-get install python3-bpfcc" in done.err
    assert done.err.count("\n") == 1


def test_frames_of_the_scheduler_are_left_out() -> None:
    def named(*names: str) -> list[tuple[str, str]]:
        return [(name, "kernel") for name in names]

    program = named("bpf_prog_1b7f", "bpf_trace_run4", "__traceiter_sched_switch")
    assert outside_scheduler([*program, *named("__schedule", "schedule", "do_nanosleep")]) == named("do_nanosleep")
    assert outside_scheduler(named("__schedule", "preempt_schedule_irq")) == named("preempt_schedule_irq")
    assert outside_scheduler(named("schedule", "pipe_read")) == named("pipe_read")
    assert outside_scheduler(named("pipe_read")) == named("pipe_read")
    assert outside_scheduler([]) == []
