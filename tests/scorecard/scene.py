"""What faults are injected into: agent, worker under load, its upstream and its helper."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tailspan.errors import CannotError
from tests.e2e.conftest import AgentProcess
from tests.netns import End, link
from tests.scorecard.cgroups import Cgroups
from tests.scorecard.children import Child, hog, python
from tests.scorecard.gpu import Card
from tests.scorecard.load import Load

UPSTREAM_PORT = 9000


@dataclass
class Scene:
    """The worker is alone on its CPU; everything else shares the other one."""

    folder: Path  #: on a real disk
    agent: AgentProcess
    agent_port: int  #: of its metrics
    worker: Child
    upstream: Child
    helper: Child
    load: Load
    cgroups: Cgroups  #: of the worker
    near: End  #: of the link to the upstream: the worker is in this network namespace
    far: End  #: and the upstream in this one
    worker_cpu: int
    other_cpu: int
    card: Card  #: the worker's GPU

    @property
    def upstream_address(self) -> str:
        return f"{self.far.address}:{UPSTREAM_PORT}"

    @property
    def log(self) -> Path:
        return self.folder / "children.log"

    @contextlib.contextmanager
    def switched(self, name: str) -> Iterator[None]:
        """A fault inside the worker's own process, see :mod:`tests.scorecard.switches`."""
        self.worker.tell(f"{name} on")
        try:
            yield
        finally:
            self.worker.tell(f"{name} off")

    @contextlib.contextmanager
    def hog(self, cpu: int, threads: int) -> Iterator[int]:
        """A neighbour with a larger share of the CPU than the worker. Gives its pid."""
        with hog(cpu, threads, self.log) as pid:
            self.cgroups.join_neighbours(pid)
            yield pid

    def python(
        self, source: str, *arguments: object, **environment: str
    ) -> contextlib.AbstractContextManager[int]:
        """A program on the other CPU; it prints a line when it has begun. Gives its pid."""
        return python(source, *arguments, cpu=self.other_cpu, log=self.log, environment=environment)


@contextlib.contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    """Raises CannotError where the host lacks something. Removes all that it made."""
    cpus = sorted(os.sched_getaffinity(0))
    if os.geteuid() != 0 or len(cpus) < 2:
        raise CannotError("the scorecard needs root, for it loads BPF programs, and two CPUs")
    other, own = cpus[0], cpus[-1]
    os.sched_setaffinity(0, {other})  # inherited by all but the worker
    log = folder / "children.log"
    with contextlib.ExitStack() as stack:
        near, far = stack.enter_context(link())
        upstream_address = f"{far.address}:{UPSTREAM_PORT}"
        cgroups = stack.enter_context(contextlib.closing(Cgroups()))
        agent_folder = folder / "agent"
        agent_folder.mkdir()
        port = _free_port()
        card = Card(folder)
        agent = AgentProcess(
            agent_folder,
            f"export.prometheus=127.0.0.1:{port}",
            "budget.cpu=64",  # one that is never reached: a flood would cost it its culprits
            environment=card.environment,
        )
        stack.callback(_end_agent, agent)
        module = (sys.executable, "-m")

        def child(*command: str, **environment: str) -> Child:
            started = Child(list(command), log, {**os.environ, **environment})
            stack.callback(started.end)
            return started

        upstream = child(*far.prefix, *module, "tests.scorecard.upstream", "--address", upstream_address)
        helper_socket = str(folder / "helper.sock")
        helper = child(*module, "tests.scorecard.helper", "--socket", helper_socket)
        worker = child(
            *near.prefix,
            *("taskset", "-c", str(own), *module, "tests.scorecard.worker", "--folder", str(folder)),
            *("--upstream", upstream_address, "--helper", helper_socket, "--other-cpu", str(other)),
            TAILSPAN_SOCKET=str(agent.socket),
            **card.environment,
        )
        cgroups.join(worker.pid)
        load = stack.enter_context(contextlib.closing(Load(near, int(worker.said), worker.pid)))
        yield Scene(folder, agent, port, worker, upstream, helper, load, cgroups, near, far, own, other, card)


def _end_agent(agent: AgentProcess) -> None:
    if agent.process.poll() is None:
        agent.process.kill()
        agent.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
