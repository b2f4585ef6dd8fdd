"""What is made of a soak's samples and rounds."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from tests.chaos import report
from tests.chaos.fault import discover
from tests.chaos.run import Figures, Round
from tests.chaos.soak import ENDS_S, slope, summary, turns


def samples(mib_per_h: float, noise: float = 0.0) -> list[tuple[float, ...]]:
    """An hour, with what comes before it is warm: a third more."""
    dice = np.random.default_rng(23)
    return [
        (at_s, (60 if at_s < 300 else 80) + mib_per_h * at_s / 3600 + noise * dice.standard_normal(), 170, 6)
        for at_s in range(5, 3601, 5)
    ]


def test_growth_is_of_what_comes_after_the_first_ten_minutes() -> None:
    flat = summary(samples(0))
    assert (flat["growth"], flat["begin_s"], flat["fds"]["most"], flat["threads"]["last"]) == (0.0, 600.0, 170, 6)
    between_h, first = (3600 - 600 - ENDS_S) / 3600, 80 + 8 * (600 + ENDS_S / 2) / 3600
    assert summary(samples(8))["growth"] == pytest.approx(8 * between_h / first, rel=0.02)


@pytest.mark.parametrize("mib_per_h", [0.0, 3.0])
def test_the_slope_is_found_in_noise_and_its_interval_holds_it(mib_per_h: float) -> None:
    table = np.array(samples(mib_per_h, noise=2.0)[200:])
    found = slope(table[:, 0], table[:, 1])
    assert found["low"] < mib_per_h < found["high"]
    assert found["high"] - found["low"] < 4


def test_too_few_samples_say_nothing() -> None:
    assert slope(np.arange(9.0), np.arange(9.0)) == {}
    assert summary([(5.0, 80.0, 170, 6)]) == {"samples": [[5.0, 80.0, 170.0, 6.0]]}
    assert turns([a_round("killed", 80.0)]) == {}


def a_round(fault: str, mib: float, **more: object) -> Round:
    reading = {"rss_mib": mib, "peak_rss_mib": mib, "fds": 170, "threads": 6}
    figures = {"count": 1, "p50_ms": 5.0, "p99_ms": 9.0, "max_ms": 9.0}
    given: Figures = {"before": figures, "during": figures, "did": {"stops": 1}} | more
    return Round(fault, 0.0, reading=reading, **given)


def test_turns_compare_a_fault_with_itself() -> None:
    rounds = [a_round(fault, mib) for mib in (1.0, 1.0, 1.02) for fault in ("stopped", "reloads", "disk_full")]
    rounds[0].reading["rss_mib"], rounds[6].reading["rss_mib"] = 100.0, 102.0  # another size, the same growth
    found = turns(rounds)
    assert found["times"] == 3
    assert all(found[key] == pytest.approx(0.02) for key in ("growth", "low", "high"))


def test_page_and_picture_show_what_was_found() -> None:
    from dataclasses import asdict

    rounds = [
        a_round("stopped", 80.0, wrong=["it hurt"]),
        a_round("killed", 80.0, did={}),
        a_round("stopped", 81.0),
    ]
    rounds[0].lost = {"record client_message": 1234}
    found: Figures = {
        "machine": {"cpu": "x", "cpus": 2, "virtual": True, "memory_gib": 1, "kernel": "6", "python": "3"},
        "seed": 1,
        "seconds": 3600,
        "rate_per_s": 25.0,
        "user": "nobody",
        "what": {name: fault.what for name, fault in discover().items()},
        "rounds": [asdict(done) for done in rounds],
        "soak": summary(samples(0)) | {"turns": turns(rounds)},
    }
    found["machine"]["load_before"] = 0.1
    assert report.wrong(found) == ["stopped: it hurt", "killed: nothing of it was to be seen"]
    page = report.page(found)
    assert "| `stopped`: SIGSTOP, then SIGCONT | 2 | 2 stops | alive |" in page
    assert "| `record client_message` | 1,234 | stopped |" in page
    assert "**+0.00%**" in page
    assert "`reloads`" not in page  # it was not tried
    lines = ET.fromstring(report.picture(found)).findall("{*}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [720]
