"""Cgroups, v1 or v2: the worker comes first, the agent has its unit's limits, those who make faults come last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tailspan.errors import CannotError
from tests.cgroups import PERIOD_US, ROOT, remove

#: Of systemd/tailspan.service.
CPU_QUOTA, MEMORY_MAX = 0.5, 512 << 20
#: Shares of a CPU: all of it against the rest of the machine; and inside.
ALL = 8 * 1024
SHARES = {"worker": 4096, "agent": 1024, "load": 2048, "strangers": 128}


class Cgroups:
    """``worker``, ``agent``, ``load`` and ``strangers`` below one of its own. Raises :class:`CannotError`."""

    def __init__(self) -> None:
        self._unified = (ROOT / "cgroup.controllers").exists()
        self._tops = [ROOT] if self._unified else [ROOT / "cpu", ROOT / "memory"]
        self._name = f"tailspan-chaos-{os.getpid()}"
        self._made: list[Path] = []
        try:
            for top in self._tops:
                self._make(top / self._name)
                for name in SHARES:
                    self._make(top / self._name / name)
            self._shares(self._tops[0] / self._name, ALL)
            for name, shares in SHARES.items():
                self._shares(self._tops[0] / self._name / name, shares)
            self.limit_cpu(CPU_QUOTA)
            self.limit_memory(MEMORY_MAX)
        except OSError as error:
            self.close()
            raise CannotError(f"cannot make a cgroup: {error}") from None

    def files(self, name: str) -> list[Path]:
        """What a process writes its number into to join."""
        return [top / self._name / name / "cgroup.procs" for top in self._tops]

    def join(self, name: str, pid: int) -> None:
        for file in self.files(name):
            file.write_text(str(pid))

    @contextlib.contextmanager
    def agent_cpu(self, share: float) -> Iterator[None]:
        """The agent has no more than this share of a CPU."""
        self.limit_cpu(share)
        try:
            yield
        finally:
            self.limit_cpu(CPU_QUOTA)

    @contextlib.contextmanager
    def agent_memory(self, above_usage_bytes: int) -> Iterator[None]:
        """A hard limit so far above what the agent's group has in use."""
        self.limit_memory(self.agent_memory_in_use() + above_usage_bytes)
        try:
            yield
        finally:
            self.limit_memory(MEMORY_MAX)

    def agent_memory_in_use(self) -> int:
        return int(self._of_agent("memory", "current" if self._unified else "usage_in_bytes").read_text())

    def agent_throttled(self) -> int:
        """How often its group had used up its CPU time."""
        lines = self._of_agent("cpu", "stat").read_text().splitlines()
        return int(dict(line.split() for line in lines)["nr_throttled"])

    def agent_met_limit(self) -> int:
        """How often its group wanted more memory than it may have."""
        if not self._unified:
            return int(self._of_agent("memory", "failcnt").read_text())
        return int(
            dict(line.split() for line in self._of_agent("memory", "events").read_text().splitlines())["max"]
        )

    def limit_cpu(self, share: float) -> None:
        quota = int(share * PERIOD_US)
        if self._unified:
            self._of_agent("cpu", "max").write_text(f"{quota} {PERIOD_US}")
        else:
            self._of_agent("cpu", "cfs_quota_us").write_text(str(quota))

    def limit_memory(self, bytes_: int) -> None:
        self._of_agent("memory", "max" if self._unified else "limit_in_bytes").write_text(str(bytes_))

    def close(self) -> None:
        """When the processes in them have ended."""
        remove(self._made)

    def _of_agent(self, controller: str, file: str) -> Path:
        top = self._tops[0] if controller == "cpu" else self._tops[-1]
        return top / self._name / "agent" / f"{controller}.{file}"

    def _make(self, group: Path) -> None:
        if self._unified:
            (group.parent / "cgroup.subtree_control").write_text("+cpu +memory")
        group.mkdir()
        self._made.append(group)

    def _shares(self, group: Path, shares: int) -> None:
        if self._unified:
            (group / "cpu.weight").write_text(str(max(1, min(10_000, shares * 100 // 1024))))
        else:
            (group / "cpu.shares").write_text(str(shares))
