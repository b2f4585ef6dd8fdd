// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * What every followed thread did: on a CPU, blocked, in a run queue; and who had the CPU it waited for.
 *
 * A thread that is not followed costs two storage look-ups and one array look-up a switch. Slices of other threads
 * are written only on a CPU whose run queue holds a followed thread.
 *
 * All changes of one thread's struct follow happen under the run-queue lock of the CPU it is on (sched_switch,
 * sched_wakeup, sched_migrate_task of a queued thread) or, for the waker's identity, under its pi_lock
 * (sched_waking), so no field is written by two CPUs at once.
 */
#include "maps.bpf.h"
#include "thread.bpf.h"
#include "sleep.bpf.h"

/* An interval off the CPU shorter than this is folded into the next record (sums stay exact). */
KNOB(u64, short_wait_ns, 10000);
/* ... unless the turn has lasted this long: a record is due, so that no request sees a stale sum. */
KNOB(u64, max_turn_ns, 20000000);

/* Which kind of interrupt this CPU is in, as cycle flags; the irq probe keeps the marks, without it: 0. */
static __always_inline u32 waker_context(void)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct cpu_state *c = bpf_map_lookup_elem(&cpus, &cpu);

	if (!c)
		return 0;
	if (c->irq_enter_mono_ns)
		return CYCLE_WAKER_IRQ;
	return c->softirq_enter_mono_ns ? CYCLE_WAKER_SOFTIRQ : 0;
}

static __always_inline bool throttled(struct task_struct *task)
{
	struct task_struct___throttled *new = (void *)task;
	struct cfs_rq *queue;

	if (EXISTS(new, throttled))
		return READ_OPTIONAL(new, throttled);
	queue = READ(task, se.cfs_rq);
	return READ_OPTIONAL(queue, throttle_count) > 0;
}

/* The thread begins to wait for a CPU, out of quota if its cgroup is. */
static __always_inline void begin_throttle(struct task_struct *task, struct follow *f)
{
	struct cfs_rq *queue;

	if (!throttled(task))
		return;
	f->flags |= CYCLE_THROTTLED;
	queue = READ(task, se.cfs_rq);
	f->throttle_clocked = EXISTS(queue, throttled_clock_self_time);
	if (f->throttle_clocked)
		f->throttled_at_ready_ns = READ_OPTIONAL(queue, throttled_clock_self_time);
}

/* How much of the wait, which is over, it was out of quota; all of it where the kernel keeps no such clock. */
static __always_inline u64 end_throttle(struct task_struct *task, struct follow *f, u64 waited)
{
	struct cfs_rq *queue = READ(task, se.cfs_rq);
	u64 clock;

	if (!(f->flags & CYCLE_THROTTLED))
		return 0;
	if (!f->throttle_clocked || !EXISTS(queue, throttled_clock_self_time))
		return waited;
	clock = READ_OPTIONAL(queue, throttled_clock_self_time) - f->throttled_at_ready_ns;
	return clock < waited ? clock : waited;
}

static __always_inline void read_runner(struct runner *r, struct task_struct *task)
{
	r->cgroup_id = cpu_cgroup_id(task);
	r->tid = READ(task, pid);
	r->tgid = READ(task, tgid);
	r->flags = READ(task, flags) & PF_KTHREAD ? RUNNER_KTHREAD : 0;
	r->prio = READ(task, prio);
	read_comm(r->comm, task);
}

static __always_inline struct cpu_slice *begin_slice(u32 cpu, u64 start, u64 end, u32 flags)
{
	struct cpu_slice *slice = reserve(&slice_rings, sizeof(*slice), CLASS_SLICE);

	if (slice) {
		slice->start_mono_ns = start;
		slice->end_mono_ns = end;
		slice->flags = flags;
		slice->cpu = cpu;
		slice->pad = 0;
	}
	return slice;
}

/* The thread enters cpu's run queue. */
static __always_inline void enqueue(struct follow *f, u32 cpu, u64 now)
{
	struct cpu_state *c = bpf_map_lookup_elem(&cpus, &cpu);

	if (!c || f->queued)
		return;
	f->queued = 1;
	f->wait_cpu = cpu;
	if (ADD_TO(&c->waiters, 1) == 0) {
		c->observed_mono_ns = now;
		c->runner_known = 0;
		c->owed = 0;
	}
}

/* It leaves the queue it is in. Returns that CPU's state, 0 if it was in none. */
static __always_inline struct cpu_state *dequeue(struct follow *f)
{
	u32 cpu = f->wait_cpu;
	struct cpu_state *c = f->queued ? bpf_map_lookup_elem(&cpus, &cpu) : 0;

	if (!c)
		return 0;
	f->queued = 0;
	ADD_TO(&c->waiters, -1);
	return c;
}

/* Write the turn that ends at on_ns and begin the next one there. runner: who had the CPU last, 0 if a slice says
 * so already. */
static __always_inline void write_cycle(struct task_struct *task, struct follow *f, u64 on_ns, u32 flags,
					struct task_struct *runner, u64 runner_since)
{
	struct thread_cycle *r = reserve(&cycle_rings, sizeof(*r), CLASS_CYCLE);

	if (r) {
		r->run_mono_ns = f->run_mono_ns;
		r->off_mono_ns = f->off_mono_ns;
		r->ready_mono_ns = f->ready_mono_ns;
		r->on_mono_ns = on_ns;
		r->irq_ns = f->irq_ns;
		r->net_ns = f->net_ns;
		r->reclaim_ns = f->reclaim_ns;
		r->short_blocked_ns = f->short_blocked_ns;
		r->short_runq_ns = f->short_runq_ns;
		r->short_count = f->short_count;
		r->minor_faults = f->minor_faults;
		r->major_faults = f->major_faults;
		r->throttled_ns = end_throttle(task, f, on_ns - f->ready_mono_ns);
		r->object = f->object;
		r->object_kind = f->object_kind;
		r->object_dev = f->object_dev;
		r->prio = READ(task, prio);
		r->tid = READ(task, pid);
		r->tgid = READ(task, tgid);
		r->state = f->state;
		r->syscall_nr = f->syscall_nr;
		r->waker_tid = f->state ? f->waker_tid : 0;
		r->waker_tgid = f->state ? f->waker_tgid : 0;
		flags |= f->state ? f->waker_flags : 0;
		flags |= f->memcg ? CYCLE_MEMCG : 0;
		r->run_cpu = f->run_cpu;
		r->wait_cpu = f->wait_cpu;
		__builtin_memcpy(r->waker_comm, f->waker_comm, COMM_LEN);
		r->runner_since_mono_ns = runner ? runner_since : 0;
		if (runner) {
			flags |= CYCLE_RUNNER;
			read_runner(&r->runner, runner);
		} else {
			__builtin_memset(&r->runner, 0, sizeof(r->runner));
		}
		r->flags = f->flags | flags;
		submit(&cycle_rings, r, sizeof(*r));
	}
	/* A lost record leaves a seam that the reader sees: the next turn starts here all the same. */
	f->run_mono_ns = on_ns;
	f->irq_ns = 0;
	f->net_ns = 0;
	f->reclaim_ns = 0;
	f->memcg = f->in_reclaim == RECLAIM_MEMCG;
	f->minor_faults = 0;
	f->major_faults = 0;
	f->short_blocked_ns = 0;
	f->short_runq_ns = 0;
	f->short_count = 0;
}

static __always_inline void switch_out(struct task_struct *task, struct follow *f, struct cpu_state *c, u32 cpu,
				       bool preempt, u32 prev_state, u64 now)
{
	f->irq_ns += c->irq_ns - f->irq_at_on_ns;
	f->net_ns += c->net_ns - f->net_at_on_ns;
	f->minor_faults += READ(task, min_flt) - f->minor_faults_at_on;
	f->major_faults += READ(task, maj_flt) - f->major_faults_at_on;
	if (f->reclaim_since_mono_ns) {
		f->reclaim_ns += now - f->reclaim_since_mono_ns;
		f->reclaim_since_mono_ns = 0;
	}
	f->off_mono_ns = now;
	f->run_cpu = cpu;
	f->wait_cpu = cpu;
	f->state = preempt ? 0 : prev_state;
	f->ready_mono_ns = 0;
	read_sleep(task, f);
	if ((f->state & (TASK_UNINTERRUPTIBLE | TASK_NOLOAD)) == TASK_UNINTERRUPTIBLE && !f->deep)
		count_deep_sleep(f, 1);
	if (f->state == 0) { /* preempt alone is not it: on return to user mode it is false */
		f->flags |= CYCLE_PREEMPTED;
		begin_throttle(task, f);
		f->ready_mono_ns = now;
		enqueue(f, cpu, now);
	}
}

/* The thread is awake again. */
static __always_inline void leave_sleep(struct follow *f)
{
	if (f->deep)
		count_deep_sleep(f, -1);
}

/* The thread is followed no longer: let go of what it is counted in. The walk does not, it has no lock that keeps the
 * thread from being switched meanwhile. */
static __always_inline bool released(struct follow *f)
{
	if (!f->leaving)
		return false;
	if (REPLACE(&f->leaving, LEAVING, GONE) == STAYING)
		return false; /* followed again, this very moment */
	dequeue(f);
	leave_sleep(f);
	return true;
}

static __always_inline void switch_in(struct task_struct *task, struct follow *f, struct cpu_state *c, u32 cpu,
				      struct task_struct *runner, u64 floor_ns, u64 now)
{
	u64 off = f->off_mono_ns, ready = f->ready_mono_ns, since;

	f->irq_at_on_ns = c->irq_ns;
	f->net_at_on_ns = c->net_ns;
	f->minor_faults_at_on = READ(task, min_flt);
	f->major_faults_at_on = READ(task, maj_flt);
	leave_sleep(f);
	if (f->in_reclaim)
		f->reclaim_since_mono_ns = now;
	if (!off) /* adopted while it ran: its first turn begins when it was adopted */
		return;
	if (!ready) { /* its wake-up came before the switch-out was seen, or before it was followed */
		ready = now;
		f->ready_mono_ns = now;
		f->wait_cpu = cpu;
	}
	f->total_waits++;
	f->total_blocked_ns += ready - off;
	f->total_runq_ns += now - ready;
	if (now - off < floor_ns && now - f->run_mono_ns < max_turn_ns) {
		f->short_count++;
		f->short_blocked_ns += ready - off;
		f->short_runq_ns += now - ready;
	} else {
		since = c->observed_mono_ns > ready ? c->observed_mono_ns : ready;
		write_cycle(task, f, now, 0, runner, since);
	}
	f->off_mono_ns = 0;
	f->ready_mono_ns = 0;
}

/* How long ago a thread that leaves its CPU now came onto it, by the scheduler. Where that keeps no such time: how
 * long it ran since it was last picked, which is less, for a thread may be picked again while it runs, and without
 * steal. */
static __always_inline u64 on_cpu_ns(struct task_struct *task)
{
	struct sched_info *info = &task->sched_info;
	struct cfs_rq *queue = READ(task, se.cfs_rq);
	struct rq *rq = EXISTS(queue, rq) ? READ_OPTIONAL(queue, rq) : 0;
	u64 arrival = EXISTS(info, last_arrival) ? READ_OPTIONAL(info, last_arrival) : 0;

	if (rq && arrival && EXISTS(rq, clock))
		return READ_OPTIONAL(rq, clock) - arrival;
	return READ(task, se.sum_exec_runtime) - READ(task, se.prev_sum_exec_runtime);
}

/* When a thread came onto its CPU that leaves it now, where nobody said so: sched_switch does not tell of every switch
 * on every kernel, and a thread may be adopted while it is switched in. */
static __always_inline u64 came_unseen_at(struct task_struct *task, struct follow *f, u64 now)
{
	u64 since = f->ready_mono_ns ?: f->off_mono_ns;
	u64 ran = on_cpu_ns(task);

	return ran < now - since ? now - ran : since;
}

/* The four-argument form is since 5.18, commit fa2c3254d7cf "sched/tracing: Don't re-read p->state when emitting
 * sched_switch event"; READ(prev, __state) read here may already say TASK_WAKING. */
TRACEPOINT(sched_switch, on_switch, bool preempt, struct task_struct *prev, struct task_struct *next, unsigned int prev_state)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct cpu_state *c = bpf_map_lookup_elem(&cpus, &cpu);
	struct follow *p = READ(prev, pid) ? storage_of(prev) : 0;
	struct follow *n = READ(next, pid) ? storage_of(next) : 0;
	struct cpu_slice *slice;
	bool sliced = false, kept;
	struct tuning *t;
	u64 now;

	if (!c)
		return 0;
	if (!p) {
		barrier_var(n); /* or clang merges the two tests into p | n, which the verifier refuses */
		if (!n && c->waiters <= 0 && !c->owed)
			return 0;
	}
	t = tuned();
	if (!t)
		return 0;
	now = bpf_ktime_get_ns();
	kept = p && !released(p);
	if (kept && p->off_mono_ns) {
		dequeue(p);
		switch_in(prev, p, c, cpu, 0, t->floor_ns ?: short_wait_ns, came_unseen_at(prev, p, now));
	}
	if (n)
		dequeue(n);
	if (c->waiters > 0 || c->owed) {
		/* Others still wait, each of them is owed this slice; next's own record need not repeat it. */
		slice = t->no_slices ? 0 : begin_slice(cpu, c->observed_mono_ns, now, 0);
		if (slice) {
			read_runner(&slice->runner, prev);
			submit(&slice_rings, slice, sizeof(*slice));
		}
		sliced = true;
	}
	if (n && !released(n))
		switch_in(next, n, c, cpu, sliced || t->no_slices ? 0 : prev, t->floor_ns ?: short_wait_ns, now);
	if (sliced) {
		c->observed_mono_ns = now;
		c->owed = 0;
	}
	if (p && prev_state & TASK_DEAD)
		TASK_HAS_ENDED(&follows, prev);
	else if (kept)
		switch_out(prev, p, c, cpu, preempt, prev_state, now);
	if (c->waiters > 0) {
		if (!t->no_slices)
			read_runner(&c->runner, next);
		c->runner_known = !t->no_slices;
	}
	return 0;
}

/* In the waker's context: who woke it. May come before the switch-out of a thread that is just going to sleep, so
 * switch_out leaves it alone. */
TRACEPOINT(sched_waking, on_waking, struct task_struct *task)
{
	struct follow *f = storage_of(task);
	struct task_struct *waker;

	if (!f)
		return 0;
	waker = CURRENT_TASK();
	f->waker_tid = READ(waker, pid);
	f->waker_tgid = READ(waker, tgid);
	read_comm(f->waker_comm, waker);
	f->waker_flags = waker_context();
	/* A sleeper is frozen in its sleep: that it was is only seen when it is thawed. */
	if (f->off_mono_ns && READ(task, __state) & TASK_FROZEN)
		f->state |= TASK_FROZEN;
	return 0;
}

static __always_inline int runnable(struct task_struct *task)
{
	struct follow *f = storage_of(task);
	u64 now;

	if (!f || released(f) || !f->off_mono_ns || f->ready_mono_ns)
		return 0;
	now = bpf_ktime_get_ns();
	f->ready_mono_ns = now;
	leave_sleep(f);
	begin_throttle(task, f);
	enqueue(f, READ(task, thread_info.cpu), now);
	return 0;
}

/* On the run queue: where the wait for a CPU begins. Not sched_waking: that would add the wake-up path (14 %). */
TRACEPOINT(sched_wakeup, on_wakeup, struct task_struct *task)
{
	return runnable(task);
}

TRACEPOINT(sched_wakeup_new, on_wakeup_new, struct task_struct *task)
{
	return runnable(task);
}

/* A queued thread is moved to another CPU's queue: close the wait on the old one. Fires with the old run queue
 * locked, before the task's cpu changes. */
TRACEPOINT(sched_migrate_task, on_migrate, struct task_struct *task, int dest_cpu)
{
	struct follow *f = storage_of(task);
	struct cpu_slice *slice;
	struct cpu_state *c;
	u32 old_cpu;
	u64 now;

	if (!f || released(f) || !f->queued)
		return 0;
	old_cpu = f->wait_cpu;
	c = dequeue(f);
	if (!c)
		return 0;
	now = bpf_ktime_get_ns();
	/* Whoever runs there goes on running and no switch may come for long: say now what it took so far. */
	if (c->runner_known) {
		slice = begin_slice(old_cpu, c->observed_mono_ns, now, SLICE_UNFINISHED);
		if (slice) {
			slice->runner = c->runner;
			submit(&slice_rings, slice, sizeof(*slice));
		}
		c->observed_mono_ns = now;
	} else if (c->waiters <= 0) {
		c->owed = 1;
	}
	if (f->ready_mono_ns) {
		f->total_blocked_ns += f->ready_mono_ns - f->off_mono_ns;
		f->total_runq_ns += now - f->ready_mono_ns;
		write_cycle(task, f, now, CYCLE_MOVED, 0, 0);
		f->off_mono_ns = now;
		f->ready_mono_ns = now;
		f->state = 0;
		f->flags &= CYCLE_THROTTLED | CYCLE_PREEMPTED;
		f->throttle_clocked = 0;
	}
	enqueue(f, dest_cpu, now);
	return 0;
}
