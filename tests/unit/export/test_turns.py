from __future__ import annotations

import numpy as np
import pytest

from tailspan.export.turns import run_queue_waits, taken_ns, thread_time_ns
from tailspan.timeline.evidence import Table
from tailspan.wire.events import CPU_SLICE, THREAD_CYCLE, CycleFlags, RunnerFlags

MS = 1_000_000


def turn(run: int, off: int, ready: int, on: int, **columns: int) -> Table:
    """One THREAD_CYCLE, in ms."""
    row = np.zeros(1, THREAD_CYCLE)
    for name, at in {"run": run, "off": off, "ready": ready, "on": on}.items():
        row[f"{name}_mono_ns"] = at * MS
    for name, value in columns.items():
        row[name] = value
    return row


def slice_of(comm: bytes, tid: int, start: int, end: int, flags: int = 0) -> Table:
    """One CPU_SLICE, in ms."""
    row = np.zeros(1, CPU_SLICE)
    row["start_mono_ns"], row["end_mono_ns"] = start * MS, end * MS
    row["runner"]["comm"], row["runner"]["tid"], row["runner"]["flags"] = comm, tid, flags
    return row


NO_TURNS, NO_SLICES = np.empty(0, THREAD_CYCLE), np.empty(0, CPU_SLICE)


def test_the_states_of_a_thread_tile_its_time() -> None:
    # GIVEN three turns of one thread, each beginning where the one before ends: the second preempted, the third
    # without quota for a while, and the first with waits too short for a record
    rows = np.concatenate(
        [
            turn(0, 10, 30, 32, short_count=7, short_blocked_ns=2 * MS, short_runq_ns=1 * MS),
            turn(32, 35, 35, 46, flags=CycleFlags.PREEMPTED),
            turn(46, 50, 90, 101, throttled_ns=8 * MS),
        ]
    )

    found = thread_time_ns(rows)

    assert found == {
        "on_cpu": (10 - 3 + 3 + 4) * MS,
        "run_queue": (2 + 1 + 11 + 3) * MS,
        "throttled": 8 * MS,
        "blocked": (20 + 2 + 40) * MS,
    }
    assert sum(found.values()) == 101 * MS


@pytest.mark.parametrize("flag", [CycleFlags.SEEDED, CycleFlags.BORN])
def test_a_thread_that_was_not_seen_running_did_not_run(flag: CycleFlags) -> None:
    found = thread_time_ns(turn(0, 10, 30, 33, flags=flag))
    assert found == {"on_cpu": 0, "run_queue": 3 * MS, "throttled": 0, "blocked": 20 * MS}


def test_no_turns_took_no_time() -> None:
    assert set(thread_time_ns(NO_TURNS).values()) == {0}
    assert [len(durations) for durations, _ in run_queue_waits(NO_TURNS)] == [0, 0]
    assert taken_ns(NO_TURNS, NO_SLICES) == {}


def test_waits_are_without_quota_and_short_ones_have_their_mean() -> None:
    rows = np.concatenate([turn(0, 1, 1, 12, throttled_ns=8 * MS), turn(12, 20, 20, 25)])
    rows["short_count"], rows["short_runq_ns"] = (0, 4), (0, 20_000)

    whole, short = run_queue_waits(rows)

    assert [each.tolist() for each in whole] == [[3 * MS, 5 * MS], [1, 1]]
    assert [each.tolist() for each in short] == [[5_000], [4]]


def test_time_is_taken_by_those_who_ran_and_not_by_an_idle_cpu() -> None:
    # GIVEN two threads of one name, a kernel thread, an idle CPU, and a runner that came with the turn itself
    slices = np.concatenate(
        [
            slice_of(b"stress-ng", 9001, 0, 4),
            slice_of(b"stress-ng", 9002, 4, 7),
            slice_of(b"kworker/u8:3-ev", 77, 7, 8, RunnerFlags.KTHREAD),
            slice_of(b"a/b", 9003, 8, 10),
            slice_of(b"swapper/1", 0, 10, 20),
        ]
    )
    inline = turn(0, 1, 1, 31, flags=CycleFlags.RUNNER, runner_since_mono_ns=20 * MS)
    inline["runner"]["comm"], inline["runner"]["tid"] = b"stress-ng", 9001
    without = turn(31, 32, 32, 33)  # what its runner says is not set
    without["runner"]["comm"], without["runner"]["tid"] = b"nobody", 5

    found = taken_ns(np.concatenate([inline, without]), slices)

    assert found == {"stress-ng": 18 * MS, "kworker": 1 * MS, "a/b": 2 * MS}


def test_a_name_of_any_bytes_is_a_name() -> None:
    assert taken_ns(NO_TURNS, slice_of(b"caf\xe9", 9001, 0, 1)) == {"caf\N{REPLACEMENT CHARACTER}": MS}
