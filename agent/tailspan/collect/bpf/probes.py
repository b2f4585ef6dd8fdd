"""The catalogue of probes: what each attaches, what it costs, and what is unknowable without it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Probe:
    name: str
    answers: str
    programs: dict[str, str]  #: program -> the type in the kernel's BTF that says it can attach
    optional: frozenset[str]  #: programs without which the probe still works on this architecture
    default: bool  #: attached at start
    required: bool  #: without it the agent has nothing to say
    cost: str
    without: str  #: what becomes unknowable
    bcc: dict[str, str] = field(default_factory=dict)  #: as ``programs``: those that only that loader needs
    #: programs without which it works, while a part of what it answers is unknowable
    partial: frozenset[str] = frozenset()
    in_libraries: bool = False  #: its programs go into processes one by one; attached means ready for that


def _tracepoints(**programs: str) -> dict[str, str]:
    return {program: f"btf_trace_{tracepoint}" for program, tracepoint in programs.items()}


PROBES: tuple[Probe, ...] = (
    Probe(
        name="sched",
        answers="on a CPU, blocked or in a run queue, woken by whom, behind whom",
        programs=_tracepoints(
            on_switch="sched_switch",
            on_waking="sched_waking",
            on_wakeup="sched_wakeup",
            on_wakeup_new="sched_wakeup_new",
            on_migrate="sched_migrate_task",
        ),
        optional=frozenset(),
        default=True,
        required=True,
        cost="every context switch and wake-up of the host pays a look-up; followed threads pay a record",
        without="everything: no ledger can be made",
    ),
    Probe(
        name="lifecycle",
        answers="which threads exist: adopted, born, exec, exit",
        programs={
            **_tracepoints(on_newtask="task_newtask", on_exec="sched_process_exec", on_exit="sched_process_exit"),
            "iter_threads": "bpf_iter__task",
        },
        optional=frozenset(),
        default=True,
        required=True,
        cost="nothing to speak of: one record per thread started or ended",
        without="everything: no thread can be followed",
    ),
    Probe(
        name="irq",
        answers="CPU time that interrupts and softirqs took from a thread; whether a wake-up came from one",
        programs=_tracepoints(
            on_irq_entry="irq_handler_entry",
            on_irq_exit="irq_handler_exit",
            on_softirq_entry="softirq_entry",
            on_softirq_exit="softirq_exit",
            on_timer_entry="local_timer_entry",
            on_timer_exit="local_timer_exit",
        ),
        optional=frozenset({"on_timer_entry", "on_timer_exit"}),
        default=True,
        required=False,
        cost="two short programs per interrupt",
        without="interrupts (counted as on cpu), and whether a waker was only the task that was interrupted",
    ),
    Probe(
        name="stalls",
        answers="memory reclaim and compaction of a thread, sleeps on contended kernel locks",
        programs=_tracepoints(
            on_reclaim_begin="mm_vmscan_direct_reclaim_begin",
            on_reclaim_end="mm_vmscan_direct_reclaim_end",
            on_memcg_reclaim_begin="mm_vmscan_memcg_reclaim_begin",
            on_memcg_reclaim_end="mm_vmscan_memcg_reclaim_end",
            on_compaction_begin="mm_compaction_begin",
            on_compaction_end="mm_compaction_end",
            on_contention_begin="contention_begin",
            on_contention_end="contention_end",
        ),
        optional=frozenset(
            {
                *("on_memcg_reclaim_begin", "on_memcg_reclaim_end", "on_compaction_begin", "on_compaction_end"),
                *("on_contention_begin", "on_contention_end"),
            }
        ),
        default=True,
        required=False,
        cost="a look-up per contended kernel lock and per reclaim, which are slow themselves",
        without="memory reclaim (counted as on cpu or as blocked for another reason), kernel locks",
    ),
    Probe(
        name="block",
        answers="block requests that a thread may have waited for, and who else kept the device busy",
        programs=_tracepoints(
            on_block_insert="block_rq_insert",
            on_block_issue="block_rq_issue",
            on_block_merge="block_rq_merge",
            on_block_complete="block_rq_complete",
        ),
        optional=frozenset({"on_block_merge"}),
        default=True,
        required=False,
        cost="a table entry per block request of the host; a record while followed threads wait for a disk",
        without="which device, and whose requests: file waits are io all the same",
    ),
    Probe(
        name="tcp",
        answers="what a connection waited for: the network, the peer, the accept queue, or us to read",
        programs={
            **_tracepoints(
                on_tcp_state="inet_sock_set_state",
                on_tcp_segment="tcp_probe",
                on_tcp_retransmit="tcp_retransmit_skb",
                on_tcp_reset_received="tcp_receive_reset",
                on_tcp_send="sock_send_length",
                on_tcp_receive="sock_recv_length",
            ),
            "iter_sockets": "bpf_iter__task_file",
        },
        bcc=_tracepoints(on_tcp_destroy="tcp_destroy_sock"),
        optional=frozenset(),
        partial=frozenset({"on_tcp_send", "on_tcp_receive"}),
        default=True,
        required=False,
        cost="a look-up per send, receive and segment of the host; a record per request and per wait",
        without="accept queue and unread bytes; upstream and network (counted as socket). Before kernel 6.2"
        " (no sock_send_length): all of it but connections and connecting",
    ),
    Probe(
        name="owners",
        answers="which process sent an OTLP message",
        programs={"iter_owners": "bpf_iter__task_file", "iter_processes": "bpf_iter__task"},
        optional=frozenset(),
        default=True,
        required=False,
        cost="nothing until a worker connects to the OTLP receiver, then one walk over all open files",
        without="which process sent an OTLP message, but where /proc shows the files of others' processes",
    ),
    Probe(
        name="incidents",
        answers="who stopped, continued or killed a process; whom the out-of-memory killer chose",
        programs=_tracepoints(on_signal="signal_generate", on_oom_victim="mark_victim"),
        optional=frozenset({"on_oom_victim"}),
        default=True,
        required=False,
        cost="two comparisons per signal",
        without="who sent a stop signal; out-of-memory kills",
    ),
    Probe(
        name="gpu",
        answers="CUDA calls: waiting for the device, copying, allocating, loading code; launches counted",
        programs=dict.fromkeys(("on_gpu_call", "on_gpu_return", "on_gpu_launch"), "trace_uprobe"),
        optional=frozenset(),
        default=True,
        required=False,
        cost="nothing without CUDA; a followed process pays a microsecond or two a call or launch, but tens of"
        " them on a virtual machine that must single-step a function's first instruction",
        without="waits for the GPU in which a thread spins; memory calls and code loads are CPU time",
        in_libraries=True,
    ),
    Probe(
        name="syscalls",
        answers="full enter-to-exit latency of every system call of followed threads",
        programs=_tracepoints(on_sys_enter="sys_enter", on_sys_exit="sys_exit"),
        optional=frozenset(),
        default=False,
        required=False,
        cost="while attached, every system call of every task of the host is some 30 to 200 ns dearer",
        without="the CPU part of a system call; its blocking part is always in the ledger",
    ),
)

BY_NAME = {probe.name: probe for probe in PROBES}
