/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * The truth for every record that leaves the kernel. agent/tailspan/wire/events.py is generated from the BTF of
 * these structs (make events), diffed by make check, and verified again at start-up.
 *
 * Rules: plain integers, largest first, every pad explicit (-Wpadded -Werror); units in the name; *_mono_ns is
 * CLOCK_MONOTONIC (bpf_ktime_get_ns); enums are appended at the end only. tid and tgid are those of the initial
 * pid namespace.
 */
#ifndef TAILSPAN_EVENTS_H
#define TAILSPAN_EVENTS_H

#define COMM_LEN 16

/* Who was on a CPU. tid 0 is the idle task: the CPU was free and the waiter was not on it yet (wake-up latency). */
enum runner_flags {
	RUNNER_KTHREAD = 1,
};

struct runner {
	__u64 cgroup_id; /* of the hierarchy that carries the cpu controller */
	__u32 tid;
	__u32 tgid;
	__u32 flags; /* enum runner_flags */
	__u32 pad;
	char comm[COMM_LEN];
};

/* One turn of a followed thread, written when it gets on a CPU again:
 *
 *      run          off            ready           on
 *       |  on a CPU  |   blocked    |   run queue   |
 *
 * run is the previous record's on, so a thread's records tile its time without a seam: where they do not, a record
 * was lost, and exactly that stretch is unknown. A preempted thread has ready == off. A thread that is
 * moved to another CPU's run queue while it waits gets a record with CYCLE_MOVED (on = when it left the first
 * queue) and its next one starts with run == off == ready: a wait lies on one CPU, always.
 */
enum cycle_flags {
	CYCLE_PREEMPTED = 1,	 /* left the CPU while runnable (or yielded: then syscall_nr is sched_yield) */
	CYCLE_IOWAIT = 2,	 /* task_struct.in_iowait at switch-out: the kernel itself calls this sleep I/O */
	CYCLE_MOVED = 4,	 /* ends by leaving wait_cpu's queue, not by getting on the CPU */
	CYCLE_BORN = 8,		 /* first wait of a new thread: nothing ran before */
	CYCLE_SEEDED = 16,	 /* the thread was off the CPU when it was adopted; off is the time of adoption */
	CYCLE_WAKER_IRQ = 32,	 /* woken from a hard interrupt (a timer, a device): waker is who was interrupted */
	CYCLE_WAKER_SOFTIRQ = 64, /* woken from a softirq: over loopback waker is the sender, otherwise chance */
	CYCLE_RUNNER = 128,	 /* runner_* hold the last slice of wait_cpu; no cpu_slice repeats it */
	CYCLE_THROTTLED = 256,	 /* its cgroup was out of CPU quota when it began to wait */
};

struct thread_cycle {
	__u64 run_mono_ns;
	__u64 off_mono_ns;
	__u64 ready_mono_ns;
	__u64 on_mono_ns;
	__u64 irq_ns;		/* of run..off: spent in hard interrupt handlers and softirqs on its CPU */
	__u64 short_blocked_ns; /* of run..off: blocked in intervals below the floor, folded in here */
	__u64 short_runq_ns;	/* of run..off: run-queue wait of those */
	__u64 runner_since_mono_ns;
	__u32 short_count;
	__u32 tid;
	__u32 tgid;
	__u32 state;	/* prev_state of sched_switch: 0 runnable, else TASK_INTERRUPTIBLE and so on */
	__s32 syscall_nr; /* it sleeps in; -1: none (page fault, preempted in user mode, kernel thread) */
	__u32 flags;	/* enum cycle_flags */
	__u32 waker_tid; /* 0 unless it was woken */
	__u32 waker_tgid;
	__u16 run_cpu;
	__u16 wait_cpu;
	__u32 pad;
	char waker_comm[COMM_LEN];
	struct runner runner;
};

/* Who held a CPU while a followed thread waited in its run queue. Written only then, so that the rest of the host
 * pays nothing; start is never earlier than the wait that asked. */
enum slice_flags {
	SLICE_UNFINISHED = 1, /* cut off because the waiter was moved away; the runner kept the CPU */
};

struct cpu_slice {
	__u64 start_mono_ns;
	__u64 end_mono_ns;
	struct runner runner;
	__u32 flags; /* enum slice_flags */
	__u16 cpu;
	__u16 pad;
};

/* Birth, exec and exit of followed threads. ns_* are the ids in the thread's own (innermost) pid namespace, as a
 * containerised worker names itself. */
enum thread_event_kind {
	THREAD_BORN = 0,
	THREAD_EXEC = 1,
	THREAD_EXIT = 2,
};

struct thread_event {
	__u64 mono_ns;
	__u64 run_mono_ns; /* of the turn that it was in: at exit, tells whether the records before it all came */
	__u64 cgroup_id;
	__u32 kind; /* enum thread_event_kind */
	__u32 tid;
	__u32 tgid;
	__u32 ns_tid;
	__u32 ns_tgid;
	__u32 parent_tgid;
	char comm[COMM_LEN];
};

/* State of a followed thread, read by walking all tasks (iter/task): at adoption, and to see open intervals. */
enum thread_mode {
	MODE_RUNNING = 0,
	MODE_RUNNABLE = 1,
	MODE_BLOCKED = 2,
};

struct thread_state {
	__u64 taken_mono_ns;
	__u64 followed_mono_ns; /* adopted or born: nothing is known before */
	__u64 run_mono_ns;	/* as in struct thread_cycle, for the turn that is not over */
	__u64 off_mono_ns;	/* 0 while running */
	__u64 ready_mono_ns;	/* 0 unless runnable */
	__u64 irq_ns;
	__u64 short_blocked_ns;
	__u64 short_runq_ns;
	__u64 total_runq_ns;	/* since followed, waits that are over; includes the short and the lost */
	__u64 total_blocked_ns;
	__u64 total_waits;
	__u64 cgroup_id;
	__u32 mode; /* enum thread_mode */
	__u32 tid;
	__u32 tgid;
	__u32 ns_tid;
	__u32 ns_tgid;
	__u32 short_count;
	__u32 state;
	__s32 syscall_nr;
	__u32 flags;
	__u16 run_cpu;
	__u16 wait_cpu;
	__u32 waker_tid;
	__u32 waker_tgid;
	char waker_comm[COMM_LEN];
	char comm[COMM_LEN];
};

/* One system call of a followed thread that took at least the floor; from the opt-in syscalls probe. */
struct syscall_record {
	__u64 enter_mono_ns;
	__u64 exit_mono_ns;
	__s64 ret;
	__u32 tid;
	__u32 tgid;
	__s32 nr;
	__u32 pad;
};

/* Log2 latency histogram of one (process, system call): slot i counts calls of [2^i, 2^(i+1)) ns. */
#define SYSCALL_SLOTS 36

struct syscall_key {
	__u32 tgid;
	__s32 nr;
};

struct syscall_hist {
	__u64 count;
	__u64 total_ns;
	__u64 slots[SYSCALL_SLOTS];
};

/* Index of a record class in rings and loss counters. */
enum record_class {
	CLASS_CYCLE = 0,
	CLASS_SLICE = 1,
	CLASS_THREAD = 2,
	CLASS_SYSCALL = 3,
	CLASS_COUNT = 4,
};

#endif
