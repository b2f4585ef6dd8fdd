"""What all tests share: when a kernel test may be skipped, and how to wait for something."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import settings

import tailspan
from tailspan.collect.bpf.programs import Options
from tailspan.collect.bpf.source import BpfSource
from tests.workloads import stolen_ns

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("tailspan", deadline=None)
settings.load_profile("tailspan")


def _why_no_kernel() -> str:
    """Why BPF cannot be loaded here; "" when it can."""
    if os.geteuid() != 0:
        return "kernel tests need root"
    headers = Path(f"/lib/modules/{platform.release()}/build")
    if not Path("/sys/kernel/btf/vmlinux").exists() and not headers.exists():
        return "this kernel has no BTF, and no headers that bcc could compile on"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = _why_no_kernel()
    if not why:
        return
    if os.environ.get("TAILSPAN_REQUIRE_KERNEL") == "1":
        raise pytest.UsageError(f"TAILSPAN_REQUIRE_KERNEL=1, but {why}")
    for item in items:
        if item.get_closest_marker("kernel") or item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.skip(reason=why))


#: A test whose machine lost so much of a CPU to the hypervisor while it ran says nothing when it fails ...
STOLEN_SHARE = 0.01
#: ... and runs again, so often at most. How often that was is told at the end.
REPEATS = 2
_repeated = pytest.StashKey[list[str]]()


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    of_kernel = item.get_closest_marker("kernel") or item.get_closest_marker("e2e")
    for attempt in range(REPEATS + 1):
        started_ns, stolen_before_ns = time.monotonic_ns(), stolen_ns()
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        share = (stolen_ns() - stolen_before_ns) / (time.monotonic_ns() - started_ns)
        passed = not any(report.failed for report in reports)
        if passed or not of_kernel or share < STOLEN_SHARE or attempt == REPEATS:
            break
        why = next(report.longreprtext for report in reports if report.failed)
        error = next((line for line in why.splitlines() if line.startswith("E ")), why.splitlines()[-1])
        told = f"{item.nodeid}: the hypervisor took {share:.1%} of a CPU: {error.removeprefix('E').strip()}"
        item.config.stash.setdefault(_repeated, []).append(told)
        item._initrequest()  # type: ignore[attr-defined] # its fixtures are made anew
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    if repeated := config.stash.get(_repeated, []):
        terminalreporter.section("failed, and ran again")
        for line in repeated:
            terminalreporter.line(line)


@pytest.fixture
def open_source() -> Iterator[Callable[..., BpfSource]]:
    """Opens sources with Options(**given); all are closed at the end."""
    opened: list[BpfSource] = []

    def open_with(**options: object) -> BpfSource:
        opened.append(BpfSource(Options(**options)))  # type: ignore[arg-type]
        return opened[-1]

    yield open_with
    for source in opened:
        source.close()


@pytest.fixture
def source(open_source: Callable[..., BpfSource]) -> BpfSource:
    return open_source()


@pytest.fixture(scope="session")
def nobodys_python() -> Iterator[tuple[str, dict[str, str]]]:
    """(interpreter, environment) with which the user nobody can run tailspan; needs root.

    A checkout may lie in a folder that root alone may enter: then its packages are mounted where all can.
    """
    package = Path(tailspan.__file__).parents[1]
    given = {**os.environ, "PYTHONPATH": str(package)}
    if not _runs_as_nobody(sys.executable, given):
        with tempfile.TemporaryDirectory(prefix="tailspan-readable-") as folder, contextlib.ExitStack() as stack:
            Path(folder).chmod(0o755)
            paths = []
            for name, source in (("agent", package), ("site", Path(sysconfig.get_path("purelib")))):
                target = Path(folder) / name
                target.mkdir()
                subprocess.run(["mount", "--bind", source, target], check=True)
                stack.callback(subprocess.run, ["umount", "--lazy", target], check=True)
                paths.append(str(target))
            given["PYTHONPATH"] = ":".join(paths)
            interpreter = str(Path(sys.executable).resolve())
            assert _runs_as_nobody(interpreter, given), "the user nobody cannot run Python at all"
            yield interpreter, given
    else:
        yield sys.executable, given


def _runs_as_nobody(interpreter: str, environment: dict[str, str]) -> bool:
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", interpreter]
    done = subprocess.run([*command, "-m", "tailspan", "--version"], env=environment, capture_output=True, cwd="/")
    return done.returncode == 0


def eventually(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait until ``condition`` holds; fails with ``what`` when the budget is spent."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(0.005)
