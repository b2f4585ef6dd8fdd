"""The benchmark itself: that its figures hold together, and that a page can be made of them."""

import json
from pathlib import Path

import pytest

from tests.bench import decode, page
from tests.bench.__main__ import main

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
