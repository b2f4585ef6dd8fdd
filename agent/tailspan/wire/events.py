"""GENERATED from bpf/events.h through the compiled object's BTF by ``make events``; do not edit.

Checked against the object at start-up. Every ``*_mono_ns`` is CLOCK_MONOTONIC.
"""

from enum import IntEnum, IntFlag

import numpy as np


class RunnerFlags(IntFlag):
    KTHREAD = 1


class CycleFlags(IntFlag):
    PREEMPTED = 1
    IOWAIT = 2
    MOVED = 4
    BORN = 8
    SEEDED = 16
    WAKER_IRQ = 32
    WAKER_SOFTIRQ = 64
    RUNNER = 128
    THROTTLED = 256


class SliceFlags(IntFlag):
    UNFINISHED = 1


class ThreadEventKind(IntEnum):
    BORN = 0
    EXEC = 1
    EXIT = 2


class ThreadMode(IntEnum):
    RUNNING = 0
    RUNNABLE = 1
    BLOCKED = 2


class RecordClass(IntEnum):
    CYCLE = 0
    SLICE = 1
    THREAD = 2
    SYSCALL = 3
    COUNT = 4


RUNNER = np.dtype(
    {
        "names": ['cgroup_id', 'tid', 'tgid', 'flags', 'pad', 'comm'],
        "formats": [
            "<u8",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "|S16",
        ],
        "offsets": [0, 8, 12, 16, 20, 24],
        "itemsize": 40,
    }
)

THREAD_CYCLE = np.dtype(
    {
        "names": ['run_mono_ns', 'off_mono_ns', 'ready_mono_ns', 'on_mono_ns', 'irq_ns', 'short_blocked_ns', 'short_runq_ns', 'runner_since_mono_ns', 'short_count', 'tid', 'tgid', 'state', 'syscall_nr', 'flags', 'waker_tid', 'waker_tgid', 'run_cpu', 'wait_cpu', 'pad', 'waker_comm', 'runner'],
        "formats": [
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<i4",
            "<u4",
            "<u4",
            "<u4",
            "<u2",
            "<u2",
            "<u4",
            "|S16",
            RUNNER,
        ],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56, 64, 68, 72, 76, 80, 84, 88, 92, 96, 98, 100, 104, 120],
        "itemsize": 160,
    }
)

CPU_SLICE = np.dtype(
    {
        "names": ['start_mono_ns', 'end_mono_ns', 'runner', 'flags', 'cpu', 'pad'],
        "formats": [
            "<i8",
            "<i8",
            RUNNER,
            "<u4",
            "<u2",
            "<u2",
        ],
        "offsets": [0, 8, 16, 56, 60, 62],
        "itemsize": 64,
    }
)

THREAD_EVENT = np.dtype(
    {
        "names": ['mono_ns', 'run_mono_ns', 'cgroup_id', 'kind', 'tid', 'tgid', 'ns_tid', 'ns_tgid', 'parent_tgid', 'comm'],
        "formats": [
            "<i8",
            "<i8",
            "<u8",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "|S16",
        ],
        "offsets": [0, 8, 16, 24, 28, 32, 36, 40, 44, 48],
        "itemsize": 64,
    }
)

THREAD_STATE = np.dtype(
    {
        "names": ['taken_mono_ns', 'followed_mono_ns', 'run_mono_ns', 'off_mono_ns', 'ready_mono_ns', 'irq_ns', 'short_blocked_ns', 'short_runq_ns', 'total_runq_ns', 'total_blocked_ns', 'total_waits', 'cgroup_id', 'mode', 'tid', 'tgid', 'ns_tid', 'ns_tgid', 'short_count', 'state', 'syscall_nr', 'flags', 'run_cpu', 'wait_cpu', 'waker_tid', 'waker_tgid', 'waker_comm', 'comm'],
        "formats": [
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<u8",
            "<u8",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<i4",
            "<u4",
            "<u2",
            "<u2",
            "<u4",
            "<u4",
            "|S16",
            "|S16",
        ],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 100, 104, 108, 112, 116, 120, 124, 128, 132, 134, 136, 140, 144, 160],
        "itemsize": 176,
    }
)

SYSCALL_RECORD = np.dtype(
    {
        "names": ['enter_mono_ns', 'exit_mono_ns', 'ret', 'tid', 'tgid', 'nr', 'pad'],
        "formats": [
            "<i8",
            "<i8",
            "<i8",
            "<u4",
            "<u4",
            "<i4",
            "<u4",
        ],
        "offsets": [0, 8, 16, 24, 28, 32, 36],
        "itemsize": 40,
    }
)

SYSCALL_KEY = np.dtype(
    {
        "names": ['tgid', 'nr'],
        "formats": [
            "<u4",
            "<i4",
        ],
        "offsets": [0, 4],
        "itemsize": 8,
    }
)

SYSCALL_HIST = np.dtype(
    {
        "names": ['count', 'total_ns', 'slots'],
        "formats": [
            "<u8",
            "<i8",
            ("<u8", (36,)),
        ],
        "offsets": [0, 8, 16],
        "itemsize": 304,
    }
)

LAYOUTS: dict[str, np.dtype[np.void]] = {
    "runner": RUNNER,
    "thread_cycle": THREAD_CYCLE,
    "cpu_slice": CPU_SLICE,
    "thread_event": THREAD_EVENT,
    "thread_state": THREAD_STATE,
    "syscall_record": SYSCALL_RECORD,
    "syscall_key": SYSCALL_KEY,
    "syscall_hist": SYSCALL_HIST,
}
