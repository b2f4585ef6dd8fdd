"""A program that sleeps 23 times whenever it is told to, and how often it did by the kernel's own count."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tailspan.wire.syscalls import SYSCALLS
from tests.conftest import eventually
from tests.workloads import Program, program

NANOSLEEP, READ = SYSCALLS.index("clock_nanosleep"), SYSCALLS.index("read")

_SLEEPS = """
print("begun", flush=True)
for line in sys.stdin:
    for _ in range(23): time.sleep(0.003)
    print("slept", flush=True)
"""


@contextlib.contextmanager
def sleeping_on_order(cpu: int | None = None) -> Iterator[Program]:
    """It waits for its orders, in read(2)."""
    with program(_SLEEPS, cpu=cpu) as running:
        running.go()
        assert running.line() == "begun"
        _begun_to_wait(running)
        yield running


def sleep_23_times(sleeper: Program) -> int:
    """From one wait for orders to the next. Returns how many waits ended meanwhile, by the kernel's count of those
    that began: the first is that for orders, most others are the sleeps.

    Not all of them: a timer that ends while the thread is still on its way to sleep keeps it awake. Nor are they
    alone: a page may have to be read.
    """
    before = _begun_to_wait(sleeper)
    sleeper.go()
    assert sleeper.line() == "slept"
    return _begun_to_wait(sleeper) - before


def voluntary(cycles: np.ndarray) -> np.ndarray:
    """Those in which it waited; not where it was preempted, be it on its way to sleep."""
    return cycles[cycles["state"] != 0]


def seams(cycles: np.ndarray) -> np.ndarray:
    """Between which turns of a thread something was lost."""
    return np.asarray(cycles["run_mono_ns"][1:] != cycles["on_mono_ns"][:-1])


def _begun_to_wait(sleeper: Program) -> int:
    """How often it has, the wait for orders included, which it is in."""
    folder = Path(f"/proc/{sleeper.pid}")
    eventually(lambda: (folder / "syscall").read_text().split()[0] == str(READ), "it waits for orders")
    status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines())
    return int(status["voluntary_ctxt_switches"])
