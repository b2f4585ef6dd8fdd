"""What all tests share: when a kernel test may be skipped, and how to wait for something."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tailspan.collect.bpf.source import BpfSource, Options

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("tailspan", deadline=None)
settings.load_profile("tailspan")


def _why_no_kernel() -> str:
    """Why BPF cannot be loaded here; "" when it can."""
    if os.geteuid() != 0:
        return "kernel tests need root"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "this kernel has no BTF"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = _why_no_kernel()
    if not why:
        return
    if os.environ.get("TAILSPAN_REQUIRE_KERNEL") == "1":
        raise pytest.UsageError(f"TAILSPAN_REQUIRE_KERNEL=1, but {why}")
    for item in items:
        if item.get_closest_marker("kernel") or item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture
def open_source() -> Iterator[Callable[..., BpfSource]]:
    """Opens sources with Options(**given); all are closed at the end."""
    opened: list[BpfSource] = []

    def open_with(**options: object) -> BpfSource:
        opened.append(BpfSource(Options(**options)))  # type: ignore[arg-type]
        return opened[-1]

    yield open_with
    for source in opened:
        source.close()


@pytest.fixture
def source(open_source: Callable[..., BpfSource]) -> BpfSource:
    return open_source()


def eventually(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait until ``condition`` holds; fails with ``what`` when the budget is spent."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(0.005)
