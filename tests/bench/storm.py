"""The context-switch storm (``storm.c``) as a process of ours: compiled here, run in segments, ended by pid."""

from __future__ import annotations

import contextlib
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tailspan.errors import CannotError

SOURCE = Path(__file__).with_name("storm.c")
COMPILERS = ("clang", "clang-14", "clang-15", "clang-16", "clang-19", "cc")

#: How often the agent drains its rings, by default.
TICK_S = 0.015


@dataclass(frozen=True, slots=True)
class Segment:
    round_trips: int
    seconds: float

    @property
    def per_s(self) -> float:
        return self.round_trips / self.seconds


class Storm:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.pid = process.pid
        self._stdin, self._stdout = process.stdin, process.stdout

    def run(self, seconds: float, tick: Callable[[], object] | None = None) -> Segment:
        """Storm for so long; meanwhile, and once more when it is over, call ``tick`` on the agent's timer."""
        print(round(seconds * 1000), file=self._stdin, flush=True)
        while tick and not select.select([self._stdout], [], [], 0)[0]:
            time.sleep(TICK_S)
            tick()
        round_trips, took_ns = map(int, self._stdout.readline().split())
        if tick:
            tick()
        return Segment(round_trips, took_ns / 1e9)


@contextlib.contextmanager
def storm(binary: Path, pairs: int, work_ns: int = 0) -> Iterator[Storm]:
    """``binary``: as :func:`build` made it. Its threads are all there, asleep, when this gives it."""
    command = [str(binary), str(pairs), str(work_ns)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield Storm(process)
        finally:
            process.kill()


def build(folder: Path) -> Path:
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise CannotError("the storm needs a C compiler: make deps")
    binary = folder / "storm"
    subprocess.run([compiler, "-O2", "-Wall", "-pthread", SOURCE, "-o", binary], check=True)
    return binary
