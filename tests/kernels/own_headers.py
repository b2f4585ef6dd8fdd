"""bcc on the kernel's own headers, as where there is no BTF, beside CO-RE. In a guest: not collected by itself."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from tailspan.collect.bpf.source import BpfSource
from tests.kernel.test_loaders import test_both_loaders_write_the_same_records as _same_records

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(
        not Path(f"/lib/modules/{platform.release()}/build/include").exists(),
        reason="the kernel's own headers are not here",
    ),
]


def test_bcc_on_the_kernels_own_headers_writes_the_same_records(
    tmp_path: Path, open_source: Callable[..., BpfSource]
) -> None:
    opened: dict[str, BpfSource] = {}

    def open_with(loader: str, **options: object) -> BpfSource:
        without = {"vmlinux": tmp_path / "absent"} if loader == "bcc" else {}
        opened[loader] = open_source(loader=loader, **without, **options)
        return opened[loader]

    _same_records(tmp_path, open_with)
    assert "compiled by bcc on headers /usr/src" in opened["bcc"].loader_why
