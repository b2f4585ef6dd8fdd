/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Maps, knobs and the small helpers that every program shares. */
#ifndef TAILSPAN_MAPS_H
#define TAILSPAN_MAPS_H

#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

#include "events.h"

/* What we keep of a followed thread. A thread is followed if and only if it has this storage: no table is searched
 * on the switch path, and the storage goes with the task. */
struct follow {
	u64 followed_mono_ns;
	u64 run_mono_ns;
	u64 off_mono_ns;   /* 0: on a CPU, or its state is not known yet */
	u64 ready_mono_ns; /* 0: not runnable */
	u64 irq_ns;
	u64 irq_at_on_ns; /* cpu_state.irq_ns of its CPU when it got on */
	u64 net_ns;
	u64 net_at_on_ns; /* cpu_state.net_ns, likewise */
	u64 reclaim_ns;
	u64 reclaim_since_mono_ns; /* it is reclaiming, and on a CPU since then; 0: not */
	u64 short_blocked_ns;
	u64 short_runq_ns;
	u64 total_runq_ns;
	u64 total_blocked_ns;
	u64 total_waits;
	u64 enter_mono_ns; /* syscalls probe: entry of the call it is in, 0 for none */
	u64 throttled_at_ready_ns; /* cfs_rq.throttled_clock_self_time when its wait for a CPU began */
	u64 object;
	u64 minor_faults_at_on; /* task_struct.min_flt when its turn began; and maj_flt */
	u64 major_faults_at_on;
	u32 minor_faults; /* of turns that were folded into this one, and of this one when it is off */
	u32 major_faults;
	u64 gpu_enter_mono_ns; /* of the call into the GPU's driver that it is in; 0: none */
	u64 gpu_stack;	       /* its stack pointer there: calls within it have a lower one */
	u64 gpu_bytes;
	u64 gpu_launch_mono_ns; /* first launch since its last gpu_call */
	u32 gpu_launches;	/* since its last gpu_call */
	u32 gpu_kind;		/* enum gpu_call_kind */
	u32 object_kind;
	u32 object_dev;
	u32 short_count;
	u32 state;
	s32 syscall_nr;
	u32 flags;
	u32 waker_tid; /* of the last wake-up; means something only when state is not 0 */
	u32 waker_tgid;
	u32 waker_flags;
	u16 run_cpu;
	u16 wait_cpu;
	u8 queued; /* counted in cpu_state.waiters of wait_cpu */
	u8 deep;   /* counted in deep_sleepers */
	u8 in_reclaim; /* enum reclaim_scope */
	u8 memcg;      /* some reclaim of this turn was within its own memory cgroup's limit */
	u8 in_kernel_lock;
	u8 throttle_clocked; /* throttled_at_ready_ns is of the run queue that it still is in */
	u8 only_threads; /* followed for what it does to others: its child processes are not */
	u8 pad[1];
	char waker_comm[COMM_LEN];
};

/* Per CPU. The first cache line is what another CPU's wake-up and every switch touch. */
struct cpu_state {
	u64 observed_mono_ns; /* since when the CPU's runner is owed a slice; valid while waiters > 0 or owed */
	u64 irq_ns;	      /* total spent in hard interrupt handlers and softirqs */
	u64 irq_enter_mono_ns;	   /* 0: not in a hard interrupt handler */
	u64 softirq_enter_mono_ns; /* 0: not in a softirq */
	s32 waiters;		   /* followed threads in this CPU's run queue */
	u32 owed;	  /* the last waiter was moved away before it was known who ran: the next switch tells */
	u32 runner_known; /* runner is who has the CPU now; only kept up while threads wait */
	u32 softirq_vector; /* valid while in one */
	u32 pad[2];
	u64 net_ns; /* of irq_ns: network softirqs */
	struct runner runner;
	u64 pad3[3];
};

/* With its future child processes, or for its threads only. */
enum target_kind { TARGET_WORKER = 1, TARGET_PEER = 2 };

enum reclaim_scope { RECLAIM_NONE = 0, RECLAIM_HOST = 1, RECLAIM_MEMCG = 2, RECLAIM_COMPACTION = 3 };

struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
};

struct ring_array {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1); /* one per CPU; sized and filled by the loader */
	__type(key, u32);
	__array(values, struct ring);
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct follow);
} follows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* one per CPU, sized by the loader */
	__type(key, u32);
	__type(value, struct cpu_state);
} cpus SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u32); /* tgid of a process whose threads are to be adopted */
	__type(value, u8); /* enum target_kind */
} targets SEC(".maps");

/* How many followed threads are in uninterruptible sleep: while there are any, block requests are of interest. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, s64);
} deep_sleepers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CLASS_COUNT);
	__type(key, u32); /* enum record_class */
	__type(value, u64);
} losses SEC(".maps");

struct ring_array cycle_rings SEC(".maps");
struct ring_array slice_rings SEC(".maps");
struct ring_array thread_rings SEC(".maps");
struct ring_array syscall_rings SEC(".maps");
struct ring_array socket_rings SEC(".maps");
struct ring_array connection_rings SEC(".maps");
struct ring_array block_rings SEC(".maps");
struct ring_array incident_rings SEC(".maps");
struct ring_array gpu_call_rings SEC(".maps");

/* clang leaves a struct out of BTF when only local pointers use it: one anchor per record and enum. */
struct runner anchor_runner;
struct thread_cycle anchor_thread_cycle;
struct cpu_slice anchor_cpu_slice;
struct thread_event anchor_thread_event;
struct thread_state anchor_thread_state;
struct syscall_record anchor_syscall_record;
struct socket_wait anchor_socket_wait;
struct connection anchor_connection;
struct block_request anchor_block_request;
struct incident anchor_incident;
struct gpu_call anchor_gpu_call;
struct gpu_call_key anchor_gpu_call_key;
struct socket_owner anchor_socket_owner;
struct syscall_key anchor_syscall_key;
struct syscall_hist anchor_syscall_hist;
enum runner_flags anchor_runner_flags;
enum cycle_flags anchor_cycle_flags;
enum slice_flags anchor_slice_flags;
enum object_kind anchor_object_kind;
enum socket_op anchor_socket_op;
enum socket_flags anchor_socket_flags;
enum incident_kind anchor_incident_kind;
enum gpu_call_kind anchor_gpu_call_kind;
enum thread_event_kind anchor_thread_event_kind;
enum thread_mode anchor_thread_mode;
enum record_class anchor_record_class;

static __always_inline struct follow *follow_of(struct task_struct *task)
{
	return bpf_task_storage_get(&follows, task, 0, 0);
}

static __always_inline void count_loss(u32 record_class)
{
	u64 *lost = bpf_map_lookup_elem(&losses, &record_class);

	if (lost)
		(*lost)++;
}

/* Room for one record in this CPU's ring; never wakes the reader (8.6 us a wake-up), it drains on a timer. */
static __always_inline void *reserve(void *rings, u64 size, u32 record_class)
{
	u32 cpu = bpf_get_smp_processor_id();
	void *ring = bpf_map_lookup_elem(rings, &cpu);
	void *record = ring ? bpf_ringbuf_reserve(ring, size, 0) : 0;

	if (!record)
		count_loss(record_class);
	return record;
}

static __always_inline void read_comm(char *to, struct task_struct *task)
{
	bpf_probe_read_kernel(to, COMM_LEN, task->comm);
}

#endif
