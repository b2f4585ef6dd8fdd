"""Processes of this host that fit what is to be followed: a pid, unit, cgroup, container, program or port.

A thread of its own looks at all processes about once a second, whatever hangs in /proc meanwhile. Which processes
there are, and who listens where, is the kernel's word (``bpf/owner.bpf.c``), whoever owns them; where it cannot be
had, /proc says the first, and nobody the second. The path of a cgroup anybody may read; the program of another
user's process only with CAP_SYS_PTRACE: else the first of its arguments stands for it, and that is the process's
own word. So a process can have itself followed, but none can keep another from being followed.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import logging
import os
import re
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tailspan import log
from tailspan.collect.identity_path import parse
from tailspan.config import Follow
from tailspan.errors import ProbeError

logger = logging.getLogger(__name__)

Table = npt.NDArray[np.void]

EVERY_S = 1.0
#: A process is looked at anew in each look for so long after it was first seen: it becomes what it is to be.
YOUNG_S = 10.0
#: CPU time that one look takes for older ones, which are looked at in turn.
OLD_CPU_S = 0.005
#: CPU time that looking may take in all, of one CPU: else it is done less often.
CPU_SHARE = 0.02
#: Processes that are followed because of rules; of more, those with the highest numbers are not.
MAX_TARGETS = 4096
#: A look that takes longer hangs, at a process whose memory is locked.
HANGS_S = 30.0
_CLOSE_S = 1.0

_MAX_CALLED = 4
_MAX_CGROUPS = 1024
_PF_KTHREAD = 0x0020_0000
_MAX_READ = 4096
_NAMES = ("k8s.namespace.name", "k8s.pod.name", "k8s.container.name")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a process is followed."""

    kind: str  #: a key of ``follow`` in the singular; ``socket``, ``otlp`` or ``peer`` where no rule asks for it
    name: str = ""  #: as it is configured

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


@dataclass(frozen=True, slots=True)
class Target:
    started: int  #: with the pid, the process's identity
    reason: Reason


@dataclass(slots=True)
class Facts:
    """What rules go by, of one process."""

    started: int
    first_s: float
    cgroups: tuple[str, ...] = ()  #: one, or several where hierarchies differ
    program: str = ""  #: /proc/PID/exe; "" where it may not be read
    called: tuple[
        str, ...
    ] = ()  #: first arguments that it had since it is this program: the earliest, and the last
    reason: Reason | None = None


class Kernel(Protocol):
    """What is asked of :class:`~tailspan.collect.bpf.source.BpfSource`."""

    def socket_owners(self, port: int) -> Table: ...

    def processes(self) -> Table: ...


class Names(Protocol):
    """What is asked of :class:`~tailspan.collect.identity.Identities`."""

    def of(self, paths: Collection[str]) -> dict[str, dict[str, str]]: ...


@dataclass(frozen=True, slots=True)
class _Rule:
    reason: Reason
    pattern: re.Pattern[str]


class Rules:
    """``follow`` of the configuration, ready to be compared with processes."""

    def __init__(self, follow: Follow) -> None:
        self.pids = {pid: Reason("pid") for pid in follow.pids}
        self.ports = {port: Reason("port", str(port)) for port in follow.ports}
        self.units = [_Rule(Reason("unit", name), _glob(name)) for name in follow.units]
        self.cgroups = [_Rule(Reason("cgroup", path), _subtree(path)) for path in follow.cgroups]
        self.containers = [_Rule(Reason("container", name), _container(name)) for name in follow.containers]
        self.programs = [_Rule(Reason("executable", path), _glob(path)) for path in follow.executables]
        # Many processes share few cgroups.
        self._by_cgroups = functools.lru_cache(_MAX_CGROUPS)(self._fit_cgroups)

    def reasons(self) -> set[Reason]:
        """All that these rules can give."""
        patterns = (*self.units, *self.cgroups, *self.containers, *self.programs)
        return {*self.pids.values(), *self.ports.values(), *(rule.reason for rule in patterns)}

    def fit(self, pid: int, facts: Facts, names: Mapping[str, Collection[str]]) -> Reason | None:
        """The first rule that it fits, but for ports. ``names``: cgroup -> what its container may be called."""
        return (
            self.pids.get(pid)
            or self._by_cgroups(facts.cgroups)
            or _first(self.containers, (name for path in facts.cgroups for name in names.get(path, ())))
            or _first(self.programs, (facts.program, *facts.called))
        )

    def _fit_cgroups(self, paths: tuple[str, ...]) -> Reason | None:
        units = (part for path in paths for part in path.split("/") if _is_unit(part))
        return _first(self.units, units) or _first(self.cgroups, paths)


class Targets:
    """Looks from a thread of its own, as long as there is a rule; :meth:`take` never waits."""

    def __init__(
        self,
        kernel: Kernel,
        names: Names,
        follow: Follow,
        proc: Path = Path("/proc"),
    ) -> None:
        self._kernel, self._names, self._proc = kernel, names, proc
        self._own = os.getpid()
        self._changed = threading.Condition()
        self._closed = False
        self._news: dict[int, Target] | None = None
        self._facts: dict[int, Facts] = {}
        self._turn = 0  # the pid that is looked at next, of those that have been there for long
        self._look_began_s = 0.0  # 0 between two looks
        self._at_pid = 0
        self._said: set[str] = set()
        self._thread: threading.Thread | None = None
        self.rules = Rules(Follow())
        self.change(follow)

    def change(self, follow: Follow) -> None:
        """Look by these rules from now on, and at once."""
        with self._changed:
            had, self.rules = self.rules.reasons(), Rules(follow)
            self._said.clear()
            self._news = {} if had and not self.rules.reasons() else None
            if self.rules.reasons() and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="targets", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def take(self) -> dict[int, Target] | None:
        """pid -> why to follow it, as of the last look; None where there was none since the last call."""
        began_s = self._look_began_s
        if began_s and time.monotonic() - began_s > HANGS_S:
            log.once_per(600, "targets", logger, "looking for processes to follow hangs at pid %d", self._at_pid)
        with self._changed:
            news, self._news = self._news, None
            return news

    def close(self) -> None:
        """A thread that hangs is left behind; it ends with the process."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        looked_by, pause_s = Rules(Follow()), 0.0
        while (rules := self._wait(looked_by, pause_s)) is not None:
            before_s, self._look_began_s = time.thread_time(), time.monotonic()
            try:
                found = self._look(rules, everything=rules is not looked_by)
            except Exception as error:  # whatever /proc shows, those who are followed stay followed
                log.once_per(60, "targets-failed", logger, "looking for processes to follow: %r", error)
            else:
                with self._changed:
                    if self.rules is rules:
                        self._news = found
            self._look_began_s = 0.0
            looked_by, pause_s = rules, max(EVERY_S, (time.thread_time() - before_s) / CPU_SHARE)

    def _wait(self, looked_by: Rules, pause_s: float) -> Rules | None:
        """Until it is time to look again: the rules to look by; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.rules is not looked_by, pause_s)
            self._changed.wait_for(lambda: self._closed or self.rules.reasons())
            return None if self._closed else self.rules

    def _look(self, rules: Rules, everything: bool) -> dict[int, Target]:
        now, before = time.monotonic(), self._facts
        due, others = list[int](), list[int]()
        self._facts = {}
        for pid, started in self._processes():
            facts = before.get(pid)
            if facts is None or facts.started != started:
                facts = Facts(started, now if before else -YOUNG_S)
                due.append(pid)
            else:
                (due if everything or now - facts.first_s < YOUNG_S else others).append(pid)
            self._facts[pid] = facts
        self._facts.pop(self._own, None)
        seen = [pid for pid in itertools.chain(due, self._in_turn(others)) if self._see(rules, pid)]
        names = self._names_of_containers(seen) if rules.containers else {}
        for pid in seen:
            self._facts[pid].reason = rules.fit(pid, self._facts[pid], names)
        reasons = self._listening(rules) | {
            pid: facts.reason for pid, facts in self._facts.items() if facts.reason
        }
        if len(reasons) > MAX_TARGETS:
            self._say("many", "%d processes fit [follow]: only %d are followed", len(reasons), MAX_TARGETS)
        chosen = sorted(reasons.keys() & self._facts.keys())[:MAX_TARGETS]
        return {pid: Target(self._facts[pid].started, reasons[pid]) for pid in chosen}

    def _in_turn(self, pids: list[int]) -> Iterator[int]:
        """As many as time allows, from where the last look stopped."""
        pids.sort()
        first, began_s = bisect.bisect(pids, self._turn), time.thread_time()
        for pid in pids[first:] + pids[:first]:
            self._turn = pid
            yield pid
            if time.thread_time() - began_s > OLD_CPU_S:
                return

    def _see(self, rules: Rules, pid: int) -> bool:
        """Whether there is such a process, other than this one."""
        facts = self._facts.get(pid)
        if facts is None:
            return False
        self._at_pid = pid
        if rules.units or rules.cgroups or rules.containers:
            facts.cgroups = cgroup_paths(_read(f"{self._proc}/{pid}/cgroup"))
        if rules.programs:
            self._see_program(pid, facts)
        return True

    def _see_program(self, pid: int, facts: Facts) -> None:
        """A process may write over its arguments, and between fork and exec it has its parent's."""
        program = ""
        try:
            program = str(Path(f"{self._proc}/{pid}/exe").readlink()).removesuffix(" (deleted)")
        except PermissionError:
            self._say(
                "programs",
                "follow.executables: the programs of other users' processes cannot be seen without "
                "CAP_SYS_PTRACE: the first of their arguments stands for it",
            )
        except OSError:  # it has ended
            pass
        if program != facts.program:
            facts.program, facts.called = program, ()
        first, _, _ = _read(f"{self._proc}/{pid}/cmdline").partition(b"\0")
        called = dict.fromkeys((*facts.called, os.fsdecode(first)))
        facts.called = (*list(called)[: _MAX_CALLED - 1], *list(called)[_MAX_CALLED - 1 :][-1:])

    def _names_of_containers(self, pids: list[int]) -> dict[str, list[str]]:
        """cgroup -> the id of the container that it is in, and namespace/pod/container where they are known."""
        paths = {path for pid in pids for path in self._facts[pid].cgroups}
        names = {path: [name.container_id] for path in paths if (name := parse(path)).container_id}
        for path, said in self._names.of(names).items():
            names[path].append("/".join(said.get(key, "") for key in _NAMES))
        return names

    def _processes(self) -> Iterator[tuple[int, int]]:
        """(pid, when it was started); not threads of the kernel."""
        try:
            rows = self._kernel.processes()
        except (ProbeError, OSError):
            yield from self._processes_of_proc()
        else:
            yield from rows[["tgid", "started_mono_ns"]].tolist()

    def _processes_of_proc(self) -> Iterator[tuple[int, int]]:
        for entry in self._proc.iterdir():
            if entry.name.isdigit():
                fields = _read(str(entry / "stat")).rpartition(b")")[2].split()
                if len(fields) > 19 and not int(fields[6]) & _PF_KTHREAD:
                    yield int(entry.name), int(fields[19])

    def _listening(self, rules: Rules) -> dict[int, Reason]:
        """Who listens on a port of the rules: what is connected to port 0 is connected to nothing."""
        if not rules.ports:
            return {}
        try:
            rows = self._kernel.socket_owners(0)
        except (ProbeError, OSError) as error:
            self._say("ports", "follow.ports: cannot see who listens: %s", error)
            return {}
        return {pid: rules.ports[port] for pid, port in rows[["tgid", "port"]].tolist() if port in rules.ports}

    def _say(self, what: str, message: str, *args: object) -> None:
        """Once for each configuration."""
        if what not in self._said:
            self._said.add(what)
            logger.warning(message, *args)


def _glob(pattern: str, after: str = "") -> re.Pattern[str]:
    return re.compile("[^/]*".join(map(re.escape, pattern.split("*"))) + after)


def _subtree(path: str) -> re.Pattern[str]:
    return _glob(path.rstrip("/"), "(/.*)?")


def _container(name: str) -> re.Pattern[str]:
    return _glob(name) if "/" in name else re.compile(re.escape(name) + "[0-9a-f]*")


def _first(rules: list[_Rule], texts: Iterable[str]) -> Reason | None:
    if not rules:
        return None
    known = [text for text in texts if text]
    return next((rule.reason for rule in rules if any(map(rule.pattern.fullmatch, known))), None)


def _is_unit(part: str) -> bool:
    return part.endswith((".service", ".scope", ".slice"))


@functools.lru_cache(_MAX_CGROUPS)
def cgroup_paths(text: bytes) -> tuple[str, ...]:
    """Paths of /proc/PID/cgroup. From inside another cgroup namespace they begin with "..", up to its root."""
    paths = (line.split(":", 2)[2] for line in os.fsdecode(text).split("\n") if line.count(":") >= 2)
    return tuple(dict.fromkeys(re.sub(r"^(?:/\.\.)+(?=/|$)", "", path) or "/" for path in paths))


def _read(path: str) -> bytes:
    """Its beginning; b"" where it has ended, or is not ours to read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _MAX_READ)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
