"""The benchmark itself: that its figures hold together, and that a page can be made of them."""

import json
from pathlib import Path

import pytest

from tailspan.collect.bpf.source import BpfSource
from tests.bench import decode, page, probes, serving
from tests.bench.__main__ import main
from tests.conftest import eventually

pytestmark = pytest.mark.kernel


def test_every_turn_of_a_storm_is_read_or_counted_as_lost() -> None:
    figures = decode.measure(rounds=1, seconds=0.2)

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
    figures = probes.measure(rounds=1, seconds=0.1)

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
