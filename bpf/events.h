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
#define ADDRESS_LEN 16

/* Who was on a CPU. tid 0 is the idle task: the CPU was free and the waiter was not on it yet (wake-up latency). */
enum runner_flags {
	RUNNER_KTHREAD = 1,
};

struct runner {
	__u64 cgroup_id; /* of the hierarchy that carries the cpu controller */
	__u32 tid;
	__u32 tgid;
	__u32 flags; /* enum runner_flags */
	__u32 prio;  /* task_struct.prio: 100 + 20 + nice for SCHED_OTHER, below 100 for real time */
	char comm[COMM_LEN];
};

/* What a thread sleeps on, from the arguments of its system call: the futex word, or the file behind the descriptor
 * (poll: if it polls only one). */
enum object_kind {
	OBJECT_NONE = 0,
	OBJECT_FUTEX = 1,
	OBJECT_FILE = 2,
	OBJECT_DIRECTORY = 3,
	OBJECT_BLOCK_DEVICE = 4,
	OBJECT_CHAR_DEVICE = 5,
	OBJECT_PIPE = 6,
	OBJECT_TCP = 7,
	OBJECT_UNIX = 8,
	OBJECT_SOCKET = 9, /* of another family */
	OBJECT_OTHER = 10, /* epoll, eventfd, timerfd, ... */
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
	CYCLE_MEMSTALL = 512,	 /* asleep in memory reclaim, or held back for its cgroup's memory.high */
	CYCLE_MEMCG = 1024,	 /* ... reclaim_ns, or that sleep: within its own memory cgroup's limit */
	CYCLE_KERNEL_LOCK = 2048, /* asleep on a contended lock of the kernel, such as mmap_lock */
};

struct thread_cycle {
	__u64 run_mono_ns;
	__u64 off_mono_ns;
	__u64 ready_mono_ns;
	__u64 on_mono_ns;
	__u64 irq_ns;		/* of run..off: spent in hard interrupt handlers and softirqs on its CPU */
	__u64 net_ns;		/* of irq_ns: in the softirqs NET_RX and NET_TX */
	__u64 reclaim_ns;	/* of run..off: on a CPU in direct memory reclaim or compaction */
	__u64 short_blocked_ns; /* of run..off: blocked in intervals below the floor, folded in here */
	__u64 short_runq_ns;	/* of run..off: run-queue wait of those */
	__u64 runner_since_mono_ns;
	__u64 throttled_ns;	/* of ready..on, from its beginning: out of CPU quota; what follows is the wait for a CPU */
	__u64 object; /* it sleeps on: address of the futex word, or number of the file's inode */
	__u32 short_count;
	__u32 minor_faults; /* page faults of run..off */
	__u32 major_faults;
	__u32 tid;
	__u32 tgid;
	__u32 state;	/* prev_state of sched_switch: 0 runnable, else TASK_INTERRUPTIBLE and so on */
	__s32 syscall_nr; /* it sleeps in; -1: none (page fault, preempted in user mode, kernel thread) */
	__u32 flags;	/* enum cycle_flags */
	__u32 waker_tid; /* 0 unless it was woken */
	__u32 waker_tgid;
	__u32 object_kind; /* enum object_kind */
	__u32 object_dev;  /* of a file or device: (major << 20) | minor, as in the kernel's dev_t */
	__u32 prio;	   /* as in struct runner */
	__u16 run_cpu;
	__u16 wait_cpu;
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
	__u64 net_ns;
	__u64 reclaim_ns;
	__u64 short_blocked_ns;
	__u64 short_runq_ns;
	__u64 object;
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
	__u32 object_kind;
	__u32 object_dev;
	__u16 run_cpu;
	__u16 wait_cpu;
	__u32 waker_tid;
	__u32 waker_tgid;
	char waker_comm[COMM_LEN];
	char comm[COMM_LEN];
};

/* A TCP socket of a followed thread between two operations. Written when an operation of a followed thread returns,
 * if it took part in a wait of at least the floor, and for every first receive of a message on an accepted
 * connection (that is where a request begins). The parts of the time from..to of a receive:
 *
 *      from         acked         arrived        to
 *       |  network   |  the peer    |  unread     |
 *
 * What was in the socket before the last operation has arrived before from. An operation returns some microseconds
 * before its system call does.
 */
enum socket_op {
	SOCKET_RECEIVE = 0,
	SOCKET_SEND = 1,    /* returned after the socket's send buffer had been full: all of it is network */
	SOCKET_CONNECT = 2, /* from SYN to established, or to its failure; tid is who began it */
};

enum socket_flags {
	SOCKET_ACCEPTED = 1,	/* this side listened; else it connected */
	SOCKET_FIRST = 2,	/* first receive of the connection: from is when it was established */
	SOCKET_MESSAGE = 4,	/* receive: the first one since a send, a new message of the peer's begins */
	SOCKET_UNACCEPTED = 8,	/* the data came while the connection was still in the accept queue */
	SOCKET_ZERO_WINDOW = 16, /* the peer's receive window had no room for the next segment: it does not read */
	SOCKET_RESET = 32,	/* the peer has reset the connection */
	SOCKET_BULK = 64,	/* this message came in full segments so far, three at least: a transfer */
	SOCKET_ABORTED = 128,	/* connection: this side ended it without a FIN; it timed out, or data was left unread */
};

struct socket_wait {
	__u64 from_mono_ns;    /* the operation before: the last send, receive, or the handshake; connect: the SYN */
	__u64 acked_mono_ns;   /* less than two segments of what was sent before was left unacknowledged; from: at once */
	__u64 retransmit_mono_ns; /* of the last retransmission in from..to; 0 for none */
	__u64 arrived_mono_ns; /* receive: when the first byte of it came in; 0 if that was not seen */
	__u64 to_mono_ns;      /* the operation returned */
	__u64 established_mono_ns; /* 0: before it was followed, or not yet */
	__u64 socket;	       /* number of its inode */
	__u64 sent_bytes;      /* of the connection so far, at least once */
	__u64 received_bytes;
	__u32 tid; /* of the operation */
	__u32 tgid;
	__u32 op;    /* enum socket_op */
	__u32 flags; /* enum socket_flags */
	__u32 retransmits;  /* segments of ours sent again in from..to */
	__u32 out_of_order; /* segments that came out of order in from..to: the peer's were lost */
	__u32 srtt_us;
	__u32 min_rtt_us;
	__u32 rto_us; /* 0: not known */
	__u32 messages; /* of the peer so far: requests on an accepted connection, answers on the other kind */
	char local[ADDRESS_LEN]; /* network byte order; IPv4 as ::ffff:a.b.c.d */
	char remote[ADDRESS_LEN];
	__u16 local_port;
	__u16 remote_port;
	__u32 pad;
};

/* One TCP connection of a followed process, when it is over. */
struct connection {
	__u64 opened_mono_ns; /* SYN sent, or established where this side listened; 0: before it was followed */
	__u64 established_mono_ns; /* 0: it never was, or before it was followed */
	__u64 closed_mono_ns;
	__u64 first_byte_mono_ns; /* of the peer's; 0 for none. This and the next: since it is followed */
	__u64 first_sent_mono_ns;
	__u64 socket;
	__u64 sent_bytes;
	__u64 received_bytes;
	__u32 tgid;
	__u32 flags; /* enum socket_flags */
	__u32 messages;
	__u32 retransmits; /* with those of the SYN */
	__u32 out_of_order;
	__u32 zero_windows; /* how often an operation found the peer's window closed */
	__u32 srtt_us;
	__u32 min_rtt_us;
	char local[ADDRESS_LEN];
	char remote[ADDRESS_LEN];
	__u16 local_port;
	__u16 remote_port;
	__u32 pad;
};

/* One request to a block device. Written at its completion if a followed thread issued it, or while a followed
 * thread sleeps uninterruptibly: those are what it may have waited for. */
struct block_request {
	__u64 queued_mono_ns; /* it was made; then it may wait in the scheduler */
	__u64 issued_mono_ns; /* handed to the device */
	__u64 completed_mono_ns;
	__u64 sector;
	__u64 cgroup_id; /* of the issuer */
	__u32 bytes;
	__u32 dev; /* (major << 20) | minor */
	__u32 op;  /* enum req_op: 0 read, 1 write, 2 flush, ... */
	__u32 error; /* 0, or the errno it failed with */
	__u32 tid; /* of the issuer: who submitted it, or a kernel worker on somebody's behalf */
	__u32 tgid;
	__u32 kthread; /* 1: the issuer is a kernel thread */
	__u32 pad;
	char comm[COMM_LEN];
};

/* Something that happened to a followed process from outside. */
enum incident_kind {
	INCIDENT_SIGNAL = 0,   /* a signal that stops, continues or kills */
	INCIDENT_OOM_KILL = 1, /* the out-of-memory killer chose a victim: followed or not */
};

struct incident {
	__u64 mono_ns;
	__u32 kind;   /* enum incident_kind */
	__s32 signal; /* number; 0 for none */
	__u32 actor_tid; /* who sent it; for an OOM kill, whose allocation failed */
	__u32 actor_tgid;
	__u32 target_tid;
	__u32 target_tgid;
	char actor_comm[COMM_LEN];
	char target_comm[COMM_LEN];
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

/* A call into the CUDA driver (or its runtime) that may wait for the device, of a followed process. Of calls within
 * calls the outermost is written. Launches are counted only. */
enum gpu_call_kind {
	GPU_CALL_SYNC = 0,   /* waits until a stream, an event or the device is done */
	GPU_CALL_COPY = 1,   /* copies, and returns when the data is there */
	GPU_CALL_ALLOC = 2,
	GPU_CALL_FREE = 3,   /* waits for the device too */
	GPU_CALL_LOAD = 4,   /* of code: a module or a library */
	GPU_CALL_LAUNCH = 5, /* of a kernel or a graph; never a record */
	GPU_CALL_COUNT = 6,
};

struct gpu_call {
	__u64 enter_mono_ns;
	__u64 exit_mono_ns;
	__u64 launch_mono_ns; /* the thread's first launch since its last record; 0: none */
	__u64 bytes;	      /* asked for, or copied; 0 for other calls, and where the call does not say */
	__u32 launches;	      /* of the thread since its last record */
	__u32 tid;
	__u32 tgid;
	__u32 kind;   /* enum gpu_call_kind */
	__s32 result; /* CUresult or cudaError_t: 0 success, 2 out of memory */
	__u32 pad;
};

/* How often each function was called, since the probes were attached: (process, kind). */
struct gpu_call_key {
	__u32 tgid;
	__u32 kind; /* enum gpu_call_kind */
};

/* Index of a record class in rings and loss counters. */
enum record_class {
	CLASS_CYCLE = 0,
	CLASS_SLICE = 1,
	CLASS_THREAD = 2,
	CLASS_SYSCALL = 3,
	CLASS_SOCKET = 4,
	CLASS_CONNECTION = 5,
	CLASS_BLOCK = 6,
	CLASS_INCIDENT = 7,
	CLASS_GPU_CALL = 8,
	CLASS_COUNT = 9,
};

/* A process and one end of a TCP connection that it holds; or a process alone, then the port is 0. */
struct socket_owner {
	__u64 started_mono_ns; /* the process: whoever inherited the socket from another is the younger one */
	__u32 tgid;
	__u32 ns_tgid; /* in its own pid namespace */
	__u32 uid;     /* effective, as the initial user namespace numbers it */
	__u32 own_net; /* 1: the socket is in the network namespace of who asks */
	char address[ADDRESS_LEN]; /* the connection's end that it holds; IPv4 as ::ffff:a.b.c.d */
	__u16 port;
	__u16 pad[3];
};

#endif
