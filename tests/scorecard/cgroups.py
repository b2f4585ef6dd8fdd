"""Cgroups, v1 or v2: a larger share of the CPUs than what else runs on the machine, and the worker's limits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tailspan.errors import CannotError
from tests.cgroups import PERIOD_US, ROOT, remove

#: Shares of a CPU: all of the scorecard's against the rest of the machine; and inside it.
ALL, WORKER, NEIGHBOURS, OTHERS = 256 * 1024, 1024, 4 * 1024, 1024


class Cgroups:
    """Made, the calling process and those that it starts come before all others on the machine.

    What else runs here is not among the faults. The worker joins a group of its own inside, with all its threads.
    """

    def __init__(self) -> None:
        self.unified = (ROOT / "cgroup.controllers").exists()
        name = f"tailspan-scorecard-{os.getpid()}"
        self._cpu = ROOT if self.unified else ROOT / "cpu"
        self._before = self._cpu / _group_of_this_process("" if self.unified else "cpu")
        top = self._cpu / name
        worker, self._neighbours, others = top / "worker", top / "neighbours", top / "others"
        self._worker = {
            controller: worker if self.unified or controller == "cpu" else ROOT / controller / name
            for controller in ("cpu", "memory", "freezer")
        }
        self._made: list[Path] = []
        try:
            for group in (top, others, self._neighbours, *self._worker.values()):
                if self.unified and group is not top:
                    (group.parent / "cgroup.subtree_control").write_text("+cpu +memory")
                if group not in self._made:
                    group.mkdir()
                    self._made.append(group)
            for group, shares in ((top, ALL), (worker, WORKER), (self._neighbours, NEIGHBOURS), (others, OTHERS)):
                file, value = ("cpu.weight", shares * 100 // 1024) if self.unified else ("cpu.shares", shares)
                (group / file).write_text(str(min(10_000, value)))
            (others / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            self.close()
            raise CannotError(f"cannot make a cgroup: {error}") from None

    def join_neighbours(self, pid: int) -> None:
        (self._neighbours / "cgroup.procs").write_text(str(pid))

    def join(self, pid: int, *controllers: str) -> None:
        """The worker's groups: all of them, or those of some controllers."""
        for controller in controllers or self._worker:
            (self._worker[controller] / "cgroup.procs").write_text(str(pid))

    @contextlib.contextmanager
    def cpu_quota(self, ms: int) -> Iterator[None]:
        """So many ms of CPU time in 100 ms."""
        if self.unified:
            yield from self._limit("cpu", "cpu.max", f"{ms * 1000} {PERIOD_US}", f"max {PERIOD_US}")
        else:
            yield from self._limit("cpu", "cpu.cfs_quota_us", str(ms * 1000), "-1")

    @contextlib.contextmanager
    def memory_above_usage(self, bytes_: int) -> Iterator[None]:
        """A hard limit, so far above what is in use now."""
        usage, limit, none = (
            ("current", "max", "max") if self.unified else ("usage_in_bytes", "limit_in_bytes", "-1")
        )
        used = int((self._worker["memory"] / f"memory.{usage}").read_text())
        yield from self._limit("memory", f"memory.{limit}", str(used + bytes_), none)

    def freezer(self) -> tuple[Path, str, str]:
        """The file, and what is written into it to freeze and to thaw."""
        if self.unified:
            return self._worker["freezer"] / "cgroup.freeze", "1", "0"
        return self._worker["freezer"] / "freezer.state", "FROZEN", "THAWED"

    def thaw(self) -> None:
        path, _, thawed = self.freezer()
        path.write_text(thawed)

    def cpu_stat(self) -> Path:
        return self._worker["cpu"] / "cpu.stat"

    def _limit(self, controller: str, file: str, value: str, none: str) -> Iterator[None]:
        path = self._worker[controller] / file
        path.write_text(value)
        try:
            yield
        finally:
            path.write_text(none)

    def close(self) -> None:
        """When the processes in them have ended, but for this one."""
        (self._before / "cgroup.procs").write_text(str(os.getpid()))
        remove(self._made)


def _group_of_this_process(controller: str) -> str:
    """Below the root of that controller's hierarchy; "": the unified one."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and (controller or not controllers):
            return path.lstrip("/")
    return ""
