"""The agent's own price, under load: measured, and kept within a budget.

The agent of the second test begins with the first, since it takes a while to find that it costs too much.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tailspan.attribute.causes import Cause
from tailspan.attribute.judge import judge
from tailspan.attribute.verdict import CulpritKind, Outcome, Shed, Verdict
from tailspan.control import ask
from tailspan.errors import CannotError
from tailspan.export.local import SegmentReader
from tests.conftest import eventually
from tests.e2e.conftest import AgentProcess, metric
from tests.e2e.test_explain import assert_conserved, part
from tests.e2e.test_reload import Configured
from tests.workloads import LAST_CPU, Program, cpu_hog, program

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

MS = 1_000_000
#: The shortest there is: four pairs of turns.
SECONDS = 16

#: Requests of 3 ms of CPU time, as many as each line says; forever where that is 0.
SERVES = """
import itertools, tailspan.client
client = tailspan.client.connect(service="toy", path=sys.argv[1])

def burn(ms):
    until = time.thread_time() + ms / 1000
    while time.thread_time() < until: pass

print("ready", flush=True)
for line in sys.stdin:
    count = int(line)
    for _ in range(count) if count else itertools.repeat(0):
        with client.request("POST /toy", model="toy"): burn(3)
        time.sleep(0.007)
    print("served", flush=True)
"""


def serve(worker: Program, count: int) -> None:
    assert worker.process.stdin is not None
    worker.process.stdin.write(f"{count}\n")
    worker.process.stdin.flush()


@pytest.fixture(scope="module")
def frugal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Configured, Program]]:
    """An agent that may cost next to nothing, and a worker of it that has served 60 requests."""
    agent = Configured(tmp_path_factory.mktemp("frugal"), "[budget]\ncpu = 0.001\n[store]\nkeep = 'all'\n")
    try:
        with program(SERVES, agent.socket, cpu=LAST_CPU) as worker:
            worker.go()
            assert worker.line() == "ready"
            serve(worker, 60)
            assert worker.line() == "served"
            yield agent, worker
    finally:
        if agent.process.poll() is None:
            agent.process.kill()
            agent.process.wait()


@pytest.mark.usefixtures("frugal")
def test_what_probes_cost_is_measured_under_the_load_that_there_is(
    run_agent: Callable[..., AgentProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = run_agent("store.keep=all")
    control = agent.folder / "control.sock"
    monkeypatch.setenv("TAILSPAN_AGENT_CONTROL", str(control))
    assert "no worker is followed" in agent.cli("cost", "--measure", "16s").stderr
    with program(SERVES, agent.socket) as worker:
        worker.go()
        assert worker.line() == "ready"
        serve(worker, 0)
        eventually(lambda: "following pid" in agent.log.read_text(), "it is followed")
        # one that goes before its time leaves nothing behind it
        with subprocess.Popen([sys.executable, "-m", "tailspan", "cost", "--measure", "60s"]) as asker:
            eventually(lambda: "probes go off and on" in agent.log.read_text(), "it has begun")
            with pytest.raises(CannotError, match="one at a time"):
                refused = ask(control, {"do": "cost", "measure": 20}, 20)
                raise CannotError(refused["error"])
            asker.kill()
        eventually(lambda: "who had asked for it has gone" in agent.log.read_text(), "it has ended")

        done = agent.cli("cost", "--measure", f"{SECONDS}s", "--json")
        assert done.returncode == 0, done.stderr
        now = agent.cli("cost", "--seconds", "250ms")
    agent.stop()

    # THEN the result sums up
    measured = json.loads(done.stdout)
    assert (measured["turns"], measured["pairs"]) == (8, 4)
    assert min(measured["requests"].values()) >= 50
    for name in ("p50", "mean", "cpu"):
        found = measured["differences"][name]
        assert found["estimate_s"] == pytest.approx(found["on_s"] - found["off_s"])
        assert found["lower_s"] <= found["estimate_s"] <= found["upper_s"]
        assert found["told_apart"] is not (found["lower_s"] <= 0 <= found["upper_s"])
        assert 0.003 <= found["on_s"] < 0.1
    assert "on_switch" in now.stdout
    assert "what probes cost the worker, measured" in now.stdout

    # AND nothing was recorded while probes were off, and what was served then says why it is not explained
    evidence = list(SegmentReader(agent.store).evidence())
    off = sorted({tuple(turn) for each in evidence for turn in each.meta.probes_off})
    assert sum(until - since for since, until in off) > 4 * 1_000 * MS
    cycles = np.concatenate([each.cycles for each in evidence])
    for since, until in off:
        inside = (cycles["run_mono_ns"] < until) & (cycles["on_mono_ns"] > since + 50 * MS)
        assert not (inside & (cycles["on_mono_ns"] < until - 100 * MS)).any()
        assert not ((cycles["run_mono_ns"] < since) & (cycles["on_mono_ns"] > until)).any()
    verdicts = agent.verdicts()
    assert_conserved(verdicts)
    blind = [each for each in verdicts if each.trust.probes_off_ns == each.request.wall_ns]
    sighted = [each for each in verdicts if not each.trust.probes_off_ns]
    assert len(blind) >= 50
    assert all(each.outcome is Outcome.INCONCLUSIVE for each in blind)
    assert all("probes were off: cost was being measured" in each.sentence for each in blind)
    assert np.median([each.trust.coverage for each in sighted]) > 0.99


def test_above_its_budget_it_sheds_in_order_says_so_and_comes_back(frugal: tuple[Configured, Program]) -> None:
    agent, worker = frugal

    def serves_beside_a_hog() -> int:
        with cpu_hog(LAST_CPU) as hog:
            serve(worker, 40)
            assert worker.line() == "served"
            return hog

    agent.says("neighbours' slices are shed: the agent is above its budget (cpu)")
    serves_beside_a_hog()
    level = metric(agent.port, "tailspan_shed_level")
    assert level >= 3
    assert metric(agent.port, 'tailspan_shed_step{step="slices"}') == 1

    # WHEN the budget is raised
    agent.reload("[budget]\ncpu = 0\n[store]\nkeep = 'all'\n")
    agent.says("neighbours' slices are back")
    eventually(lambda: metric(agent.port, "tailspan_shed_level") == 0, "nothing is shed")
    hog = serves_beside_a_hog()
    agent.stop()

    said = agent.said()
    order = ["records of system calls are shed", "CUDA calls are shed", "neighbours' slices are shed"]
    assert [said.index(step) for step in order] == sorted(said.index(step) for step in order)

    # THEN verdicts of before say what they lack, and those after it lack nothing
    with_shed, whole = [], []
    for verdict in judged(agent.store):
        if part(verdict, Cause.RUN_QUEUE).ns > 2 * MS:
            (with_shed if Shed("slices", "cpu") in verdict.trust.shed else whole).append(verdict)
    why = "who had the CPU is not known: neighbours' slices were shed, the agent was above its CPU budget"
    assert len(with_shed) >= 5
    assert all(why in verdict.trust.notes for verdict in with_shed)
    named = [verdict for verdict in with_shed if verdict.cause is Cause.RUN_QUEUE and verdict.culprit is None]
    assert named
    assert all(why in verdict.sentence for verdict in named)
    assert all(
        culprit.kind is CulpritKind.NONE
        for verdict in named
        for culprit in part(verdict, Cause.RUN_QUEUE).culprits
    )
    assert any(verdict.culprit is not None and verdict.culprit.pid == hog for verdict in whole)


def judged(store: Path) -> list[Verdict]:
    return [verdict for evidence in SegmentReader(store).evidence() for verdict in judge(evidence)]
