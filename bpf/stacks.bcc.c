// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * Where followed processes wait, and in whose code: stacks when a thread blocks, times when it runs again.
 *
 * Compiled on the host by bcc, for `tailspan stacks`; not part of the object. Kept apart from the probes because
 * two stacks a wait cost 1 to 3 us: too dear to be always on, cheap for the seconds that somebody looks.
 *
 * Given by -D: MIN_NS, MAX_PROCESSES, MAX_THREADS, MAX_PLACES, MAX_STACKS.
 */
#ifndef __VMLINUX_H__
#include <linux/sched.h>
#include <uapi/linux/ptrace.h>
#endif

#define DEAD 0x80 /* TASK_DEAD of include/linux/sched.h: it will not run again */
#ifndef EEXIST
#define EEXIST 17
#endif

struct wait {
	u64 off_mono_ns;
	u64 ready_mono_ns; /* 0: not woken yet */
	s32 kernel_stack; /* < 0: -errno of bpf_get_stackid() */
	s32 user_stack;
	u32 tgid;
	u32 pad;
	char comm[16];
};

struct place {
	u32 tgid;
	u32 tid;
	s32 kernel_stack;
	s32 user_stack;
};

/* Of one thread at one place: only the CPU that switches the thread in writes it. */
struct total {
	u64 count;
	u64 blocked_ns;
	u64 runq_ns;
	u64 longest_ns; /* of blocked_ns */
	char comm[16];
};

enum { SHORT, LOST_WAIT, LOST_PLACE, SUMS };

struct sum {
	u64 count;
	u64 ns;
};

BPF_HASH(followed, u32, u8, MAX_PROCESSES);
BPF_HASH(waiting, u32, struct wait, MAX_THREADS);
BPF_HASH(totals, struct place, struct total, MAX_PLACES);
BPF_STACK_TRACE(stacks, MAX_STACKS);
BPF_STACK_TRACE(more_stacks, MAX_STACKS); /* of those whose place in the first another one has */
BPF_PERCPU_ARRAY(sums, struct sum, SUMS);

static __always_inline void add(u32 which, u64 ns)
{
	struct sum *sum = sums.lookup(&which);

	if (sum) {
		sum->count++;
		sum->ns += ns;
	}
}

/* An id from MAX_STACKS on is one of the second table. Two of the same hash are rare, three are not to be expected. */
static __always_inline s32 stack_id(struct bpf_raw_tracepoint_args *ctx, u64 flags)
{
	s32 id = stacks.get_stackid(ctx, flags);

	if (id != -EEXIST)
		return id;
	id = more_stacks.get_stackid(ctx, flags);
	return id < 0 ? id : id + MAX_STACKS;
}

static __always_inline void block(struct bpf_raw_tracepoint_args *ctx, u32 tgid, u32 tid, u64 now)
{
	struct wait wait = {};

	/* The kernel has not said that it ran since: how long the last wait was is not known. */
	if (waiting.lookup(&tid))
		add(LOST_WAIT, 0);
	wait.off_mono_ns = now;
	wait.tgid = tgid;
	wait.kernel_stack = stack_id(ctx, 0);
	wait.user_stack = stack_id(ctx, BPF_F_USER_STACK);
	bpf_get_current_comm(wait.comm, sizeof(wait.comm));
	if (waiting.update(&tid, &wait))
		add(LOST_WAIT, 0);
}

static __always_inline void resume(u32 tid, u64 now)
{
	struct wait *wait = waiting.lookup(&tid);
	struct place place = {};
	struct total fresh = {}, *total;
	u64 ready, blocked;

	if (!wait)
		return;
	ready = wait->ready_mono_ns ? wait->ready_mono_ns : now;
	blocked = ready - wait->off_mono_ns;
	if (blocked < MIN_NS) {
		add(SHORT, blocked);
		waiting.delete(&tid);
		return;
	}
	place.tgid = wait->tgid;
	place.tid = tid;
	place.kernel_stack = wait->kernel_stack;
	place.user_stack = wait->user_stack;
	total = totals.lookup_or_try_init(&place, &fresh);
	if (total) {
		total->count++;
		total->blocked_ns += blocked;
		total->runq_ns += now - ready;
		if (blocked > total->longest_ns)
			total->longest_ns = blocked;
		__builtin_memcpy(total->comm, wait->comm, sizeof(total->comm));
	} else {
		add(LOST_PLACE, blocked);
	}
	waiting.delete(&tid);
}

/* TP_PROTO(bool preempt, struct task_struct *prev, struct task_struct *next, ...): prev is current */
int on_switch(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *prev = (struct task_struct *)ctx->args[1];
	struct task_struct *next = (struct task_struct *)ctx->args[2];
	u64 now = bpf_ktime_get_ns();
	u64 id = bpf_get_current_pid_tgid();
	u32 tgid = id >> 32;

	/* A thread that is preempted goes on waiting for nothing but a CPU, whatever its state. */
	if (!ctx->args[0] && followed.lookup(&tgid) && prev->__state && !(prev->__state & DEAD))
		block(ctx, tgid, (u32)id, now);
	resume(next->pid, now);
	return 0;
}

/* TP_PROTO(struct task_struct *p) */
int on_wakeup(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];
	u32 tid = task->pid;
	struct wait *wait = waiting.lookup(&tid);

	if (wait && !wait->ready_mono_ns)
		wait->ready_mono_ns = bpf_ktime_get_ns();
	return 0;
}
