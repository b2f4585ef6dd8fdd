"""Both loaders on one workload: bcc on the kernel's BTF, and on its headers. Not collected by itself."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from tailspan.collect.bpf import btf
from tailspan.collect.bpf.source import BpfSource
from tests.kernel import test_loaders as loaders

pytestmark = pytest.mark.kernel

#: Every system call: one that takes about the floor is above it for the one loader, and below for the other.
ALL_CALLS = {"syscall_floor_ns": 0, "syscall_ring_bytes": 1 << 20}

HEADERS = Path(f"/lib/modules/{platform.release()}/build/include")


@pytest.mark.parametrize("tree", ["stub", "headers"])
def test_bcc_writes_the_same_records(
    tree: str, tmp_path: Path, open_source: Callable[..., BpfSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    if tree == "headers" and not HEADERS.exists():
        pytest.skip("the kernel's own headers are not here")
    if not btf.kernel_has(["btf_trace_sock_recv_length"]):
        monkeypatch.delitem(loaders.OF, "sockets")
    said = []

    def open_with(loader: str, **options: object) -> BpfSource:
        without = {"vmlinux": tmp_path / "absent"} if (loader, tree) == ("bcc", "headers") else {}
        source = open_source(loader=loader, **ALL_CALLS, **without, **options)
        said.append(source.loader_why)
        return source

    loaders.test_both_loaders_write_the_same_records(tmp_path, open_with)
    assert f"compiled by bcc on {'a stub of ' if tree == 'stub' else ''}headers" in said[1]
