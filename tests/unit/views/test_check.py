from __future__ import annotations

import json
from dataclasses import replace

from tailspan.views import check
from tailspan.views.check import Fact, ProbeReport, Report

SCHED = ProbeReport("sched", "works", True, True, "who ran", "", "everything", "", "a look-up")
IRQ = ProbeReport(
    "irq", "missing", True, False, "interrupts", "this kernel has no irq", "interrupts", "a newer kernel", "short"
)
SYSCALLS = ProbeReport(
    "syscalls", "off", False, False, "latency", "", "the CPU part", "", "off by default: 180 ns"
)
BTF = Fact("BTF", "/sys/kernel/btf/vmlinux", False, "needs CONFIG_DEBUG_INFO_BTF")


def test_missing_probe_says_why_what_is_unknowable_and_how_to_mend_it() -> None:
    text = check.as_text(Report((SCHED, IRQ), ()))
    assert "ok   sched" in text
    assert "NO   irq" in text
    for said in ("why: this kernel has no irq", "unknowable: interrupts", "mend: a newer kernel", "cost: short"):
        assert said in text
    assert text.endswith("Missing: irq. What depends on it is shown as unknowable, never as zero.")


def test_working_probe_tells_its_cost_and_nothing_about_mending() -> None:
    text = check.as_text(Report((SCHED,), ()))
    assert "cost: a look-up" in text
    assert "unknowable" not in text
    assert text.endswith("Every default probe works.")


def test_probe_that_is_off_by_default_is_not_missing() -> None:
    report = Report((SCHED, SYSCALLS), ())
    assert report.missing == []
    assert "off  syscalls" in check.as_text(report)
    assert "off by default: 180 ns" in check.as_text(report)


def test_environment_tells_how_to_mend_what_is_not_there() -> None:
    text = check.as_text(Report((), (BTF, Fact("kernel", "6.1"))))
    assert "NO   BTF     /sys/kernel/btf/vmlinux: needs CONFIG_DEBUG_INFO_BTF" in text
    assert "       kernel  6.1" in text


def test_error_that_stops_everything_is_the_last_word() -> None:
    text = check.as_text(Report((replace(SCHED, state="missing"),), (), "needs root"))
    assert text.endswith("tailspan cannot run here: needs root")


def test_lines_keep_to_the_width() -> None:
    long = replace(IRQ, why="because " * 40, answers="answers " * 40)
    text = check.as_text(Report((long,), (replace(BTF, mend="mend " * 40),)), 60)
    assert max(map(len, text.splitlines())) <= 60


def test_json_of_the_report_is_plain_and_says_what_is_missing() -> None:
    body = json.loads(json.dumps(check.as_json(Report((SCHED, IRQ), (BTF,)))))
    assert (body["ok"], body["missing"], body["error"]) == (False, ["irq"], "")
    assert body["probes"][1]["why"] == "this kernel has no irq"
    assert body["environment"][0] == {
        "name": "BTF",
        "value": "/sys/kernel/btf/vmlinux",
        "ok": False,
        "mend": "needs CONFIG_DEBUG_INFO_BTF",
    }
    assert check.as_json(Report((SCHED,), ()))["ok"] is True
