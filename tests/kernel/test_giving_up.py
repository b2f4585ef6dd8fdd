"""What a running agent may still do: capabilities of its threads, by the kernel's word; and it needs no more."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailspan import privileges
from tailspan.attribute.causes import Cause
from tailspan.attribute.judge import judge
from tailspan.attribute.verdict import Verdict
from tailspan.config import Config, Export, Follow, Gpu, Otlp, Store, Tls
from tailspan.errors import NotFoundError
from tailspan.export.local import SegmentReader
from tests.conftest import eventually
from tests.workloads import SLEEPY_WORKER, program

pytestmark = pytest.mark.kernel

NOBODY = 65534
BPF, PERFMON, SYS_PTRACE, DAC_READ_SEARCH = (1 << number for number in (39, 38, 19, 2))
AS_SERVICE = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
    *("--inh-caps=-all,+bpf,+perfmon", "--ambient-caps=-all,+bpf,+perfmon", "--bounding-set=-all,+bpf,+perfmon"),
)
#: One that stays.
WORKER = f"""{SLEEPY_WORKER}
while True:
    time.sleep(0.01)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own ones lie below one that root alone may."""
    with tempfile.TemporaryDirectory(prefix="tailspan-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextlib.contextmanager
def running(
    prefix: tuple[str, ...], python: tuple[str, dict[str, str]], place: Path, *settings: str
) -> Iterator[tuple[int, Path]]:
    """The agent's pid, and the file that it logs to; it has ended in good order when the context closes."""
    interpreter, environment = python
    log = place / "log"
    given = (
        *(f"worker.socket={place}/worker.sock", f"agent.control={place}/control.sock"),
        *(f"store.path={place}/store", "store.keep=all", *settings),
    )
    command = [*prefix, interpreter, "-m", "tailspan", "run"]
    command += [word for setting in given for word in ("--set", setting)]
    with log.open("w") as stderr:
        agent = subprocess.Popen(command, env=environment, stderr=stderr, cwd="/")
    try:
        eventually(lambda: agent.poll() is not None or "ready in" in log.read_text(), "it is ready", seconds=60)
        yield agent.pid, log
    finally:
        agent.terminate()
        assert agent.wait(timeout=20) == 0, log.read_text()


def capabilities(pid: int) -> set[tuple[int, int, int, int, int, int]]:
    """What the kernel says of every thread: inheritable, permitted, effective, bounding, ambient, no_new_privs."""
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has ended
            text = (task / "status").read_text()
            of_task = (re.search(rf"^{name}:\s*([0-9a-f]+)", text, re.MULTILINE) for name in names)
            found.add(tuple(int(match[1], 16) for match in of_task if match))
    return found  # type: ignore[return-value]


def assert_it_works(place: Path, log: Path, python: tuple[str, dict[str, str]]) -> None:
    """A worker is followed, its requests are judged, and a probe is attached on demand for a moment."""
    with program(WORKER, place / "worker.sock") as worker:
        worker.go()
        eventually(lambda: f"following pid {worker.pid} " in log.read_text(), "the worker is followed")
        worker.go()
        assert worker.line() == "0"
        interpreter, environment = python
        asking = subprocess.run(
            [interpreter, "-m", "tailspan", "syscalls", "--for", "300ms", "--json"],
            env={**environment, "TAILSPAN_AGENT_CONTROL": f"{place}/control.sock"},
            capture_output=True,
            text=True,
            cwd="/",
        )
        assert asking.returncode == 0, asking.stderr
        assert {row["pid"] for row in json.loads(asking.stdout)["rows"]} == {worker.pid}
    verdicts: list[Verdict] = []

    def judged() -> bool:
        with contextlib.suppress(NotFoundError):
            stored = SegmentReader(place / "store").evidence()
            verdicts[:] = [verdict for evidence in stored for verdict in judge(evidence)]
        return len(verdicts) == 23

    eventually(judged, "all requests are stored")
    asleep = [part.ns for verdict in verdicts for part in verdict.ledger if part.cause is Cause.SLEEP]
    assert sum(asleep) > 23 * 2_000_000


def test_as_root_it_keeps_what_it_takes_to_look_into_other_users_processes(
    nobodys_python: tuple[str, dict[str, str]], place: Path
) -> None:
    with running((), nobodys_python, place, "export.prometheus=127.0.0.1:0", "otlp.http=127.0.0.1:0") as (
        pid,
        log,
    ):
        kept = PERFMON | SYS_PTRACE | DAC_READ_SEARCH
        assert capabilities(pid) == {(0, kept, kept, 0, 0, 1)}
        assert len(list(Path(f"/proc/{pid}/task").iterdir())) > 3  # or it says little
        assert "kept CAP_DAC_READ_SEARCH (CUDA is looked for" in log.read_text()
        assert_it_works(place, log, nobodys_python)


@pytest.mark.parametrize(("calls", "kept"), [("on", PERFMON), ("off", 0)])
def test_as_the_service_it_keeps_at_most_one(
    nobodys_python: tuple[str, dict[str, str]], place: Path, calls: str, kept: int
) -> None:
    os.chown(place, NOBODY, NOBODY)
    settings = f"gpu.calls={calls}", "export.prometheus=127.0.0.1:0"
    with running(AS_SERVICE, nobodys_python, place, *settings) as (pid, log):
        # the bounding set is the unit's: to take from it asks for a capability that it has not
        assert capabilities(pid) == {(0, kept, kept, BPF | PERFMON, 0, 1)}
        assert_it_works(place, log, nobodys_python)


def test_a_program_that_root_executes_afterwards_gets_nothing() -> None:
    body = """
    import re, subprocess
    from tailspan import privileges
    privileges.give_up({"KILL": "a test"})
    text = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
    print(re.findall(r"^Cap(?:Prm|Eff|Bnd):\\s*0*([0-9a-f]+)$", text, re.MULTILINE))
    """
    with program(body) as stripped:
        stripped.go()
        assert stripped.finish() == ["['0', '0', '0']"]


def test_what_a_kernel_refuses_is_found_by_trying() -> None:
    def open_raw() -> None:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()

    assert privileges.works_without(lambda: socket.socket().close())
    assert not privileges.works_without(open_raw)
    open_raw()  # the caller has kept its own


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (Config(gpu=Gpu(calls="off")), set()),
        (Config(), {"PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH"}),
        (Config(gpu=Gpu(calls="off"), follow=Follow(executables=("/opt/vllm/*",))), {"SYS_PTRACE"}),
        (Config(gpu=Gpu(calls="off"), export=Export(prometheus="127.0.0.1:80")), {"NET_BIND_SERVICE"}),
        (Config(gpu=Gpu(calls="off"), otlp=Otlp(grpc="[::1]:1023", http="127.0.0.1:0")), {"NET_BIND_SERVICE"}),
        (Config(gpu=Gpu(calls="off"), store=Store(path="FOREIGN/below/it")), {"DAC_OVERRIDE"}),
        (Config(gpu=Gpu(calls="off"), tls=Tls(key="FOREIGN")), {"DAC_READ_SEARCH"}),
    ],
)
def test_what_is_needed_follows_from_the_configuration(config: Config, wanted: set[str], place: Path) -> None:
    os.chown(place, NOBODY, NOBODY)
    if "FOREIGN" in config.store.path:
        config = Config(gpu=config.gpu, store=Store(path=config.store.path.replace("FOREIGN", str(place))))
    if config.tls.key:
        config = Config(gpu=config.gpu, tls=Tls(key=str(place)))
    assert privileges.needed(config, kernel_asks=False, uprobes_ask=False).keys() == wanted
    with_old_kernel = privileges.needed(config, kernel_asks=True, uprobes_ask=True).keys()
    assert with_old_kernel == wanted | {"BPF", "PERFMON"} | ({"SYS_ADMIN"} if config.gpu.calls == "on" else set())


def test_threads_that_keep_theirs_are_warned_of() -> None:
    body = """
    import logging
    from tailspan import privileges
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    privileges.give_up({})
    ended.set()
    thread.join()
    """
    with program(body) as stripped:
        stripped.go()
        assert stripped.finish() == ["privileges: 1 threads that were there before keep theirs"]


def test_where_it_is_forbidden_the_agent_goes_on_and_says_so() -> None:
    """As by a unit whose filter of system calls is older than the agent."""
    body = """
    import logging
    from tailspan import privileges
    from tailspan.errors import CannotError
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    def forbidden(bits): raise CannotError("Operation not permitted")
    privileges._set = forbidden
    privileges.give_up({})
    """
    with program(body) as stripped:
        stripped.go()
        assert stripped.finish() == ["privileges: nothing is given up: Operation not permitted"]
