"""System call latency from entry to exit, while the probe is attached and only then."""

from __future__ import annotations

import pytest

from tailspan.collect.bpf.source import BpfSource
from tailspan.collect.bpf.syscalls import SyscallTracing
from tailspan.wire.syscalls import SYSCALLS
from tests.workloads import program

pytestmark = [pytest.mark.kernel, pytest.mark.both_loaders]

MS = 1_000_000
GETPPID, NANOSLEEP = SYSCALLS.index("getppid"), SYSCALLS.index("clock_nanosleep")

CALLS = """
for line in sys.stdin:
    for _ in range(23): os.getppid()
    for _ in range(7): time.sleep(0.003)
    print("done", flush=True)
"""


def test_calls_are_counted_and_long_ones_recorded_only_while_attached(source: BpfSource) -> None:
    with program(CALLS) as worker:
        source.follow([worker.pid])
        worker.go()
        # WHEN it calls before, while and after the probe is attached
        for attached in (False, True, False):
            (source.attach if attached else source.detach)("syscalls")
            worker.go()
            assert worker.line() == "done"

    # THEN only those in the middle are there
    hists = {nr: hist for tgid, nr, hist in source.syscall_histograms() if tgid == worker.pid}
    assert int(hists[GETPPID]["count"]) == 23
    assert int(hists[GETPPID]["slots"].sum()) == 23
    assert int(hists[NANOSLEEP]["count"]) == 7
    assert int(hists[NANOSLEEP]["total_ns"]) >= 7 * 3 * MS
    records = source.drain().syscalls
    long = records[(records["nr"] == NANOSLEEP) & (records["tid"] == worker.pid)]
    assert len(long) == 7
    assert (long["exit_mono_ns"] - long["enter_mono_ns"] >= 3 * MS).all()
    assert (long["ret"] == 0).all()
    assert not (records["nr"] == GETPPID).any()
    # and an answer names the longest of them
    tracing = SyscallTracing(source, "off", 60)
    tracing.keep(records)
    assert [call["syscall"] for call in tracing.slowest()].count("clock_nanosleep") == 7
    assert tracing.slowest()[0]["ns"] == int((records["exit_mono_ns"] - records["enter_mono_ns"]).max())


def test_a_slow_request_attaches_the_probe_where_that_is_configured(source: BpfSource) -> None:
    off, triggered = SyscallTracing(source, "off", 60), SyscallTracing(source, "triggered", 60)

    off.trigger()
    off.poll()
    assert not off.attached
    triggered.trigger()
    triggered.poll()
    assert triggered.attached
    # the other one's time is over: it lets go
    off.poll()
    assert not triggered.attached


def test_what_the_control_socket_asks_is_checked(source: BpfSource) -> None:
    tracing = SyscallTracing(source, "off", 60)

    for request in ({"do": "dance"}, {"do": "syscalls"}, {"do": "syscalls", "seconds": -1}):
        answer = tracing.answer(request)()
        assert answer is not None
        assert answer["ok"] is False
    assert tracing.answer({"do": "syscalls", "seconds": 30})() is None
    tracing.poll()
    assert tracing.attached
