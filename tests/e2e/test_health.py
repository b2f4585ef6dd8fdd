"""The health of a real worker, while neighbours take its CPU and after that, by every way to ask for it."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import eventually
from tests.e2e.conftest import AgentProcess, free_port, metric
from tests.scorecard.cgroups import Cgroups
from tests.workloads import LAST_CPU, Program, cpu_hog, program

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

#: Serves a request of 8 ms of CPU time every 20 ms, until it is told to end.
SERVE = """
import tailspan.client
client = tailspan.client.connect(service="toy", path=sys.argv[1])
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()
print("connected", flush=True)
while not ended.is_set():
    with client.request("POST /toy", model="toy"):
        until = time.thread_time() + 0.008
        while time.thread_time() < until: pass
    time.sleep(0.012)
"""

#: Ends as soon as it has said who it is.
PASSES = """
import tailspan.client
client = tailspan.client.connect(service="passing", path=sys.argv[1])
with client.request("GET /"): pass
print("connected", flush=True)
"""
STAYS = PASSES.replace("passing", "staying") + "sys.stdin.readline()\n"


def ask(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def told(agent: AgentProcess) -> dict[str, Any]:
    """By ``tailspan health``."""
    found: dict[str, Any] = json.loads(agent.cli("health", "--json").stdout)
    return found


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def agent(run_agent: Callable[..., AgentProcess], port: int, monkeypatch: pytest.MonkeyPatch) -> AgentProcess:
    """It looks back for two seconds only."""
    agent = run_agent(f"export.prometheus=127.0.0.1:{port}", "window.seconds=2")
    monkeypatch.setenv("TAILSPAN_AGENT_CONTROL", str(agent.folder / "control.sock"))
    return agent


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    """What runs on this machine besides the test is not to be in its way."""
    with contextlib.closing(Cgroups()) as cgroups:
        yield cgroups


@pytest.fixture
def worker(cgroups: Cgroups, agent: AgentProcess) -> Iterator[Program]:
    with program(SERVE, agent.socket, cpu=LAST_CPU) as worker:
        cgroups.join(worker.pid)
        worker.go()
        assert worker.line() == "connected"
        yield worker


@contextlib.contextmanager
def neighbours(cgroups: Cgroups, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            cgroups.join_neighbours(stack.enter_context(cpu_hog(LAST_CPU)))
        yield


def test_a_worker_is_healthy_until_neighbours_take_its_cpu_and_again_when_they_have_gone(
    agent: AgentProcess, port: int, cgroups: Cgroups, worker: Program
) -> None:
    def state() -> str:
        return str(json.loads(ask(port, "/health/toy")[1])["state"])

    # GIVEN a worker that serves as ever
    eventually(lambda: "latency" in ask(port, "/health/toy")[1], "its requests are known")
    eventually(lambda: state() == "healthy", "the worker is healthy", seconds=60)
    assert ask(port, "/health/toy")[0] == ask(port, f"/health/{worker.pid}")[0] == 200
    assert ask(port, "/readyz") == ask(port, "/healthz") == (200, "ok\n")

    # WHEN three others take its CPU
    with neighbours(cgroups, 3):
        eventually(lambda: state() == "critical", "the worker is critical", seconds=60)

        # THEN a load balancer is told so, by the worker's name and the host's
        status, body = ask(port, "/health/toy")
        assert status == 503
        grade = json.loads(body)
        assert grade["parts"]["load"]["value"] < 0.4
        assert [each["pid"] for each in grade["processes"]] == [worker.pid]
        assert ask(port, "/health")[0] == 503
        # AND so are Prometheus and whoever asks on the host
        assert metric(port, 'tailspan_worker_health_state{service="toy",state="critical"}') == 1.0
        assert metric(port, "tailspan_host_health_score") < 40
        shown = agent.cli("health")
        assert (shown.returncode, shown.stderr) == (1, "")
        assert [line.split()[:2] for line in shown.stdout.splitlines()[1:]] == [
            ["host", "critical"],
            ["toy", "critical"],
        ]

    # AND when they have gone, it is healthy again
    eventually(lambda: state() == "healthy", "the worker is healthy again", seconds=60)
    assert ask(port, "/health")[0] == 200
    assert told(agent)["host"]["state"] == "healthy"

    # AND of a worker that has ended nothing is left
    worker.go()
    worker.finish()
    eventually(lambda: not json.loads(ask(port, "/health")[1])["workers"], "the worker is forgotten")
    assert metric(port, 'tailspan_worker_health_state{service="toy",state="healthy"}') == 0.0


def test_of_workers_that_end_as_soon_as_they_have_connected_nothing_is_left(
    agent: AgentProcess, port: int
) -> None:
    for _ in range(11):
        with program(PASSES, agent.socket) as worker:
            worker.go()
            assert worker.line() == "connected"
    with program(STAYS, agent.socket) as worker:
        worker.go()
        assert worker.line() == "connected"

        def services() -> set[str]:
            return {each["service"] for each in json.loads(ask(port, "/health")[1])["workers"]}

        eventually(lambda: services() == {"staying"}, "only one is left")


def test_an_agent_that_workers_cannot_reach_is_alive_and_not_ready(agent: AgentProcess, port: int) -> None:
    eventually(lambda: ask(port, "/readyz")[0] == 200, "the agent is ready")
    agent.socket.unlink()
    eventually(lambda: ask(port, "/readyz")[0] == 503, "the agent is not ready")
    assert ask(port, "/readyz")[1] == f"{agent.socket} is gone: workers cannot connect\n"
    assert ask(port, "/healthz")[0] == 200
    assert told(agent)["unready"].startswith(str(agent.socket))
