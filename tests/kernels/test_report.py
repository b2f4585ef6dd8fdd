"""The matrix as text, from findings made up."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tests.kernels import report
from tests.kernels.inside import Findings, Ran

LACKS = "this kernel has no sock_recv_length, sock_send_length"


def results(*ways: Findings) -> dict[str, Any]:
    kernel = {
        "series": "6.1",
        "suite": "bookworm",
        "release": "6.1.0-50-cloud-amd64",
        "version": "6.1.176-1",
        "ways": [asdict(found) for found in ways],
    }
    return {"date": "2026-11-21", "wall_s": 600, "kernels": [kernel]}


def found(way: str, **given: Any) -> Findings:
    probes = [{"name": "sched", "state": "works", "why": ""}, {"name": "tcp", "state": "missing", "why": LACKS}]
    return Findings(
        "6.1.0-50-cloud-amd64",
        way,
        probes=probes,
        first_s=0.5,
        start_s=0.25,
        resident_mib=40.4,
        peak_mib=61.6,
        **given,
    )


def test_probes_stand_below_each_other_and_each_reason_is_said_once() -> None:
    text = report.table(results(found("core"), found("bcc")))

    assert "| probe | 6.1 core | 6.1 bcc |\n| --- | --- | --- |" in text
    assert "| sched | works | works |" in text
    assert "| tcp | missing [1] | missing [1] |" in text
    assert text.count(LACKS) == 1


def test_a_loader_that_cannot_be_had_says_why_beside_one_that_can() -> None:
    without = Findings("6.1.0-50-cloud-amd64", "bcc", error="bcc for Python is not installed")

    text = report.table(results(found("core"), without))

    assert "| sched | works | none [1] |" in text
    assert "1. bcc for Python is not installed" in text
    assert "| start, s | 0.25 | - |" in text


def test_what_failed_what_was_skipped_and_what_passed_late_is_listed_by_name() -> None:
    tests = Ran(
        5, ["kernel/a.py::late"], 9.0, {"kernel/a.py::bad": "assert 22 == 23"}, {"kernel/a.py::no": "root"}
    )

    text = report.table(results(found("core", tests=tests)))

    assert "| tests | 5 passed, **1 failed**, 1 skipped |" in text
    assert "- passed at a second try on 6.1 with core: `kernel/a.py::late`" in text
    assert "- failed on 6.1 with core: `kernel/a.py::bad`: assert 22 == 23" in text
    assert "- skipped on 6.1 with core: `kernel/a.py::no`: root" in text


def test_a_page_names_the_kernels_and_when() -> None:
    page = report.page(results(found("core")))

    assert "on 2026-11-21" in page
    assert "- 6.1: 6.1.0-50-cloud-amd64 (Debian bookworm, 6.1.176-1, emulated)" in page
    assert "about 10 minutes" in page
