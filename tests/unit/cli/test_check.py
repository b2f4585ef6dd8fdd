from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailspan.cli import check
from tailspan.collect.bpf import source
from tailspan.collect.bpf.probes import PROBES
from tailspan.collect.bpf.programs import Options, ProbeStatus
from tailspan.collect.nvml import calls, events
from tailspan.errors import CannotError
from tests.unit.cli.conftest import Run
from tests.unit.collect.nvml_driver import Driver, make_driver

__all__ = ["make_driver"]


class FakeSource:
    """Stands for a kernel on which every probe works but those in ``missing``."""

    missing: frozenset[str] = frozenset()
    error = ""
    opened: list[FakeSource]

    def __init__(self, options: Options) -> None:
        if self.error:
            raise CannotError(self.error)
        self.options, self.closed = options, False
        self.loader, self.loader_why = ("core" if options.loader == "auto" else options.loader), "for a reason"
        self.status = {
            probe.name: ProbeStatus(
                probe, loaded=probe.name not in self.missing, attached=self._attached(probe.name)
            )
            for probe in PROBES
        }
        for name in self.missing:
            self.status[name].why, self.status[name].mend = "this kernel has none", "a newer kernel"
        self.opened.append(self)

    def _attached(self, name: str) -> bool:
        return name not in self.missing and name != "syscalls"

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeSource]:
    class Fake(FakeSource):
        pass

    Fake.opened = []
    monkeypatch.setattr(source, "BpfSource", Fake)
    monkeypatch.setattr(calls, "LIBRARY", "libnvidia-ml-of-nobody.so.1")
    monkeypatch.setenv("TAILSPAN_WORKER_SOCKET", str(tmp_path / "run" / "worker.sock"))
    monkeypatch.setenv("TAILSPAN_STORE_PATH", str(tmp_path / "store"))
    monkeypatch.setenv("TAILSPAN_AGENT_CONTROL", str(tmp_path / "control.sock"))
    return Fake


def facts(out: str) -> dict[str, dict[str, Any]]:
    return {fact["name"]: fact for fact in json.loads(out)["environment"]}


def test_machine_on_which_all_works_is_exit_code_0(run: Run, fake: type[FakeSource]) -> None:
    done = run("check")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("Every default probe works.\n")
    assert all(opened.closed for opened in fake.opened)


@pytest.mark.parametrize(("given", "loader"), [((), "core"), (("--loader", "bcc"), "bcc")])
def test_loader_is_told_and_why(run: Run, fake: type[FakeSource], given: tuple[str, ...], loader: str) -> None:
    told = facts(run("check", "--json", *given).out)["loader"]
    assert (told["value"], told["ok"]) == (f"{loader}: for a reason", True)


def test_loader_that_can_load_nothing_is_a_problem(run: Run, fake: type[FakeSource]) -> None:
    fake.error = "bcc for Python is not installed: apt-get install python3-bpfcc"
    done = run("check", "--json", "--loader", "bcc")
    assert done.code == CannotError.exit_code
    assert facts(done.out)["loader"] == {
        "name": "loader",
        "value": "bcc: nothing is loaded",
        "ok": False,
        "mend": "",
    }


def test_syscalls_are_off_by_default_and_their_cost_is_told(run: Run, fake: type[FakeSource]) -> None:
    body = {probe["name"]: probe for probe in json.loads(run("check", "--json").out)["probes"]}
    assert body["syscalls"]["state"] == "off"
    assert body["syscalls"]["cost"].startswith("off by default: while attached")
    assert "30 to 200 ns" in body["syscalls"]["cost"]
    assert body["sched"]["state"] == "works"


def test_missing_default_probe_is_exit_code_1(run: Run, fake: type[FakeSource]) -> None:
    fake.missing = frozenset({"irq"})
    done = run("check")
    assert done.code == 1
    assert "NO   irq" in done.out
    assert "Missing: irq." in done.out


def test_missing_optional_probe_is_exit_code_0(run: Run, fake: type[FakeSource]) -> None:
    fake.missing = frozenset({"syscalls"})
    done = run("check")
    assert done.code == 0
    assert "NO   syscalls" in done.out


def test_required_probe_that_fails_is_shown_as_the_failing_one(run: Run, fake: type[FakeSource]) -> None:
    fake.error = "probe sched: the kernel refuses program on_switch.\n"
    done = run("check", "--json")
    body = json.loads(done.out)
    assert done.code == 3
    assert body["ok"] is False
    assert body["probes"][0]["why"] == "the kernel refuses program on_switch."
    assert body["error"] == "probe sched: the kernel refuses program on_switch."


def test_missing_privilege_is_exit_code_3_and_still_a_whole_report(run: Run, fake: type[FakeSource]) -> None:
    fake.error = "loading BPF programs needs root"
    done = run("check")
    assert (done.code, done.err) == (3, "")
    assert "cpu controller" in done.out
    assert done.out.endswith("tailspan cannot run here: loading BPF programs needs root\n")


def test_disabled_probes_are_those_of_the_configuration(
    run: Run, fake: type[FakeSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILSPAN_PROBES_DISABLED", "irq")
    run("check")
    assert fake.opened[0].options.disabled == {"irq"}


def test_places_that_can_be_made_are_fine(run: Run, fake: type[FakeSource], tmp_path: Path) -> None:
    found = facts(run("check", "--json").out)
    assert found["worker socket"]["ok"] is True
    assert found["store"] == {"name": "store", "value": str(tmp_path / "store"), "ok": True, "mend": ""}


def test_place_below_a_file_is_not(run: Run, fake: type[FakeSource], tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    found = facts(run("check", "--json").out)
    assert found["store"]["ok"] is False
    assert "cannot write to" in found["store"]["mend"]


def test_absent_agent_is_told_and_is_no_problem(run: Run, fake: type[FakeSource]) -> None:
    found = facts(run("check", "--json").out)
    assert found["agent"]["ok"] is None
    assert "no agent answers" in found["agent"]["value"]


def gpus(run: Run) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(run("check", "--json").out)["gpus"]
    return body


def test_host_without_gpus_says_why_and_has_no_problem(run: Run, fake: type[FakeSource]) -> None:
    done = run("check")
    assert done.code == 0
    assert "gpus\n  none to read: no library: libnvidia-ml-of-nobody.so.1:" in done.out
    assert (gpus(run)["state"], gpus(run)["devices"]) == ("no library", [])


def test_gpus_can_be_switched_off(run: Run, fake: type[FakeSource], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILSPAN_GPU_NVML", "off")
    assert gpus(run)["state"] == "off"


def test_each_gpu_has_a_block_with_what_cannot_be_read(
    run: Run, fake: type[FakeSource], make_driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN two GPUs, of which one has an instance, and the other refuses something
    monkeypatch.setattr(events, "_WAIT_MS", 53)
    make_driver(2).say(
        "error nvmlDeviceGetProcessUtilization NOT_SUPPORTED 1",
        "error field:83 NO_PERMISSION 1",
        "mig 0 1 10737418240",
    )
    done = run("check", "--width", 120)
    block = done.out.partition("gpus\n")[2]
    assert "  driver 580.95.05\n" in block
    assert "ok   0: NVIDIA H100 80GB HBM3 (GPU-00000000-0000-4000-8000-000000000000)\n" in block
    assert "memory 0.0 of 80.0 GiB, SM 1980 of 1980 MHz, memory clock 2619 of 2619 MHz\n" in block
    assert "    ok   0: NVIDIA H100 80GB HBM3 MIG 1g.10gb (MIG-00000000-0000-4000-8001-000000000000)\n" in block
    second = block.partition("ok   1: NVIDIA H100")[2]
    assert "per-process utilisation: Not Supported: co-tenants are seen, their share is not" in second
    said = "not readable: NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION: Insufficient Permissions"
    assert said in second
    assert said not in block.removesuffix(second)
    devices = gpus(run)["devices"]
    assert [device["uuid"][:4] for device in devices] == ["GPU-", "MIG-", "GPU-"]
    assert devices[2]["unreadable"]["nvmlDeviceGetProcessUtilization"] == "Not Supported"


def test_driver_that_hangs_does_not_hold_up_the_report(
    run: Run, fake: type[FakeSource], make_driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_NVML_ANSWERS_S", 0.2)
    driver = make_driver()
    driver.say("delay nvmlInitWithFlags 60000")
    said = gpus(run)
    driver.say()
    assert (said["state"], said["why"]) == ("no driver", "it does not answer within 0.2 s")
