"""What the agent costs, as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailspan.views import cost

GOLDEN = Path(__file__).parents[2] / "golden" / "cost.txt"


def difference(on_s: float, off_s: float, spread_s: float) -> dict[str, Any]:
    estimate_s = on_s - off_s
    return {
        "on_s": on_s,
        "off_s": off_s,
        "estimate_s": estimate_s,
        "lower_s": estimate_s - spread_s,
        "upper_s": estimate_s + spread_s,
        "ratio": on_s / off_s,
        "ratio_lower": (on_s - spread_s) / off_s,
        "ratio_upper": (on_s + spread_s) / off_s,
        "told_apart": abs(estimate_s) > spread_s,
    }


def measured(**changes: Any) -> dict[str, Any]:
    return {
        "measured_unix_s": 1_763_000_000.0,
        "seconds": 61.4,
        "turns": 30,
        "pairs": 15,
        "seed": 23,
        "requests": {"on": 5210, "off": 5302},
        "differences": {
            "p50": difference(0.008123, 0.008101, 0.000005),
            "p99": difference(0.0213, 0.0219, 0.0012),
            "mean": difference(0.009, 0.00899, 0.000031),
            "cpu": difference(0.0040123, 0.0040042, 0.0000024),
        },
    } | changes


def answer(**changes: Any) -> dict[str, Any]:
    return {
        "agent": {
            "up_s": 7321.0,
            "cpu": {"10s": 0.0213, "60s": 0.0198, "start": 0.02},
            "rss": 74 << 20,
            "peak_rss": 79 << 20,
            "threads": 4,
            "files": 143,
        },
        "bpf": {
            "seconds": 3.02,
            "programs": [
                {"program": "on_switch", "ns_per_run": 211.2, "runs_per_s": 23988.9, "cpu": 0.005066},
                *(
                    {"program": f"on_{name}", "ns_per_run": 70.0, "runs_per_s": 100.0, "cpu": 0.000007}
                    for name in "abcdefghijklm"
                ),
            ],
        },
        "records_per_s": {"cycle": 1221.5, "slice": 83.25, "socket": 0.0},
        "lost": {"60s": {"slice": 3}, "total": {"slice": 7, "client_message": 74}},
        "budget": {"cpu": 0.25, "rss_mib": 256},
        "shed": [
            {"step": "syscalls", "what": "records of system calls", "why": "cpu", "unsaid": ""},
            {
                "step": "slices",
                "what": "neighbours' slices",
                "why": "cpu",
                "unsaid": "who had the CPU is not known",
            },
        ],
        "measuring": False,
        "measured": measured(),
    } | changes


def test_text_of_an_answer_is_the_golden_one() -> None:
    assert cost.as_text(answer()) + "\n" == GOLDEN.read_text()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_asked_for(width: int) -> None:
    assert max(map(len, cost.as_text(answer(), width).splitlines())) <= width


def test_an_agent_that_has_seen_nothing_says_so() -> None:
    text = cost.as_text(
        answer(bpf=None, records_per_s={}, lost={"60s": {}, "total": {}}, shed=[], measured=None)
        | {"budget": {"cpu": 0.0, "rss_mib": 0}}
    )
    assert "budget any CPU time, any memory: nothing is shed" in text
    assert "no records of the kernel in the last 10 s, and none lost" in text
    assert "has not been measured: tailspan cost --measure 60s" in text
    assert "BPF" not in text
    running = cost.as_text(answer(measuring=True, measured=None))
    assert "is being measured now" in running
    assert "has not been measured" not in running


def test_what_could_not_be_told_is_said() -> None:
    text = cost.measured_as_text(measured(differences={"p50": difference(0.0081, 0.0080, 0.001)}))
    assert "p50: could not be told apart, the interval contains 0" in text
    assert "p99: too few requests to tell" in text
    assert "cpu time: a turn had no request to share it" in text
    sure = measured(differences={"p50": difference(0.0091, 0.0080, 0.0001)})
    assert "told apart" not in cost.measured_as_text(sure)
    still = difference(0.0, 1.0, 0.0) | {"ratio": float("nan")}
    assert cost.measured_as_text(measured(differences={"p50": still})).splitlines()[3].endswith(" -")


def test_an_answer_of_another_version_is_an_error_to_the_caller() -> None:
    for broken in ({}, {"agent": {}}, answer(shed=[{}]), answer(measured={"turns": 3})):
        with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
            cost.as_text(broken)
