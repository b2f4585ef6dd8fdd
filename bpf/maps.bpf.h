/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Maps, knobs and the small helpers that every program shares. */
#ifndef TAILSPAN_MAPS_H
#define TAILSPAN_MAPS_H

#ifdef TAILSPAN_BCC
#include "bcc.h"
#else
#include "core.h"
#endif
#include "events.h"

/* A thread that is followed no longer writes nothing from LEAVING on. What it is counted in is let go of when it is next
 * switched, woken or moved, under its run queue's lock: then it is GONE, and the next walk takes its storage. */
enum leaving { STAYING = 0, LEAVING = 1, GONE = 2 };

/* What we keep of a followed thread. Only threads that are followed, or were until just now, have this storage: no
 * table is searched on the switch path, and the storage goes with the task. */
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
	u32 leaving; /* enum leaving */
	u32 pad2;
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

/* With its future child processes, or for its threads only; or not any more. */
enum target_kind { TARGET_WORKER = 1, TARGET_PEER = 2, TARGET_LEAVES = 3 };

enum reclaim_scope { RECLAIM_NONE = 0, RECLAIM_HOST = 1, RECLAIM_MEMCG = 2, RECLAIM_COMPACTION = 3 };

MAP(follows,
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct follow););

MAP(cpus,
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* one per CPU, sized by the loader */
	__type(key, u32);
	__type(value, struct cpu_state););

MAP(targets,
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u32); /* tgid of a process whose threads are to be adopted, or let go */
	__type(value, u8); /* enum target_kind */);

/* How many followed threads are in uninterruptible sleep: while there are any, block requests are of interest. */
MAP(deep_sleepers,
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, s64););

/* What user space changes while the programs run; all zero: as they were loaded. */
struct tuning {
	u64 floor_ns;	   /* instead of the knob short_wait_ns; 0: that one */
	u32 no_slices;	   /* who had a CPU that followed threads waited for is not written */
	u32 forgets;	   /* no program is attached: the next walks take all that is kept of threads and sockets */
};

MAP(tunings,
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct tuning););

MAP(losses,
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CLASS_COUNT);
	__type(key, u32); /* enum record_class */
	__type(value, u64););

RINGS(cycle_rings);
RINGS(slice_rings);
RINGS(thread_rings);
RINGS(syscall_rings);
RINGS(socket_rings);
RINGS(connection_rings);
RINGS(block_rings);
RINGS(incident_rings);
RINGS(gpu_call_rings);

ANCHOR(struct runner, runner);
ANCHOR(struct thread_cycle, thread_cycle);
ANCHOR(struct cpu_slice, cpu_slice);
ANCHOR(struct thread_event, thread_event);
ANCHOR(struct thread_state, thread_state);
ANCHOR(struct syscall_record, syscall_record);
ANCHOR(struct socket_wait, socket_wait);
ANCHOR(struct connection, connection);
ANCHOR(struct block_request, block_request);
ANCHOR(struct incident, incident);
ANCHOR(struct gpu_call, gpu_call);
ANCHOR(struct gpu_call_key, gpu_call_key);
ANCHOR(struct socket_owner, socket_owner);
ANCHOR(struct syscall_key, syscall_key);
ANCHOR(struct syscall_hist, syscall_hist);
ANCHOR(enum runner_flags, runner_flags);
ANCHOR(enum cycle_flags, cycle_flags);
ANCHOR(enum slice_flags, slice_flags);
ANCHOR(enum object_kind, object_kind);
ANCHOR(enum socket_op, socket_op);
ANCHOR(enum socket_flags, socket_flags);
ANCHOR(enum incident_kind, incident_kind);
ANCHOR(enum gpu_call_kind, gpu_call_kind);
ANCHOR(enum thread_event_kind, thread_event_kind);
ANCHOR(enum thread_mode, thread_mode);
ANCHOR(enum record_class, record_class);

/* Of a thread that leaves too: for what must be kept in step while it may come back. */
static __always_inline struct follow *storage_of(struct task_struct *task)
{
	return TASK_STORAGE(&follows, task);
}

static __always_inline struct follow *follow_of(struct task_struct *task)
{
	struct follow *f = storage_of(task);

	return f && !f->leaving ? f : 0;
}

static __always_inline struct tuning *tuned(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&tunings, &zero);
}

static __always_inline void count_loss(u32 record_class)
{
	u64 *lost = bpf_map_lookup_elem(&losses, &record_class);

	if (lost)
		(*lost)++;
}

static __always_inline void *ring_of_this_cpu(void *rings)
{
	u32 cpu = bpf_get_smp_processor_id();

	return bpf_map_lookup_elem(rings, &cpu);
}

/* Room for one record in this CPU's ring. */
static __always_inline void *reserve(void *rings, u64 size, u32 record_class)
{
	void *ring = ring_of_this_cpu(rings);
	void *record = ring ? bpf_ringbuf_reserve(ring, size, 0) : 0;

	if (!record)
		count_loss(record_class);
	return record;
}

/* Wakes the reader only with the record that makes the ring half full: it drains on a timer, a wake-up takes 8.6 us. */
static __always_inline void submit(void *rings, void *record, u64 size)
{
	void *ring = ring_of_this_cpu(rings);
	u64 half = ring ? bpf_ringbuf_query(ring, BPF_RB_RING_SIZE) / 2 : 0;
	bool is_half = ring && bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) - half < BPF_RINGBUF_HDR_SZ + size;

	bpf_ringbuf_submit(record, is_half ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}

static __always_inline void read_comm(char *to, struct task_struct *task)
{
	READ_INTO(to, COMM_LEN, task, comm);
}

#ifdef TAILSPAN_BCC
#include "walk.bcc.h"
#endif

#endif
