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
    MEMSTALL = 512
    MEMCG = 1024
    KERNEL_LOCK = 2048


class SliceFlags(IntFlag):
    UNFINISHED = 1


class ObjectKind(IntEnum):
    NONE = 0
    FUTEX = 1
    FILE = 2
    DIRECTORY = 3
    BLOCK_DEVICE = 4
    CHAR_DEVICE = 5
    PIPE = 6
    TCP = 7
    UNIX = 8
    SOCKET = 9
    OTHER = 10


class SocketOp(IntEnum):
    RECEIVE = 0
    SEND = 1
    CONNECT = 2


class SocketFlags(IntFlag):
    ACCEPTED = 1
    FIRST = 2
    MESSAGE = 4
    UNACCEPTED = 8
    ZERO_WINDOW = 16
    RESET = 32
    BULK = 64
    ABORTED = 128


class IncidentKind(IntEnum):
    SIGNAL = 0
    OOM_KILL = 1


class GpuCallKind(IntEnum):
    SYNC = 0
    COPY = 1
    ALLOC = 2
    FREE = 3
    LOAD = 4
    LAUNCH = 5
    COUNT = 6


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
    SOCKET = 4
    CONNECTION = 5
    BLOCK = 6
    INCIDENT = 7
    GPU_CALL = 8
    COUNT = 9


RUNNER = np.dtype(
    {
        "names": ['cgroup_id', 'tid', 'tgid', 'flags', 'prio', 'comm'],
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
        "names": ['run_mono_ns', 'off_mono_ns', 'ready_mono_ns', 'on_mono_ns', 'irq_ns', 'net_ns', 'reclaim_ns', 'short_blocked_ns', 'short_runq_ns', 'runner_since_mono_ns', 'throttled_ns', 'object', 'short_count', 'minor_faults', 'major_faults', 'tid', 'tgid', 'state', 'syscall_nr', 'flags', 'waker_tid', 'waker_tgid', 'object_kind', 'object_dev', 'prio', 'run_cpu', 'wait_cpu', 'waker_comm', 'runner'],
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
            "<i8",
            "<u8",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<i4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u2",
            "<u2",
            "|S16",
            RUNNER,
        ],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 100, 104, 108, 112, 116, 120, 124, 128, 132, 136, 140, 144, 148, 150, 152, 168],
        "itemsize": 208,
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
        "names": ['taken_mono_ns', 'followed_mono_ns', 'run_mono_ns', 'off_mono_ns', 'ready_mono_ns', 'irq_ns', 'net_ns', 'reclaim_ns', 'short_blocked_ns', 'short_runq_ns', 'object', 'total_runq_ns', 'total_blocked_ns', 'total_waits', 'cgroup_id', 'mode', 'tid', 'tgid', 'ns_tid', 'ns_tgid', 'short_count', 'state', 'syscall_nr', 'flags', 'object_kind', 'object_dev', 'run_cpu', 'wait_cpu', 'waker_tid', 'waker_tgid', 'waker_comm', 'comm'],
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
            "<u4",
            "<u4",
            "<u2",
            "<u2",
            "<u4",
            "<u4",
            "|S16",
            "|S16",
        ],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 124, 128, 132, 136, 140, 144, 148, 152, 156, 160, 164, 166, 168, 172, 176, 192],
        "itemsize": 208,
    }
)

SOCKET_WAIT = np.dtype(
    {
        "names": ['from_mono_ns', 'acked_mono_ns', 'retransmit_mono_ns', 'arrived_mono_ns', 'to_mono_ns', 'established_mono_ns', 'socket', 'sent_bytes', 'received_bytes', 'tid', 'tgid', 'op', 'flags', 'retransmits', 'out_of_order', 'srtt_us', 'min_rtt_us', 'rto_us', 'messages', 'local', 'remote', 'local_port', 'remote_port', 'pad'],
        "formats": [
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<u8",
            "<u8",
            "<u8",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "|S16",
            "|S16",
            "<u2",
            "<u2",
            "<u4",
        ],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 76, 80, 84, 88, 92, 96, 100, 104, 108, 112, 128, 144, 146, 148],
        "itemsize": 152,
    }
)

CONNECTION = np.dtype(
    {
        "names": ['opened_mono_ns', 'established_mono_ns', 'closed_mono_ns', 'first_byte_mono_ns', 'first_sent_mono_ns', 'socket', 'sent_bytes', 'received_bytes', 'tgid', 'flags', 'messages', 'retransmits', 'out_of_order', 'zero_windows', 'srtt_us', 'min_rtt_us', 'local', 'remote', 'local_port', 'remote_port', 'pad'],
        "formats": [
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<i8",
            "<u8",
            "<u8",
            "<u8",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "|S16",
            "|S16",
            "<u2",
            "<u2",
            "<u4",
        ],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56, 64, 68, 72, 76, 80, 84, 88, 92, 96, 112, 128, 130, 132],
        "itemsize": 136,
    }
)

BLOCK_REQUEST = np.dtype(
    {
        "names": ['queued_mono_ns', 'issued_mono_ns', 'completed_mono_ns', 'sector', 'cgroup_id', 'bytes', 'dev', 'op', 'error', 'tid', 'tgid', 'kthread', 'pad', 'comm'],
        "formats": [
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
            "<u4",
            "|S16",
        ],
        "offsets": [0, 8, 16, 24, 32, 40, 44, 48, 52, 56, 60, 64, 68, 72],
        "itemsize": 88,
    }
)

INCIDENT = np.dtype(
    {
        "names": ['mono_ns', 'kind', 'signal', 'actor_tid', 'actor_tgid', 'target_tid', 'target_tgid', 'actor_comm', 'target_comm'],
        "formats": [
            "<i8",
            "<u4",
            "<i4",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "|S16",
            "|S16",
        ],
        "offsets": [0, 8, 12, 16, 20, 24, 28, 32, 48],
        "itemsize": 64,
    }
)

GPU_CALL = np.dtype(
    {
        "names": ['enter_mono_ns', 'exit_mono_ns', 'launch_mono_ns', 'bytes', 'launches', 'tid', 'tgid', 'kind', 'result', 'pad'],
        "formats": [
            "<i8",
            "<i8",
            "<i8",
            "<u8",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "<i4",
            "<u4",
        ],
        "offsets": [0, 8, 16, 24, 32, 36, 40, 44, 48, 52],
        "itemsize": 56,
    }
)

GPU_CALL_KEY = np.dtype(
    {
        "names": ['tgid', 'kind'],
        "formats": [
            "<u4",
            "<u4",
        ],
        "offsets": [0, 4],
        "itemsize": 8,
    }
)

SOCKET_OWNER = np.dtype(
    {
        "names": ['started_mono_ns', 'tgid', 'ns_tgid', 'uid', 'own_net', 'address', 'port', 'pad'],
        "formats": [
            "<i8",
            "<u4",
            "<u4",
            "<u4",
            "<u4",
            "|S16",
            "<u2",
            ("<u2", (3,)),
        ],
        "offsets": [0, 8, 12, 16, 20, 24, 40, 42],
        "itemsize": 48,
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
    "socket_wait": SOCKET_WAIT,
    "connection": CONNECTION,
    "block_request": BLOCK_REQUEST,
    "incident": INCIDENT,
    "gpu_call": GPU_CALL,
    "gpu_call_key": GPU_CALL_KEY,
    "socket_owner": SOCKET_OWNER,
    "syscall_record": SYSCALL_RECORD,
    "syscall_key": SYSCALL_KEY,
    "syscall_hist": SYSCALL_HIST,
}
