from __future__ import annotations

from tailspan.views import syscalls
from tailspan.views.syscalls import SyscallRow

MS = 1_000_000


def test_largest_total_comes_first_with_bounds_in_their_units() -> None:
    rows = [
        SyscallRow(8100, "read", 23, 5 * MS, 4096, 8192, 16384),
        SyscallRow(8100, "futex", 29, 70 * MS, 2 * MS, 4 * MS, 8 * MS),
    ]
    head, first, second = syscalls.as_text(rows).splitlines()
    assert head.split() == ["pid", "syscall", "count", "total", "ms", "p50", "≤", "p99", "≤", "max", "≤"]
    assert first.split() == ["8100", "futex", "29", "70.0", "2.0", "ms", "4.0", "ms", "8.0", "ms"]
    assert second.split() == ["8100", "read", "23", "5.0", "4", "µs", "8", "µs", "16", "µs"]
