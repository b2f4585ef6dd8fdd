"""Large arrays that are freed are the kernel's again, whatever small ones were made after them."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Each large array lies below a small one that stays: on a heap nothing of it could be given back.
PROGRAM = """
import sys
import numpy as np
import psutil
from tailspan import memory

if sys.argv[1] == "yes":
    memory.return_what_is_large()
np.ones(3 << 20, np.uint8)  # freed at once: from now on glibc takes so much for usual
before = psutil.Process().memory_info().rss
pairs = [(np.ones(2 << 20, np.uint8), np.ones(64 << 10, np.uint8)) for _ in range(23)]
small = [small for _, small in pairs]
del pairs
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.parametrize(("called", "stays"), [("yes", False), ("no", True)])
def test_what_is_large_and_freed_does_not_stay(called: str, stays: bool) -> None:
    command = [sys.executable, "-c", PROGRAM, called]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert (grown > 20 << 20) == stays
