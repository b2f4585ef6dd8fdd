"""What cannot be had is said, with its reason, and takes nothing else along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tailspan.collect.bpf import btf, preflight
from tailspan.collect.bpf.btf import VMLINUX
from tailspan.collect.bpf.programs import Options
from tailspan.collect.bpf.source import BpfSource
from tailspan.errors import CannotError, ProbeError
from tailspan.wire.events import LAYOUTS
from tests.kernel.sleeper import sleep_23_times, sleeping_on_order, voluntary

pytestmark = pytest.mark.kernel


def kernel_without(tracepoint: str, folder: Path) -> Path:
    """This kernel's BTF, in which one tracepoint has another name."""
    blob = VMLINUX.read_bytes()
    name = b"\0btf_trace_" + tracepoint.encode() + b"\0"
    assert blob.count(name) == 1
    path = folder / "vmlinux"
    path.write_bytes(blob.replace(name, name.replace(b"_", b"X")))
    return path


def test_a_kernel_without_btf_is_told_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(CannotError, match="CONFIG_DEBUG_INFO_BTF"):
        BpfSource(Options(vmlinux=tmp_path / "absent"))


def test_btf_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(b"no BTF at all")
    with pytest.raises(CannotError, match="not readable as BTF"):
        BpfSource(Options(vmlinux=tmp_path / "vmlinux"))


def test_a_missing_tracepoint_takes_out_its_probe_and_no_other(
    open_source: Callable[..., BpfSource], tmp_path: Path
) -> None:
    source = open_source(vmlinux=kernel_without("softirq_entry", tmp_path))

    assert not source.status["irq"].attached
    assert source.status["irq"].why == "this kernel has no softirq_entry"
    assert source.status["sched"].attached
    source.tune(short_wait_ns=1)
    with sleeping_on_order() as sleeper:
        source.follow([sleeper.pid])
        waited = sleep_23_times(sleeper)
        cycles = source.drain().cycles
    assert len(voluntary(cycles)) == waited
    assert not cycles["irq_ns"].any()


def test_a_missing_optional_tracepoint_costs_nothing(
    open_source: Callable[..., BpfSource], tmp_path: Path
) -> None:
    source = open_source(vmlinux=kernel_without("local_timer_entry", tmp_path))

    assert source.status["irq"].attached


def test_a_probe_that_is_not_whole_works_and_says_what_it_lacks(
    open_source: Callable[..., BpfSource], tmp_path: Path
) -> None:
    if not btf.kernel_has(["btf_trace_sock_recv_length"]):
        pytest.skip("this kernel has no sock_recv_length to be without")
    status = open_source(vmlinux=kernel_without("sock_recv_length", tmp_path)).status["tcp"]

    assert status.attached
    assert (status.why, status.mend) == ("this kernel has no sock_recv_length", "a newer kernel")


def test_without_the_scheduler_there_is_no_agent(tmp_path: Path) -> None:
    with pytest.raises(CannotError, match="probe sched: this kernel has no sched_waking"):
        BpfSource(Options(vmlinux=kernel_without("sched_waking", tmp_path)))


def test_a_disabled_probe_says_so(open_source: Callable[..., BpfSource]) -> None:
    source = open_source(disabled=frozenset({"irq", "syscalls"}))

    assert source.status["irq"].why == "disabled by configuration"
    source.attach("syscalls")
    assert not source.status["syscalls"].attached


def test_a_program_that_the_kernel_refuses_is_named_and_the_rest_loads(
    open_source: Callable[..., BpfSource], tmp_path: Path
) -> None:
    # GIVEN an object whose softirq program wants a tracepoint that no kernel has, and BTF that claims it
    blob = (Path(preflight.__file__).parents[2] / "_bpf" / "tailspan.bpf.o").read_bytes()
    broken = tmp_path / "broken.bpf.o"
    broken.write_bytes(blob.replace(b"tp_btf/softirq_exit\0", b"tp_btf/softirq_none\0"))

    source = open_source(object_path=broken)

    assert not source.status["irq"].loaded
    assert "on_softirq_exit" in source.status["irq"].why
    assert source.status["sched"].attached


def test_an_object_whose_records_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, "cpu_slice", np.dtype([("start_mono_ns", "<i8")]))

    with pytest.raises(ProbeError, match=r"cpu_slice .* run 'make events'"):
        BpfSource()


def test_a_missing_object_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="make bpf"):
        BpfSource(Options(object_path=tmp_path / "none.o"))
