"""Which processes fit the rules: on a /proc that is written here, and on the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan.collect import targets as targets_module
from tailspan.collect.targets import (
    MAX_TARGETS,
    Facts,
    Reason,
    Rules,
    Table,
    Target,
    Targets,
    cgroup_paths,
)
from tailspan.config import Follow
from tailspan.errors import ProbeError
from tailspan.wire.events import SOCKET_OWNER
from tests.conftest import eventually

ID = "0123456789abcdef" * 4
POD = f"/kubepods.slice/kubepods-pod1234.slice/cri-containerd-{ID}.scope"
UNIT = "/system.slice/triton.service"


class Kernel:
    """What BpfSource says of processes and listeners."""

    def __init__(self) -> None:
        self.started: dict[int, int] = {}
        self.listening: list[tuple[int, int]] = []
        self.missing = False

    def processes(self) -> Table:
        return self._rows([(pid, started, 0) for pid, started in self.started.items()])

    def socket_owners(self, port: int) -> Table:
        assert port == 0
        return self._rows([(pid, self.started[pid], at) for pid, at in self.listening])

    def _rows(self, rows: list[tuple[int, int, int]]) -> Table:
        if self.missing:
            raise ProbeError("probe owners: disabled by configuration")
        table = np.zeros(len(rows), SOCKET_OWNER)
        for row, (pid, started, port) in zip(table, rows, strict=True):
            row["tgid"], row["started_mono_ns"], row["port"] = pid, started, port
        return table


class Names:
    """What the runtime's files say."""

    def __init__(self, names: dict[str, dict[str, str]] | None = None) -> None:
        self._names = names or {}

    def of(self, paths: Collection[str]) -> dict[str, dict[str, str]]:
        return {path: self._names[path] for path in paths if path in self._names}


class Proc:
    """A /proc of processes that are written down here."""

    def __init__(self, folder: Path, kernel: Kernel) -> None:
        self.folder, self.kernel = folder, kernel

    def add(self, pid: int, cgroup: str = "/", program: str = "", called: str = "", started: int = 1) -> None:
        at = self.folder / str(pid)
        shutil.rmtree(at, ignore_errors=True)
        at.mkdir()
        (at / "cgroup").write_text(f"0::{cgroup}\n")
        (at / "cmdline").write_bytes(called.encode() + b"\0--flag\0")
        (at / "stat").write_text(f"{pid} (a (b) c) S 1 1 1 0 -1 4194304 " + "0 " * 12 + f"{started} 0\n")
        if program:
            (at / "exe").symlink_to(program)
        self.kernel.started[pid] = started

    def end(self, pid: int) -> None:
        shutil.rmtree(self.folder / str(pid))
        del self.kernel.started[pid]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets_module, "EVERY_S", 0.02)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def proc(tmp_path: Path, kernel: Kernel) -> Proc:
    folder = tmp_path / "proc"
    folder.mkdir()
    return Proc(folder, kernel)


@contextmanager
def looking(proc: Proc, follow: Follow, names: Names | None = None) -> Iterator[Targets]:
    with closing(Targets(proc.kernel, names or Names(), follow, proc.folder)) as targets:
        yield targets


def next_look(targets: Targets) -> dict[int, Target]:
    """Of a look that began after this was called."""
    found: list[dict[int, Target]] = []

    def look() -> bool:
        if (news := targets.take()) is not None:
            found.append(news)
        return len(found) > 1  # the first may have begun before

    eventually(look, "two looks")
    return found[-1]


def first_look(targets: Targets) -> dict[int, str]:
    found: list[dict[int, Target]] = []

    def look() -> bool:
        if (news := targets.take()) is not None:
            found.append(news)
        return bool(found)

    eventually(look, "a look")
    return {pid: str(target.reason) for pid, target in found[0].items()}


@pytest.mark.parametrize(
    ("follow", "facts", "reason"),
    [
        (Follow(units=("triton.service",)), Facts(1, 0, (UNIT,)), "unit triton.service"),
        (Follow(units=("triton.service",)), Facts(1, 0, (UNIT + "/workers",)), "unit triton.service"),
        (Follow(units=("system.slice",)), Facts(1, 0, (UNIT,)), "unit system.slice"),
        (Follow(units=("vllm@*.service",)), Facts(1, 0, ("/a/vllm@7.service",)), "unit vllm@*.service"),
        (Follow(units=("vllm@*.service",)), Facts(1, 0, ("/a/vllm.service",)), ""),
        (Follow(units=("triton.service",)), Facts(1, 0, ("/system.slice/xtriton.service",)), ""),
        (Follow(units=("b.service",)), Facts(1, 0, ("/", "/a.slice/b.service")), "unit b.service"),
        (Follow(units=("*",)), Facts(1, 0, ("/docker/" + ID,)), ""),
        (Follow(cgroups=("/kubepods.slice",)), Facts(1, 0, (POD,)), "cgroup /kubepods.slice"),
        (Follow(cgroups=("/kubepods.slice/",)), Facts(1, 0, ("/kubepods.slice",)), "cgroup /kubepods.slice/"),
        (Follow(cgroups=("/kubepods",)), Facts(1, 0, (POD,)), ""),
        (Follow(cgroups=("/*/triton.service",)), Facts(1, 0, (UNIT,)), "cgroup /*/triton.service"),
        (Follow(cgroups=("/*/triton.service",)), Facts(1, 0, ("/a/b/triton.service",)), ""),
        (Follow(cgroups=("/",)), Facts(1, 0, (UNIT,)), "cgroup /"),
        (Follow(containers=(ID,)), Facts(1, 0, (POD,)), f"container {ID}"),
        (Follow(containers=(ID[:12],)), Facts(1, 0, (POD,)), f"container {ID[:12]}"),
        (Follow(containers=(ID[1:13],)), Facts(1, 0, (POD,)), ""),
        (Follow(containers=("ml/vllm-*/*",)), Facts(1, 0, (POD,)), "container ml/vllm-*/*"),
        (Follow(containers=("ml/vllm/*",)), Facts(1, 0, (POD,)), ""),
        (Follow(executables=("/opt/*/bin/python3",)), Facts(1, 0, (), "/opt/a/bin/python3"), "executable"),
        (Follow(executables=("/opt/bin/p",)), Facts(1, 0, (), "/usr/bin/p", ("/opt/bin/p",)), "executable"),
        (Follow(executables=("/opt/p",)), Facts(1, 0, (), "/opt/pp", ("p", "/opt/p/q")), ""),
        (Follow(executables=("/a.c",)), Facts(1, 0, (), "/abc"), ""),
        (Follow(executables=("*",)), Facts(1, 0), ""),
        (Follow(pids=(23,)), Facts(1, 0), "pid"),
        (Follow(pids=(29,)), Facts(1, 0), ""),
    ],
)
def test_a_process_fits_a_rule_or_does_not(follow: Follow, facts: Facts, reason: str) -> None:
    rules = Rules(follow)
    found = rules.fit(23, facts, {POD: [ID, "ml/vllm-0/main"]})
    assert str(found or "").startswith(reason)
    assert (found in rules.reasons()) == bool(reason)


def test_the_first_rule_that_fits_is_why() -> None:
    facts = Facts(1, 0, (UNIT,), "/opt/triton")
    everything = Follow(units=("triton.service",), cgroups=("/",), executables=("/opt/*",))
    assert Rules(everything).fit(23, facts, {}) == Reason("unit", "triton.service")


TEXT = st.text(st.sampled_from("/*.-:ab0[]\\?+x\n\0") | st.characters(), max_size=30)


@given(TEXT, st.binary(max_size=60))
def test_whatever_a_path_or_a_rule_holds_is_only_compared(text: str, raw: bytes) -> None:
    rules = Rules(Follow(units=(text,), cgroups=(text,), containers=(text,), executables=(text,)))
    facts = Facts(1, 0, cgroup_paths(raw), os.fsdecode(raw), (text,))
    found = rules.fit(1, facts, {text: [text]})
    assert found is None or found in rules.reasons()
    # a rule without a star fits the very same text
    if text and "*" not in text:
        assert rules.fit(1, facts, {}) is not None


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        (b"0::/a/b\n", ("/a/b",)),
        (b"2:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/\n", ("/a", "/b", "/")),
        (b"2:cpu:/a\n0::/a\n", ("/a",)),
        (b"0::/x:y\n", ("/x:y",)),
        (b"0::/../../system.slice/a.service\n", ("/system.slice/a.service",)),
        (b"0::/..\n", ("/",)),
        (b"0::/..a\n", ("/..a",)),
        (b"nonsense\n\n", ()),
    ],
)
def test_paths_are_those_of_all_hierarchies(text: bytes, paths: tuple[str, ...]) -> None:
    assert cgroup_paths(text) == paths


def test_processes_are_found_by_each_kind_of_rule(proc: Proc) -> None:
    proc.add(11, UNIT)
    proc.add(13, POD)
    proc.add(17, program="/opt/vllm/bin/python3")
    proc.add(19, called="/opt/tgi/server")
    proc.add(23)
    proc.add(29)
    proc.kernel.listening = [(23, 8000), (29, 9), (11, 8000)]
    follow = Follow(
        units=("triton.service",),
        containers=("ml/*/main",),
        executables=("/opt/vllm/bin/python3", "/opt/tgi/server"),
        ports=(8000,),
    )
    said = {"k8s.namespace.name": "ml", "k8s.pod.name": "vllm-0", "k8s.container.name": "main"}
    with looking(proc, follow, Names({POD: said})) as targets:
        assert first_look(targets) == {
            11: "unit triton.service",
            13: "container ml/*/main",
            17: "executable /opt/vllm/bin/python3",
            19: "executable /opt/tgi/server",
            23: "port 8000",
        }


def test_who_comes_moves_and_goes_is_noticed(proc: Proc) -> None:
    proc.add(11, UNIT)
    with looking(proc, Follow(units=("triton.service",))) as targets:
        assert set(next_look(targets)) == {11}
        proc.add(13, UNIT)
        assert set(next_look(targets)) == {11, 13}
        proc.add(11, "/user.slice")
        assert set(next_look(targets)) == {13}
        proc.end(13)
        assert next_look(targets) == {}


def test_those_that_have_run_for_long_are_looked_at_in_turn(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN time for about one of them in a look
    monkeypatch.setattr(targets_module, "OLD_CPU_S", 1e-9)
    pids = range(11, 34)
    for pid in pids:
        proc.add(pid, UNIT)
    with looking(proc, Follow(units=("triton.service",))) as targets:
        assert next_look(targets).keys() == set(pids)
        # WHEN all of them move
        for pid in pids:
            (proc.folder / f"{pid}/cgroup").write_text("0::/user.slice\n")
        # THEN one after the other is found to have moved
        left = [len(next_look(targets))]
        while left[-1]:
            left.append(len(next_look(targets)))
    assert left == sorted(left, reverse=True)
    assert len(set(left)) > 3


def test_changed_rules_hold_at_once_and_the_last_one_ends_the_looking(proc: Proc) -> None:
    proc.add(11, UNIT)
    proc.add(13, called="/bin/x")
    with looking(proc, Follow(units=("triton.service",))) as targets:
        assert set(first_look(targets)) == {11}
        targets.change(Follow(executables=("/bin/x",)))
        assert set(first_look(targets)) == {13}
        targets.change(Follow())
        assert first_look(targets) == {}
        assert targets.take() is None


def test_without_a_rule_nobody_looks(proc: Proc) -> None:
    with looking(proc, Follow()) as targets:
        assert targets.take() is None
        targets.change(Follow(peers=3))
        assert targets.take() is None


def test_a_process_that_writes_over_its_arguments_still_fits(proc: Proc) -> None:
    # GIVEN one whose program cannot be read
    proc.add(11, called="/opt/vllm")
    with looking(proc, Follow(executables=("/opt/vllm",))) as targets:
        assert set(next_look(targets)) == {11}
        # WHEN it calls itself otherwise, again and again
        for name in ("worker 0", "worker 1", "worker 2", "worker 3", "worker 4"):
            (proc.folder / "11/cmdline").write_bytes(name.encode())
            assert set(next_look(targets)) == {11}
        # THEN another process of its number does not
        proc.add(11, called="worker 5", started=2)
        assert next_look(targets) == {}


def test_a_process_that_is_seen_before_it_becomes_its_program_is_found_later(proc: Proc) -> None:
    proc.add(11, called="/lib/systemd/systemd")
    with looking(proc, Follow(executables=("/opt/vllm",))) as targets:
        assert next_look(targets) == {}
        (proc.folder / "11/cmdline").write_bytes(b"/opt/vllm\0serve\0")
        assert set(next_look(targets)) == {11}


def test_another_program_in_the_same_process_does_not_fit(proc: Proc) -> None:
    proc.add(11, program="/opt/a", called="/opt/a")
    with looking(proc, Follow(executables=("/opt/a",))) as targets:
        assert set(next_look(targets)) == {11}
        (proc.folder / "11/exe").unlink()
        (proc.folder / "11/exe").symlink_to("/opt/b")
        (proc.folder / "11/cmdline").write_bytes(b"/opt/b\0")
        assert next_look(targets) == {}


def test_a_program_that_an_upgrade_has_replaced_is_still_it(proc: Proc) -> None:
    proc.add(11, program="/opt/a (deleted)")
    with looking(proc, Follow(executables=("/opt/a",))) as targets:
        assert set(first_look(targets)) == {11}


def test_where_the_kernel_cannot_be_asked_proc_is_and_ports_are_said_to_be_unknown(
    proc: Proc, caplog: pytest.LogCaptureFixture
) -> None:
    proc.kernel.missing = True
    proc.add(11, UNIT, started=7)
    proc.add(13, UNIT)
    stat = proc.folder / "13/stat"
    stat.write_text(stat.read_text().replace("4194304", str(0x20_0000)))  # a thread of the kernel
    (proc.folder / "17").mkdir()  # it has just ended
    with looking(proc, Follow(units=("triton.service",), ports=(8000,))) as targets:
        assert next_look(targets) == {11: Target(7, Reason("unit", "triton.service"))}
    said = [message for message in caplog.messages if "follow.ports" in message]
    assert said == ["follow.ports: cannot see who listens: probe owners: disabled by configuration"]


def test_more_than_can_be_followed_are_cut_off_and_said(proc: Proc, caplog: pytest.LogCaptureFixture) -> None:
    proc.kernel.started = dict.fromkeys(range(100000, 100000 + MAX_TARGETS + 23), 1)
    (proc.folder / "x").mkdir()
    with looking(proc, Follow(pids=tuple(proc.kernel.started))) as targets:
        assert len(first_look(targets)) == MAX_TARGETS
    assert f"{MAX_TARGETS + 23} processes fit [follow]: only {MAX_TARGETS} are followed" in caplog.messages


def test_what_goes_wrong_in_a_look_is_said_and_the_next_one_works(
    proc: Proc, caplog: pytest.LogCaptureFixture
) -> None:
    proc.kernel.listening = [(11, 8000)]  # of a process that is not there: a KeyError in this kernel
    with looking(proc, Follow(ports=(8000,))) as targets:
        eventually(lambda: "looking for processes to follow: KeyError(11)" in caplog.text, "it is said")
        proc.add(11)
        assert set(next_look(targets)) == {11}


def test_the_agent_itself_is_never_a_target(proc: Proc) -> None:
    proc.add(os.getpid(), UNIT)
    with looking(proc, Follow(units=("triton.service",))) as targets:
        assert first_look(targets) == {}


def test_a_real_process_is_found_by_its_program_and_by_its_cgroup(kernel: Kernel) -> None:
    kernel.missing = True
    body = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", body], stdin=subprocess.PIPE) as child:
        program = str(Path(f"/proc/{child.pid}/exe").readlink())
        own = cgroup_paths(Path(f"/proc/{child.pid}/cgroup").read_bytes())
        # as it was called, and as the kernel has it: a virtual environment's interpreter is a link
        for path in (sys.executable, program):
            with closing(Targets(kernel, Names(), Follow(executables=(path,)))) as targets:
                assert first_look(targets)[child.pid] == f"executable {path}"
        with closing(Targets(kernel, Names(), Follow(cgroups=own))) as targets:
            assert first_look(targets)[child.pid].startswith("cgroup /")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")
def test_without_ptrace_the_first_argument_stands_for_the_program(
    nobodys_python: tuple[str, dict[str, str]],
) -> None:
    interpreter, environment = nobodys_python
    body = """if True:
        import sys, logging
        from tailspan.collect.targets import Targets
        from tailspan.config import Follow
        from tailspan.errors import ProbeError
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        class Kernel:
            def processes(self): raise ProbeError("none")
        targets = Targets(Kernel(), None, Follow(executables=(sys.argv[1],)))
        while (found := targets.take()) is None: pass
        print(int(sys.argv[2]) in found)
    """
    setpriv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        command = [*setpriv, interpreter, "-c", body, sys.executable, str(child.pid)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/", timeout=60)
        child.communicate(b"\n")
    *warnings, found = done.stdout.splitlines()
    assert found == "True", done.stderr
    assert len(warnings) == 1
    assert "cannot be seen without CAP_SYS_PTRACE" in warnings[0]
