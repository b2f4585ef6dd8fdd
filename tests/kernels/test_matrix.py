"""Debian's own kernel 6.1, booted once: what is there, what is not, and the shortest of the kernel tests."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.guest import Guest, GuestError
from tests.kernels.archive import UnavailableError

pytestmark = [pytest.mark.kernel, pytest.mark.guest]

SERIES = "6.1"
TESTS = (
    "kernel/test_sched.py::test_the_thread_that_ended_the_wait_is_named",
    "kernel/test_sched.py::test_threads_that_existed_are_adopted_and_later_ones_followed_from_birth",
)


@pytest.fixture(scope="module")
def guest() -> Guest:
    try:
        return Guest(SERIES)
    except UnavailableError as error:
        if os.environ.get("TAILSPAN_REQUIRE_KERNEL") == "1":
            pytest.fail(f"no kernel to boot: {error}")
        pytest.skip(f"no kernel to boot: {error}")


@pytest.fixture(scope="module")
def found(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("guest")
    file = folder / "found.json"
    inside = [sys.executable, "-m", "tests.kernels.inside", "--unmeasured", "core", str(file), *TESTS]
    ended = guest.run(shlex.join(inside), folder, timeout_s=240)
    assert ended.status == 0, ended.output
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_an_older_kernel_has_all_probes_but_what_it_says(found: dict[str, Any]) -> None:
    assert found["release"].startswith(f"{SERIES}.")
    assert not found["error"]
    missing = {probe["name"]: probe["why"] for probe in found["probes"] if probe["state"] == "missing"}
    assert missing == {"tcp": "this kernel has no sock_recv_length, sock_send_length"}


def test_kernel_tests_pass_on_it(found: dict[str, Any]) -> None:
    assert found["tests"]["failed"] == {}
    assert found["tests"]["passed"] == len(TESTS)


def test_a_kernel_that_panics_is_told_with_its_last_words(guest: Guest, tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="sysrq triggered crash"):
        guest.run("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger; sleep 60", tmp_path, 120)
