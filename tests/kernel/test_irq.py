"""CPU time that interrupts took from a thread."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tailspan.collect.bpf.source import BpfSource
from tests.workloads import LAST_CPU, program

pytestmark = [pytest.mark.kernel, pytest.mark.both_loaders]

MS = 1_000_000

#: Loopback: the receiving half of every packet is a softirq on the sender's own CPU.
PACKETS = """
import socket
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); receiver.bind(("127.0.0.1", 0))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sender.connect(receiver.getsockname())
for _ in range(int(sys.argv[1])):
    sender.send(b"x" * 1000)
    receiver.recv(2000)
time.sleep(0.002)
"""
SPIN_1S = "until = time.monotonic() + 1\nwhile time.monotonic() < until: pass\ntime.sleep(0.002)"


def interrupted_ns(source: BpfSource, body: str, *arguments: object) -> tuple[int, int]:
    """(ns taken by interrupts, ns on a CPU) of a program that ends with a sleep, which writes its last turn."""
    with program(body, *arguments, cpu=LAST_CPU) as worker:
        source.follow([worker.pid])
        worker.go()
        worker.finish()
    cycles = source.drain().cycles
    cycles = cycles[cycles["tid"] == worker.pid]
    on_cpu = cycles["off_mono_ns"] - cycles["run_mono_ns"]
    assert np.all(cycles["irq_ns"] <= on_cpu)
    return int(cycles["irq_ns"].sum()), int(on_cpu.sum())


def test_softirqs_are_taken_out_of_the_threads_time_and_grow_with_the_packets(source: BpfSource) -> None:
    few, _ = interrupted_ns(source, PACKETS, 101)
    many, on_cpu = interrupted_ns(source, PACKETS, 10_007)

    # a packet's way up takes between a tenth of a microsecond and twenty
    assert 100 * 10_007 < many < 20_000 * 10_007
    assert many > 10 * few
    assert many < 0.9 * on_cpu


def test_the_tick_is_seen_and_is_small(source: BpfSource) -> None:
    taken, on_cpu = interrupted_ns(source, SPIN_1S)

    assert on_cpu > 500 * MS
    assert 10_000 < taken < 0.05 * on_cpu


def test_without_the_probe_nothing_is_booked(open_source: Callable[..., BpfSource]) -> None:
    taken, on_cpu = interrupted_ns(open_source(disabled=frozenset({"irq"})), PACKETS, 1009)

    assert taken == 0
    assert on_cpu > 0
