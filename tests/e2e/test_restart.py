"""Restart, crash and upgrade of the agent under load, behind a listener that outlives it: no worker notices.

``TAILSPAN_RESTARTS=10 pytest -s tests/e2e/test_restart.py`` has ten of each, and prints what they cost the worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import tailspan
from tailspan.config import Config
from tailspan.export.local import SegmentReader
from tests.conftest import eventually
from tests.e2e.conftest import free_port, metric
from tests.workloads import LAST_CPU, Program, program

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

ROUNDS = int(os.environ.get("TAILSPAN_RESTARTS", "1"))
WINDOW_S = 2.0
#: Long enough that a client that waited for the agent would be seen, whatever else the machine does.
ABSENCE_S = 1.5
LONGEST_CALL_MS = 1000.0
#: More requests than come in one turn of judging.
JUDGED_AT_ONCE = 200
JUDGE_S = Config().agent.judge_ms / 1000
LOST = 'tailspan_lost_records_total{class="client_message"}'

#: Some two hundred requests a second. Each line on stdin is answered by what was since the one before; the last
#: line is the end.
SERVE = """
import json
import tailspan.client
client = tailspan.client.connect(service="toy", path=sys.argv[1])
sent = errors = 0
walls, calls = [], [0.0]
ending = threading.Event()

def serve():
    global sent, errors
    while not ending.is_set():
        began = time.monotonic_ns()
        try:
            with client.request("POST /toy"):
                entered = time.monotonic_ns()
                until = time.thread_time() + 0.001
                while time.thread_time() < until: pass
                leaves = time.monotonic_ns()
        except Exception:
            errors += 1
        sent += 1
        left = time.monotonic_ns()
        walls.append((left - began) / 1e6)
        calls.append((entered - began + left - leaves) / 1e6)
        time.sleep(0.003)

server = threading.Thread(target=serve)
server.start()
for line in sys.stdin:
    if line == "end\\n":
        ending.set()
        server.join()
    window, slowest = sorted(walls), max(calls)
    walls, calls = [], [0.0]
    p99 = window[len(window) * 99 // 100] if window else 0.0
    counts = {"sent": sent, "dropped": client.dropped, "errors": errors}
    print(json.dumps(counts | {"p99_ms": p99, "call_ms": slowest}), flush=True)
    if ending.is_set(): break
"""


class Agent:
    """``tailspan run`` as systemd starts it: with a listener of somebody else as descriptor 3."""

    def __init__(self, folder: Path, listener: socket.socket, port: int, package: Path) -> None:
        self.log = folder / f"agent-{time.monotonic_ns()}.log"
        given = {
            "worker.socket": listener.getsockname(),
            "agent.control": folder / "control.sock",
            "store.path": folder / "store",
            "store.keep": "all",
            "export.prometheus": f"127.0.0.1:{port}",
        }
        words = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
        take = f'exec 3<&{listener.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", take, "-", sys.executable, "-m", "tailspan", "run", *words],
                stderr=log,
                pass_fds=[listener.fileno()],
                env=os.environ | {"PYTHONPATH": str(package)},
            )

    def wait_ready(self) -> None:
        eventually(
            lambda: "ready in" in self.log.read_text() or self.process.poll() is not None, "it is ready", 60
        )
        assert self.process.poll() is None, self.log.read_text()

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        assert code == (0 if number == signal.SIGTERM else -number), self.log.read_text()


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(256)
        yield listener


def said(worker: Program, command: str = "") -> dict[str, float]:
    assert worker.process.stdin is not None
    worker.process.stdin.write(f"{command}\n")
    worker.process.stdin.flush()
    answer: dict[str, float] = json.loads(worker.line())
    return answer


def lost(port: int, dropped: float) -> float:
    """What is lost by what the agent says: what clients have dropped, and what died with the agent before it.

    It hears of both at once, and of more drops with the next message.
    """
    said = [metric(port, LOST)]

    def is_all() -> bool:
        time.sleep(JUDGE_S)
        said.append(metric(port, LOST))
        return said[-1] >= dropped and len(set(said[-4:])) == 1 and len(said) > 3

    eventually(is_all, "the agent knows what was lost", 60)
    return said[-1]


def next_version(folder: Path) -> Path:
    """A folder with the package as an upgrade would bring it."""
    package = Path(tailspan.__file__).parent
    shutil.copytree(package, folder / "tailspan")
    about = folder / "tailspan" / "__init__.py"
    about.write_text(about.read_text().replace(tailspan.__version__, f"{tailspan.__version__}.next"))
    return folder


def test_a_worker_outlives_restart_crash_and_upgrade_and_every_request_is_accounted_for(tmp_path: Path) -> None:
    installed, upgraded = Path(tailspan.__file__).parents[1], next_version(tmp_path / "next")
    port, store = free_port(), tmp_path / "store"
    unread = 0.0  # what died with agents, as the next one says
    quiet, disturbed = [], []
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening(tmp_path / "worker.sock"))
        agent = Agent(tmp_path, listener, port, installed)
        stack.callback(lambda: agent.process.kill())
        agent.wait_ready()
        worker = stack.enter_context(program(SERVE, listener.getsockname(), cpu=LAST_CPU))
        worker.go()
        for ending, package in ROUNDS * [
            (signal.SIGTERM, installed),
            (signal.SIGKILL, installed),
            (signal.SIGTERM, upgraded),
        ]:
            said(worker)
            # GIVEN a time with an agent
            time.sleep(WINDOW_S)
            quiet.append(window := said(worker))
            unread += lost(port, window["dropped"]) - window["dropped"]
            # WHEN it ends, is absent, and comes again
            agent.end(ending)
            time.sleep(ABSENCE_S)
            agent = Agent(tmp_path, listener, port, package)
            agent.wait_ready()
            disturbed.append(said(worker))
        said(worker)
        time.sleep(WINDOW_S)
        last = said(worker, "end")
        unread += lost(port, last["dropped"]) - last["dropped"]
        version = metric(port, f'tailspan_build_info{{version="{tailspan.__version__}.next"}}')
        agent.end(signal.SIGTERM)
    rows = list(SegmentReader(store).rows())
    stored = len({entry.row.span_id for entry in rows})
    named = (("with the agent", quiet), ("without it for a while", disturbed))
    figures = {
        name: (statistics.median(each["p99_ms"] for each in windows), max(each["call_ms"] for each in windows))
        for name, windows in named
    }
    print(f"\n{last['sent']:g} requests, {last['errors']:g} errors; {stored} stored,")
    print(f"{last['dropped']:g} dropped by the client, {unread:g} died with an agent")
    for name, (p99, call) in figures.items():
        print(f"{name}: p99 {p99:.2f} ms, slowest call {call:.2f} ms")

    # THEN the worker had no error, and never waited
    assert last["errors"] == 0
    assert max(each["call_ms"] for each in (*quiet, *disturbed, last)) < LONGEST_CALL_MS
    # AND each request is stored, or counted by who lost it; some are both where a kill came between the two
    assert version == 1
    twice = stored + last["dropped"] + unread - last["sent"]
    assert 0 <= twice <= ROUNDS * JUDGED_AT_ONCE
