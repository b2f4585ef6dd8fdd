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
from tailspan.errors import NotFoundError
from tailspan.export.local import Entry, SegmentReader
from tests.conftest import eventually
from tests.workloads import program

pytestmark = pytest.mark.kernel

NOBODY = 65534
INTERPRETER = sys.executable  # of nobody; the fixture below knows better
SERVICE = ("bpf", "perfmon")  # what systemd/tailspan.service grants


def as_nobody(capabilities: tuple[str, ...], *command: str) -> list[str]:
    """The command under the user nobody, who holds these capabilities and can get no others."""
    these = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    return [
        "setpriv",
        *(f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
        *(f"--inh-caps={these}", f"--ambient-caps={these}", f"--bounding-set={these}"),
        *(INTERPRETER, "-m", *command),
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


def test_two_capabilities_without_root_attach_every_probe(environment: dict[str, str]) -> None:
    done = subprocess.run(
        as_nobody(SERVICE, "tailspan", "check", "--json"), env=environment, capture_output=True, check=False
    )
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


WORKER = """
import tailspan.client
client = tailspan.client.connect("worker", path=sys.argv[1])
sys.stdin.readline()
for number in range(23):
    with client.request("infer", request_id=f"r{number}"):
        time.sleep(0.003)
print(client.dropped)
"""


def test_requests_of_another_users_worker_are_explained(environment: dict[str, str], place: Path) -> None:
    # GIVEN an agent without root, and a worker that is root's, which nobody may not look at in /proc
    with running_agent(environment, place) as log, program(WORKER, place / "worker.sock") as worker:
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
