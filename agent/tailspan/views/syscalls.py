"""The latency of system calls, as the agent's control socket answers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tailspan.views.table import MIN_WIDTH, duration, grid, ms, plain


@dataclass(frozen=True, slots=True)
class SyscallRow:
    """One system call of one process. Quantiles come from power-of-two slots and are their upper bounds."""

    pid: int
    syscall: str
    count: int
    total_ns: int
    p50_ns: int
    p99_ns: int
    max_slot_ns: int  #: upper bound of the highest slot that was hit


def as_text(rows: Sequence[SyscallRow], width: int = 80) -> str:
    """Largest total first."""
    table: list[tuple[str, ...]] = [("pid", "syscall", "count", "total ms", "p50 ≤", "p99 ≤", "max ≤")]
    table += [
        (
            str(row.pid),
            plain(row.syscall),
            str(row.count),
            ms(row.total_ns),
            *(duration(ns) for ns in (row.p50_ns, row.p99_ns, row.max_slot_ns)),
        )
        for row in sorted(rows, key=lambda row: (-row.total_ns, row.pid, row.syscall))
    ]
    return "\n".join(grid(table, max(width, MIN_WIDTH), right=(0, 2, 3, 4, 5, 6), elastic=1))
