// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/* Which threads are followed: adopted while they live, from birth when their parent is, until exit. */
#include "maps.bpf.h"
#include "thread.bpf.h"
#include "sleep.bpf.h"

static __always_inline void write_thread_event(struct task_struct *task, struct follow *f, u32 kind, u64 now)
{
	struct thread_event *e = reserve(&thread_rings, sizeof(*e), CLASS_THREAD);

	if (!e)
		return;
	e->mono_ns = now;
	e->run_mono_ns = f->run_mono_ns;
	e->cgroup_id = cpu_cgroup_id(task);
	e->kind = kind;
	e->tid = READ(task, pid);
	e->tgid = READ(task, tgid);
	e->ns_tid = namespace_id(task);
	e->ns_tgid = namespace_id(READ(task, group_leader));
	e->parent_tgid = BPF_CORE_READ(task, real_parent, tgid);
	read_comm(e->comm, task);
	submit(&thread_rings, e, sizeof(*e));
}

static __always_inline struct follow *begin(struct task_struct *task, u64 now)
{
	struct follow *f = NEW_TASK_STORAGE(&follows, task, struct follow);

	if (!f) {
		count_loss(CLASS_THREAD);
		return 0;
	}
	f->followed_mono_ns = now;
	f->run_mono_ns = now;
	return f;
}

/* Before the task's first wake-up (sched_wakeup_new), in the parent's context. */
TRACEPOINT(task_newtask, on_newtask, struct task_struct *task)
{
	struct task_struct *parent = CURRENT_TASK();
	struct follow *by = follow_of(parent), *f;
	u32 tgid = READ(task, tgid);
	bool only_threads = false;
	u8 *target = bpf_map_lookup_elem(&targets, &tgid);
	u64 now;

	if (target && *target == TARGET_LEAVES)
		return 0;
	if (by) {
		only_threads = by->only_threads;
		if (only_threads && tgid != (u32)READ(parent, tgid))
			return 0;
	} else {
		if (!target)
			return 0;
		only_threads = *target == TARGET_PEER;
	}
	now = bpf_ktime_get_ns();
	f = begin(task, now);
	if (!f)
		return 0;
	f->only_threads = only_threads;
	f->off_mono_ns = now;
	f->flags = CYCLE_BORN;
	f->syscall_nr = -1;
	write_thread_event(task, f, THREAD_BORN, now);
	return 0;
}

TRACEPOINT(sched_process_exec, on_exec, struct task_struct *task)
{
	struct follow *f = follow_of(task);

	if (f)
		write_thread_event(task, f, THREAD_EXEC, bpf_ktime_get_ns());
	return 0;
}

TRACEPOINT(sched_process_exit, on_exit, struct task_struct *task)
{
	struct follow *f = follow_of(task);

	if (f)
		write_thread_event(task, f, THREAD_EXIT, bpf_ktime_get_ns());
	return 0;
}

/* The thread was there before us: from its state now, say what it is doing. Not under its run-queue lock: a switch
 * at this very moment can make the first turn wrong, switch_out puts the rest right. */
static __always_inline void adopt(struct task_struct *task, struct follow *f, u64 now)
{
	u32 cpu = READ(task, thread_info.cpu);
	struct cpu_state *c = bpf_map_lookup_elem(&cpus, &cpu);

	if (!c)
		return;
	f->minor_faults_at_on = READ(task, min_flt);
	f->major_faults_at_on = READ(task, maj_flt);
	if (READ(task, on_cpu)) {
		f->irq_at_on_ns = c->irq_ns;
		f->net_at_on_ns = c->net_ns;
		return;
	}
	read_sleep(task, f);
	f->flags |= CYCLE_SEEDED;
	f->run_cpu = cpu;
	f->wait_cpu = cpu;
	f->state = READ(task, __state);
	if (!f->state) {
		f->ready_mono_ns = now;
		enqueue(f, cpu, now);
	}
	f->off_mono_ns = now;
}

/* A thread that is followed no longer, or again. Returns what is kept of it if it is to be reported. */
static __always_inline struct follow *part(struct task_struct *task, struct follow *f, u8 *target, u64 now)
{
	bool again = target && *target != TARGET_LEAVES;

	if (again && REPLACE(&f->leaving, LEAVING, STAYING) == LEAVING) {
		f->followed_mono_ns = now; /* it has not been switched since: all that is kept holds */
		f->only_threads = *target == TARGET_PEER;
		return f;
	}
	if (f->leaving == GONE)
		DELETE_TASK_STORAGE(&follows, task);
	return 0;
}

static __always_inline void look_at_thread(struct task_struct *task, void *to)
{
	u64 now = bpf_ktime_get_ns();
	struct tuning *t = tuned();
	struct thread_state s = {};
	struct follow *f;
	u8 *target;
	u32 tgid;

	tgid = READ(task, tgid);
	f = storage_of(task);
	if (t && t->forgets) {
		if (f)
			DELETE_TASK_STORAGE(&follows, task);
		return;
	}
	target = bpf_map_lookup_elem(&targets, &tgid);
	if (f && target && *target == TARGET_LEAVES && f->leaving == STAYING)
		f->leaving = LEAVING;
	if (f && f->leaving)
		f = part(task, f, target, now);
	else if (f && target && *target == TARGET_WORKER)
		f->only_threads = 0; /* it was a peer until now */
	if (!f) {
		if (!target || *target == TARGET_LEAVES || READ(task, flags) & PF_KTHREAD)
			return;
		f = begin(task, now);
		if (!f)
			return;
		f->only_threads = *target == TARGET_PEER;
		adopt(task, f, now);
	}
	s.taken_mono_ns = now;
	s.followed_mono_ns = f->followed_mono_ns;
	s.run_mono_ns = f->run_mono_ns;
	s.off_mono_ns = f->off_mono_ns;
	s.ready_mono_ns = f->ready_mono_ns;
	s.irq_ns = f->irq_ns;
	s.net_ns = f->net_ns;
	s.reclaim_ns = f->reclaim_ns;
	s.short_blocked_ns = f->short_blocked_ns;
	s.short_runq_ns = f->short_runq_ns;
	s.total_runq_ns = f->total_runq_ns;
	s.total_blocked_ns = f->total_blocked_ns;
	s.total_waits = f->total_waits;
	s.cgroup_id = cpu_cgroup_id(task);
	s.mode = !f->off_mono_ns ? MODE_RUNNING : f->ready_mono_ns ? MODE_RUNNABLE : MODE_BLOCKED;
	s.tid = READ(task, pid);
	s.tgid = tgid;
	s.ns_tid = namespace_id(task);
	s.ns_tgid = namespace_id(READ(task, group_leader));
	s.short_count = f->short_count;
	s.state = f->state;
	s.syscall_nr = f->syscall_nr;
	s.flags = f->flags;
	s.object = f->object;
	s.object_kind = f->object_kind;
	s.object_dev = f->object_dev;
	s.run_cpu = f->run_cpu;
	s.wait_cpu = f->wait_cpu;
	s.waker_tid = f->waker_tid;
	s.waker_tgid = f->waker_tgid;
	__builtin_memcpy(s.waker_comm, f->waker_comm, COMM_LEN);
	read_comm(s.comm, task);
	ANSWER(to, s);
}

/* Walks all tasks: adopts the threads of targets, lets go of those that leave, then reports every followed thread.
 * Reading it is how user space both starts to follow a process and sees the intervals that are still open. */
TASK_ITERATOR(iter_threads, look_at_thread)
