"""The mmapped ring: what was drained is ours, whatever is written afterwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tailspan.collect.bpf.source import BpfSource
from tests.conftest import eventually
from tests.kernel.sleeper import sleep_23_times, sleeping_on_order
from tests.workloads import LAST_CPU, program

pytestmark = pytest.mark.kernel

NAPS = """
for line in sys.stdin:
    times, seconds = line.split()
    for _ in range(int(times)): time.sleep(float(seconds))
    print("done", flush=True)
"""


def test_a_drained_record_does_not_change_when_the_ring_wraps(open_source: Callable[..., BpfSource]) -> None:
    # GIVEN rings of one page (18 records), and one record drained alone
    source = open_source(cycle_ring_bytes=4096, short_wait_ns=0)
    with program(NAPS, cpu=LAST_CPU) as worker:
        source.follow([worker.pid])
        worker.go()
        alone: list[np.ndarray] = []
        assert worker.process.stdin is not None

        def nap(times: int, seconds: float) -> None:
            worker.process.stdin.write(f"{times} {seconds}\n")  # type: ignore[union-attr]
            worker.process.stdin.flush()  # type: ignore[union-attr]

        def one_came() -> bool:
            cycles = source.drain().cycles
            if len(cycles) == 1:
                alone.append(cycles)
            return bool(alone)

        nap(7, 0.05)  # long ones: its records come one by one
        eventually(one_came, "a record is drained alone")
        kept = alone[0].tobytes()
        assert worker.line() == "done"

        # WHEN the ring is written around several times
        total = 0
        nap(211, 0.001)
        while total < 101:
            total += len(source.drain().cycles)
        assert worker.line() == "done"

    # THEN it is what it was
    assert alone[0].tobytes() == kept
    assert alone[0]["tid"].tolist() == [worker.pid]


@pytest.mark.both_loaders
def test_the_record_that_makes_a_ring_half_full_wakes_the_reader(open_source: Callable[..., BpfSource]) -> None:
    # GIVEN rings of 75 records
    source = open_source(cycle_ring_bytes=1 << 14, short_wait_ns=0)
    assert source._loaded.rings["cycle_rings"][0].capacity == 75
    with sleeping_on_order(LAST_CPU) as sleeper:
        source.follow([sleeper.pid])
        for _ in range(2):
            sleep_23_times(sleeper)
            assert not source.wait(0)
            for _ in range(2):
                sleep_23_times(sleeper)
            assert source.wait(20)
            # THEN once, whatever follows
            for _ in range(3):
                sleep_23_times(sleeper)
                assert not source.wait(0)
            assert source.drain().losses["count"].sum() > 0


def test_a_source_can_be_closed_while_its_records_are_held(open_source: Callable[..., BpfSource]) -> None:
    source = open_source()
    with program("time.sleep(0.001)") as worker:
        source.follow([worker.pid])
        worker.go()
        worker.finish()
    batch = source.drain()

    source.close()

    assert len(batch.cycles) >= 1
    assert (batch.cycles["tid"] == worker.pid).all()
