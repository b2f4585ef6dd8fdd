"""The benchmark itself: that its figures hold together, and that a page can be made of them."""

import json
import os
import sys
from pathlib import Path

import pytest

from tailspan.collect.bpf.source import BpfSource
from tests.bench import client, decode, page, probes, rates, serving, switch
from tests.bench.__main__ import main
from tests.bench.others import Tool
from tests.bench.spread import quotient_of_costs
from tests.conftest import eventually

pytestmark = pytest.mark.kernel


#: A tool like those of others, as far as the bench can tell: a process with a program at every switch.
_TOOL = f"""\
#!{sys.executable}
import time
from tests.bench.measured import empty_program
with empty_program():
    time.sleep(60)
"""


def test_a_switch_is_compared_with_nothing_and_with_the_tools_that_run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-tool").write_text(_TOOL)
    (tmp_path / "a-tool").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    tools = (
        Tool("one", "its-package", "a-tool", busy=1),
        Tool("no such tool", "its-package", "no-such-program"),
        Tool("one that fails", "its-package", "false"),
    )

    figures = switch.measure(rounds=1, seconds=0.1, measured_rounds=1, tools=tools)

    assert set(figures["ratio"]) == {"absent again", "empty program", *switch.OURS, "one"}
    assert {kind: set(of_it) for kind, of_it in figures["cost_to"].items()} == {
        "followed": {"one"},
        "every switch": {"one"},
    }
    assert set(figures["switch_ns"]) == {*switch.OURS, "one"}
    assert figures["left_out"] == {
        "no such tool": "not installed: apt-get install --no-install-recommends its-package",
        "one that fails": "one that fails does not run here: it says nothing",
    }
    on_switch = {kind: figures["programs"][kind]["on_switch"] for kind in switch.OURS}
    assert all(of["runs_per_event"] >= 0.99 for of in on_switch.values())
    over_empty = {kind: of["over_empty_ns"]["median"] for kind, of in on_switch.items()}
    assert over_empty[switch.IGNORED] < over_empty[switch.EVERY]
    assert set(figures["lost"]) == {switch.FOLLOWED, switch.EVERY}
    rendered = page.wrapped(switch.render(json.loads(json.dumps(figures))))
    assert "*no such tool* is left out: not installed: apt-get install" in " ".join(rendered.split())


def test_half_the_cost_is_a_quotient_of_a_half_whatever_the_rounds_have_in_common() -> None:
    absent, theirs, ours = [100.0, 50.0, 200.0], [60.0, 30.0, 120.0], [80.0, 40.0, 160.0]

    quotient = quotient_of_costs(ours, theirs, absent)

    assert [quotient[key] for key in ("low", "median", "high")] == pytest.approx([0.5, 0.5, 0.5])


def test_every_event_of_a_pace_is_read_by_a_whole_agent_or_counted_as_lost() -> None:
    figures = rates.measure(rounds=1, seconds=0.5, idle_s=0.5, paces=(20_000,))

    paced = figures["paces"]["20000"]
    read = paced["turns_per_s"]["median"] + paced["lost"][rates.TURN] / 0.5
    assert read >= 0.99 * paced["made_per_s"]["median"]
    assert paced["cpu_percent"]["median"] > 0
    assert set(figures["idle"]) == {"no worker", "a worker, silent"}
    assert "| 20,000 |" in page.wrapped(rates.render(json.loads(json.dumps(figures))))


def test_no_call_of_the_client_sleeps_whatever_the_agent_does(tmp_path: Path) -> None:
    states = client.of_requests(tmp_path, rounds=1, bursts=20)

    assert set(states) == set(client.STATES)
    for state in states.values():
        assert state["calls"] == 20 * client.BURST
        assert state["slept"] == 0
        assert state["p50_ns"]["median"] <= state["p99_ns"]["median"] <= state["worst_ns"]
    assert states[client.ABSENT]["dropped_percent"] == 100
    assert 0 < states[client.STOPPED]["dropped_percent"] < 100
    assert states[client.ABSENT]["p50_ns"]["median"] < states[client.STOPPED]["p50_ns"]["median"]


def test_every_turn_of_a_storm_is_read_or_counted_as_lost() -> None:
    figures = decode.measure(rounds=1, seconds=0.1)

    assert set(figures["storms"]) == set(decode.STORMS)
    for storm in figures["storms"].values():
        assert storm["cycles"] > 1_000
        # A thread that is still on its way to sleep when the last records are read may be one turn ahead of them.
        assert abs(storm["waits"] - storm["cycles"] - storm["cycles_lost"]) <= figures["threads"]
        assert storm["cpu_ns_per_record"]["median"] > 0
        assert decode.SLICE_BYTES < storm["bytes_per_record"] < decode.CYCLE_BYTES
    assert page.wrapped(decode.render(json.loads(json.dumps(figures)))).startswith("## Reading records\n\n")


def test_what_a_probe_looks_at_is_done_and_its_programs_run(source: BpfSource) -> None:
    there = set(source.run_times())  # an older kernel lacks some
    source.close()
    figures = probes.measure(rounds=1, seconds=0.04)

    for measured in figures["events"].values():
        for workload in set(probes.EVENTS) - {probes.LOCK, probes.RECLAIM}:  # those depend on the machine
            for program in workload.programs:
                if program in there and not program.startswith("on_irq"):  # a disk's driver may poll
                    assert measured[workload.words][program]["ns"] > 0, (workload.words, program)
        exchange = measured[probes.EXCHANGE.words]
        for program in there & {"on_tcp_send", "on_tcp_receive", "on_tcp_segment"}:
            assert exchange[program]["runs_per_event"] == pytest.approx(2, rel=0.1)
        # SYN, established and closed on either side, and what others on the host do
        assert measured[probes.CONNECTION.words]["on_tcp_state"]["runs_per_event"] >= 4
        for program in probes.READ.programs[:2]:
            assert measured[probes.READ.words][program]["runs_per_event"] >= 0.99
    for measured in figures["sleeps"].values():
        assert all(measured[workload.words]["on_switch"]["ns"] > 0 for workload in probes.SLEEPS)
    assert all(set(rate["ratio"]) == set(rate["per_s"]) - {probes.ABSENT} for rate in figures["rates"].values())
    rendered = page.wrapped(probes.render(json.loads(json.dumps(figures))))
    assert rendered.startswith("## The probes\n\n")
    assert all(f"`{name}` | " in rendered for name in ("block", "tcp", "incidents", "syscalls", "gpu"))


def test_core_is_the_agent_without_the_refining_probes(tmp_path: Path) -> None:
    core = ["irq", "lifecycle", "owners", "sched"]
    default = sorted(probes.REFINING | set(core))

    with serving.agent(tmp_path, probes.REFINING) as agent:
        eventually(lambda: agent.reading()["probes"] == core, f"attached: {core}")
    with serving.agent(tmp_path) as agent:
        eventually(lambda: agent.reading()["probes"] == default, f"attached: {default}")


def test_the_page_is_made_of_the_figures_that_a_run_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"

    assert main(["client", "--quick", "--json", str(file)]) == 0
    printed = capsys.readouterr().out.strip()
    assert main(["--render", str(file)]) == 0
    rendered = capsys.readouterr().out

    assert set(json.loads(file.read_text())["benches"]) == {"client"}
    assert rendered.startswith("# Overhead\n")
    assert printed.startswith("## The client\n") and printed in rendered
    assert "## The worker" not in rendered


def test_an_unknown_bench_is_refused_with_the_names_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["decoder"])

    assert "no bench decoder: there are worker, client" in capsys.readouterr().err
