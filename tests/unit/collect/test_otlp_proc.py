"""Who holds a connection's other end, as /proc tells it: of processes that have any name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailspan.collect.otlp import proc
from tests.conftest import eventually
from tests.workloads import program

_NAMED = """
import ctypes, sys, time
ctypes.CDLL(None).prctl(15, bytes.fromhex(sys.argv[1]), 0, 0, 0)  # PR_SET_NAME
time.sleep(60)
"""


@pytest.mark.parametrize(
    "name",
    ["ca café-worker é".encode()[:15], b"\xff\xfe", "a\u2028Uid:\t0 0".encode(), b"a\x0bNStgid: 1", b") S 1 1 1"],
    ids=["cut", "bytes", "line", "tab", "stat"],
)
def test_a_process_may_be_called_anything(name: bytes) -> None:
    with program(_NAMED, name.hex()) as child:
        child.go()
        eventually(lambda: Path(f"/proc/{child.pid}/comm").read_bytes() == name + b"\n", "it has its name")
        assert (child.pid, child.pid, 0) in [(tgid, ns_tgid, 0) for tgid, ns_tgid, _ in proc.processes()]
        assert proc._started(Path(f"/proc/{child.pid}")) > 0
