"""What tailspan can do on the kernel that runs this: probe by probe, with one loader, and which tests pass.

``python -m tests.kernels.inside WAY FILE`` writes it as JSON; in a guest or on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

#: Probe -> tests that need all of it. What needs an exact clock is left out: an emulated one stumbles.
TESTS = {
    "sched": (
        "kernel/test_sched.py::test_a_timer_is_not_blamed_on_the_task_it_interrupted",
        "kernel/test_sched.py::test_a_threads_records_tile_its_time",
        "kernel/test_sched.py::test_two_neighbours_in_two_cgroups_get_their_own_milliseconds",
        "kernel/test_sched.py::test_a_wait_that_moves_between_cpus_is_split_and_stays_whole",
        "kernel/test_sched.py::test_the_thread_that_ended_the_wait_is_named",
        "kernel/test_sched.py::test_short_waits_are_folded_in_without_breaking_the_sums",
        "kernel/test_ground_truth.py::test_throttled_time_is_cpu_stats_even_beside_a_neighbour",
        "kernel/test_sleep.py::test_a_poll_whose_first_descriptor_is_a_driver_s_names_that_device",
        "kernel/test_sleep.py::test_a_lock_is_a_futex_word_and_two_locks_are_two",
        "e2e/test_explain.py::test_a_hog_on_the_workers_cpu_is_named_by_its_pid",
    ),
    "lifecycle": (
        "kernel/test_sched.py::test_threads_that_existed_are_adopted_and_later_ones_followed_from_birth",
    ),
    "irq": (
        "kernel/test_irq.py::test_the_tick_is_seen_and_is_small",
        "kernel/test_irq.py::test_without_the_probe_nothing_is_booked",
    ),
    "stalls": ("kernel/test_sleep.py::test_a_wait_for_the_address_spaces_lock_is_a_kernel_lock",),
    "block": ("kernel/test_block.py::test_101_direct_reads_are_101_requests_of_their_thread",),
    "tcp": (
        "kernel/test_tcp.py::test_each_request_of_an_accepted_connection_is_one_record",
        "kernel/test_tcp.py::test_ipv6_addresses",
        "kernel/test_unfollow.py",
    ),
    "owners": ("kernel/test_socket_owner.py::test_every_connections_process_is_found",),
    "incidents": ("kernel/test_sleep.py::test_an_out_of_memory_kill_names_victim_and_who_wanted_memory",),
    "gpu": ("kernel/test_cuda.py::test_launches_are_counted_exactly_and_never_recorded",),
    "syscalls": ("kernel/test_syscall.py::test_calls_are_counted_and_long_ones_recorded_only_while_attached",),
}
#: Instead, where it is not all there.
WITHOUT = {"tcp": ("kernels/degraded.py",)}
#: Of one loader only. What compares both runs with bcc, where both are at hand.
OF_LOADER = {
    "core": ("kernel/test_probes.py",),
    "bcc": ("kernels/side_by_side.py",),
    "bcc, no BTF": (),
}
#: How the probes are loaded, and with which loader. In the last the kernel's BTF is hidden, as if it had none.
WAYS = {"core": "core", "bcc": "bcc", "bcc, no BTF": "bcc"}
_FOLDER = Path(__file__).parents[1]
_CHECK_S, _TESTS_S = 900, 2400
_SECOND_TRIES = 8
#: bcc compiles once for all that runs here; and tests find a disk where they expect one.
_FOLDERS = {"CACHE_DIRECTORY": "/var/cache/tailspan-kernels", "TMPDIR": "/var/tmp"}

#: Opens the probes as the agent does. MiB, and seconds from the first of our imports until all are attached.
_START = """
import json, resource, sys, time
began = time.monotonic()
from tailspan.collect.bpf.programs import Options
from tailspan.collect.bpf.source import BpfSource
source = BpfSource(Options(loader=sys.argv[1]))
took = time.monotonic() - began
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
resident, peak = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
compiler = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
why = source.loader_why
print(json.dumps({"seconds": took, "resident": resident, "peak": peak, "compiler": compiler, "why": why}))
source.close()
"""


@dataclass(slots=True)
class Ran:
    passed: int = 0
    again: list[str] = field(default_factory=list)  #: of the passed: those that failed at first
    seconds: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)  #: test -> its first line of what went wrong
    skipped: dict[str, str] = field(default_factory=dict)  #: test -> its reason


@dataclass(slots=True)
class Findings:
    release: str
    way: str  #: of WAYS
    why: str = ""  #: how the loader was had
    error: str = ""  #: why it could not be had
    probes: list[dict[str, str]] = field(default_factory=list)  #: name, state, why: as ``tailspan check`` says
    first_s: float | None = None  #: the first start, in which bcc compiles
    compiler_mib: float = 0.0  #: the peak of the process that compiled then; 0: none did
    start_s: float | None = None  #: any other
    resident_mib: float | None = None
    peak_mib: float | None = None
    tests: Ran = field(default_factory=Ran)


def look(way: str, tests: Sequence[str] = (), measured: bool = True) -> Findings:
    """``tests``: instead of those for the probes that work. Not ``measured``: no start is timed."""
    found, loader = Findings(os.uname().release, way), WAYS[way]
    first = _start(loader) if measured else None
    checked = _run("-m", "tailspan", "check", "--json", "--loader", loader)
    try:
        report = json.loads(checked.stdout)
    except ValueError:
        found.error = _last_line(checked.stderr) or f"tailspan check ended with {checked.returncode}"
        return found
    found.error = report["error"]
    found.probes = [{name: probe[name] for name in ("name", "state", "why")} for probe in report["probes"]]
    if found.error:
        return found
    if first:
        _measure(found, first, _start(loader))
    states = {probe["name"]: probe["state"] for probe in found.probes}
    found.tests = _test(loader, tests or [*OF_LOADER[way], *_tests_for(states)])
    return found


def _measure(found: Findings, first: Mapping[str, Any], again: Mapping[str, Any]) -> None:
    found.why = again["why"]
    found.first_s, found.start_s = round(first["seconds"], 3), round(again["seconds"], 3)
    found.compiler_mib = round(first["compiler"], 1)
    found.resident_mib, found.peak_mib = round(again["resident"], 1), round(again["peak"], 1)


def _start(loader: str) -> dict[str, Any]:
    """Empty where it does not start: `tailspan check` says why."""
    started = _run("-c", _START, loader)
    return dict(json.loads(started.stdout)) if started.returncode == 0 else {}


def _tests_for(states: Mapping[str, str]) -> list[str]:
    chosen = (WITHOUT.get(name, ()) if state == "missing" else TESTS[name] for name, state in states.items())
    return [test for tests in chosen for test in tests]


def _test(loader: str, tests: Sequence[str]) -> Ran:
    """What failed runs once more: an emulator that shares its CPUs stops for milliseconds now and then."""
    first = _pytest(loader, tests)
    if first.failed and len(first.failed) <= _SECOND_TRIES:
        second = _pytest(loader, list(first.failed))
        first.passed += second.passed
        first.again = sorted(set(first.failed) - set(second.failed))
        first.failed = second.failed
        first.seconds += second.seconds
    return first


def _pytest(loader: str, tests: Sequence[str]) -> Ran:
    with TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        names = [str(_FOLDER / name) for name in tests]
        # Tests of both loaders say in their names which one it is; the others take the configured one.
        other = "bcc" if loader == "core" else "core"
        options = ("-q", "-p", "no:cacheprovider", "-k", f"not {other}", "-o", "junit_family=xunit1")
        command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *names]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command,
                env={**os.environ, **_FOLDERS, "TAILSPAN_PROBES_LOADER": loader},
                stdin=subprocess.DEVNULL,
                timeout=_TESTS_S,
            )
        return _read(report) if report.exists() else Ran(failed={"all": f"not done after {_TESTS_S} s, or broken"})


def _read(report: Path) -> Ran:
    """A report of pytest's, in JUnit's format."""
    tests = Ran()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{str(case.get('file')).removeprefix('tests/')}::{case.get('name')}"
        tests.seconds += float(case.get("time", 0))
        said = {child.tag: child.get("message", "").split("\n")[0] for child in case}
        if wrong := said.get("failure", said.get("error")):
            tests.failed[name] = wrong
        elif "skipped" in said:
            tests.skipped[name] = said["skipped"]
        else:
            tests.passed += 1
    return tests


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **_FOLDERS},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CHECK_S,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(arguments, 1, "", f"not done after {_CHECK_S} s")


def _last_line(said: str) -> str:
    return next((line for line in reversed(said.splitlines()) if line.strip()), "")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.inside", description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("file", type=Path)
    parser.add_argument("tests", nargs="*", help="below tests/; default: those for the probes that work")
    parser.add_argument("--unmeasured", action="store_true", help="time no start")
    args = parser.parse_args(argv)
    args.file.write_text(json.dumps(asdict(look(args.way, args.tests, not args.unmeasured))))


if __name__ == "__main__":
    main()
