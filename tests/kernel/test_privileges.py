"""What the agent may do as the service runs it: no root, two capabilities, workers of other users."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailspan.attribute.causes import Cause
from tailspan.attribute.judge import judge
from tailspan.collect.bpf.cuda import DRIVER, OTHERS_CLOSED, ROOT_CLOSED
from tailspan.collect.elf import function_offsets, open_file
from tailspan.errors import NotFoundError
from tailspan.export.local import Entry, SegmentReader
from tests.conftest import eventually
from tests.fakes import build
from tests.workloads import SLEEPY_WORKER, program

pytestmark = pytest.mark.kernel

NOBODY = 65534
INTERPRETER = sys.executable  # of nobody; the fixture below knows better
SERVICE = ("bpf", "perfmon")  # what systemd/tailspan.service grants


def as_nobody(capabilities: tuple[str, ...], *command: str) -> list[str]:
    """The command under the user nobody, who holds these capabilities and can get no others."""
    return python_as_nobody(capabilities, "-m", *command)


def python_as_nobody(capabilities: tuple[str, ...], *arguments: str) -> list[str]:
    these = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    return [
        "setpriv",
        *(f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
        *(f"--inh-caps={these}", f"--ambient-caps={these}", f"--bounding-set={these}"),
        *(INTERPRETER, *arguments),
    ]


@pytest.fixture
def environment(nobodys_python: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """In which nobody's Python finds the package that is tested."""
    interpreter, given = nobodys_python
    monkeypatch.setattr(sys.modules[__name__], "INTERPRETER", interpreter)
    return given


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of nobody's own; pytest's own ones lie below a folder that root alone may enter."""
    with tempfile.TemporaryDirectory(prefix="tailspan-test-") as folder:
        os.chown(folder, NOBODY, NOBODY)
        yield Path(folder)


@pytest.mark.parametrize("loader", ["core", "bcc"])
def test_two_capabilities_without_root_attach_every_probe(
    environment: dict[str, str], place: Path, loader: str
) -> None:
    command = as_nobody(SERVICE, "tailspan", "check", "--json", "--loader", loader)
    environment["CACHE_DIRECTORY"] = str(place)
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    report = json.loads(done.stdout)

    assert (done.returncode, report["error"], report["missing"]) == (0, "", [])


@pytest.mark.parametrize("held", [(), ("bpf",), ("perfmon",)], ids=["none", "bpf", "perfmon"])
@pytest.mark.parametrize("command", ["check", "run"])
def test_without_both_capabilities_it_says_what_is_needed(
    environment: dict[str, str], place: Path, held: tuple[str, ...], command: str
) -> None:
    paths = [f"--socket={place}/worker.sock", f"--store={place}/store"] if command == "run" else []

    done = subprocess.run(
        as_nobody(held, "tailspan", command, *paths), env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 3
    said = " ".join((done.stdout if command == "check" else done.stderr).split())
    assert "loading BPF programs needs root, or CAP_BPF and CAP_PERFMON" in said
    assert "Traceback" not in done.stderr


def test_locked_memory_is_not_needed(environment: dict[str, str]) -> None:
    nothing_locked = ["prlimit", "--memlock=0:0", *as_nobody(SERVICE, "tailspan", "check")]
    assert subprocess.run(nothing_locked, env=environment, capture_output=True, check=False).returncode == 0


@pytest.fixture
def sandboxed(place: Path) -> tuple[str, ...]:
    """Before a command: as a unit with ProtectProc=invisible sees /proc, on a host that has NVIDIA's driver."""
    devices = place / "devices"
    devices.write_text("Character devices:\n195 nvidia\n\nBlock devices:\n")
    hide = 'mount -t proc -o hidepid=invisible proc /proc && mount --bind "$0" /proc/devices && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", hide, str(devices))


@pytest.mark.parametrize(("held", "missing"), [(SERVICE, ["gpu"]), ((*SERVICE, "sys_ptrace"), [])])
def test_check_says_what_it_takes_to_find_libraries_in_hidden_processes(
    environment: dict[str, str], sandboxed: tuple[str, ...], held: tuple[str, ...], missing: list[str]
) -> None:
    command = [*sandboxed, *as_nobody(held, "tailspan", "check", "--json")]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    report = json.loads(done.stdout)

    assert (done.returncode, report["error"], report["missing"]) == (len(missing), "", missing)
    (gpu,) = (probe for probe in report["probes"] if probe["name"] == "gpu")
    assert (gpu["why"], gpu["mend"]) == ((OTHERS_CLOSED, "CAP_SYS_PTRACE") if missing else ("", ""))


PROBER = """
import sys
from tailspan.collect.bpf.cuda import CudaProbes
from tailspan.collect.bpf.source import BpfSource
source = BpfSource()
probes = CudaProbes(source)
probes.poll([int(sys.argv[1])])
print(probes.status().attached, source.status["gpu"].why, sep="; ")
probes.close()
source.close()
"""

CALLER = """
import ctypes
cuda = ctypes.CDLL(sys.argv[1])
print("mapped", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("held", "hidden", "in_container", "said"),
    [
        (SERVICE, True, False, f"0; {OTHERS_CLOSED}"),
        (SERVICE, False, True, f"0; {ROOT_CLOSED}"),
        ((*SERVICE, "sys_ptrace"), True, False, "FOUND; "),
        ((*SERVICE, "sys_ptrace"), True, True, "FOUND; "),
        ((*SERVICE, "dac_read_search", "sys_admin"), False, True, f"0; {ROOT_CLOSED}"),
    ],
)
def test_libraries_of_another_users_process_are_found_with_one_more_capability(
    environment: dict[str, str],
    place: Path,
    sandboxed: tuple[str, ...],
    held: tuple[str, ...],
    hidden: bool,
    in_container: bool,
    said: str,
) -> None:
    """A link of uprobes asks for none; to find what to attach to does."""
    if not hidden and not perfmon_opens_maps():
        said = f"0; {OTHERS_CLOSED}"
    built = build.library("cuda.c", "libcuda.so.1") / "libcuda.so.1"
    library = place / "libcuda.so.1"
    library.write_bytes(built.read_bytes())
    library.chmod(0o755)
    (place / "root").mkdir()
    hide = f'mount -t tmpfs tmpfs {place}/root && cp {library} {place}/root && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", hide, "sh") if in_container else ()

    with program(CALLER, place / "root" / library.name if in_container else library, prefix=prefix) as worker:
        worker.go()
        assert worker.line() == "mapped"
        command = python_as_nobody(held, "-c", PROBER, str(worker.pid))
        done = subprocess.run(
            [*sandboxed, *command] if hidden or not perfmon_opens_maps() else command,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
        )
        worker.go()
        worker.finish()

    attached = str(len(DRIVER.keys() & exported(built)))
    assert done.stdout.strip() == said.replace("FOUND", attached).strip()


def test_a_library_of_another_users_process_is_found_without_where_the_kernel_shows_it(
    environment: dict[str, str], place: Path
) -> None:
    if not perfmon_opens_maps():
        pytest.skip("this kernel shows maps of other users to CAP_SYS_PTRACE alone")
    library = place / "libcuda.so.1"
    library.write_bytes((build.library("cuda.c", "libcuda.so.1") / "libcuda.so.1").read_bytes())
    library.chmod(0o755)

    with program(CALLER, library) as worker:
        worker.go()
        assert worker.line() == "mapped"
        command = python_as_nobody(SERVICE, "-c", PROBER, str(worker.pid))
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd="/")
        worker.go()
        worker.finish()

    assert done.stdout.strip() == f"{len(DRIVER.keys() & exported(library))};"


def perfmon_opens_maps() -> bool:
    """Since some kernel after 6.12 CAP_PERFMON reads maps of other users."""
    with program("sys.stdin.readline()") as other:
        command = python_as_nobody(("perfmon",), "-c", f"print(len(open('/proc/{other.pid}/maps').read()))")
        return subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0


def exported(library: Path) -> set[str]:
    file = open_file(library)
    try:
        return set(function_offsets(file, DRIVER))
    finally:
        os.close(file)


def test_requests_of_another_users_worker_are_explained(environment: dict[str, str], place: Path) -> None:
    # GIVEN an agent without root, and a worker that is root's, which nobody may not look at in /proc
    with running_agent(environment, place) as log, program(SLEEPY_WORKER, place / "worker.sock") as worker:
        worker.go()
        eventually(lambda: f"following pid {worker.pid} " in log.read_text(), "the worker is followed")

        # WHEN it serves 23 requests that sleep
        worker.go()
        assert worker.finish() == ["0"]
        eventually(lambda: len(entries(place / "store")) == 23, "all requests are stored")

    # THEN what they spent their time on is known
    reader = SegmentReader(place / "store")
    blocks = {entry.offset: entry for entry in entries(place / "store")}
    verdicts = [verdict for entry in blocks.values() for verdict in judge(reader.load(entry))]
    assert len(verdicts) == 23
    assert all(verdict.trust.coverage > 0.9 for verdict in verdicts)
    asleep = [part.ns for verdict in verdicts for part in verdict.ledger if part.cause is Cause.SLEEP]
    assert len(asleep) == 23
    assert sum(asleep) > 23 * 2_000_000


def entries(store: Path) -> list[Entry]:
    try:
        return list(SegmentReader(store).rows())
    except NotFoundError:
        return []


@contextlib.contextmanager
def running_agent(environment: dict[str, str], place: Path) -> Iterator[Path]:
    """Gives the file that it logs to; the agent has ended in good order when the context closes."""
    log = place / "log"
    paths = [
        f"--socket={place}/worker.sock",
        f"--store={place}/store",
        f"--set=agent.control={place}/control.sock",
    ]
    command = as_nobody(SERVICE, "tailspan", "run", *paths, "--keep=all", "--set=export.prometheus=")
    with log.open("w") as stderr:
        agent = subprocess.Popen(command, env=environment, stderr=stderr)
    try:
        eventually(
            lambda: agent.poll() is not None or re.search("ready in", log.read_text()), "the agent is ready"
        )
        yield log
    finally:
        agent.terminate()
        assert agent.wait(timeout=20) == 0, log.read_text()
