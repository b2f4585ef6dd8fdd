// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/* What others did to a followed process: signals that stop, continue or kill it, and the out-of-memory killer. */
#include "maps.bpf.h"

static __always_inline void write_incident(u32 kind, s32 signal, struct task_struct *target)
{
	struct incident *i = reserve(&incident_rings, sizeof(*i), CLASS_INCIDENT);
	struct task_struct *actor = CURRENT_TASK();

	if (!i)
		return;
	i->mono_ns = bpf_ktime_get_ns();
	i->kind = kind;
	i->signal = signal;
	i->actor_tid = READ(actor, pid);
	i->actor_tgid = READ(actor, tgid);
	i->target_tid = READ(target, pid);
	i->target_tgid = READ(target, tgid);
	read_comm(i->actor_comm, actor);
	read_comm(i->target_comm, target);
	submit(&incident_rings, i, sizeof(*i));
}

TRACEPOINT(signal_generate, on_signal, int signal, void *info, struct task_struct *task)
{
	if (signal != SIGKILL && signal != SIGTERM && (signal < SIGCONT || signal > SIGTTOU))
		return 0;
	if (follow_of(task))
		write_incident(INCIDENT_SIGNAL, signal, task);
	return 0;
}

/* Since 6.10 with the task; before, with its tid only. */
TRACEPOINT(mark_victim, on_oom_victim, struct task_struct *victim)
{
	write_incident(INCIDENT_OOM_KILL, SIGKILL, TASK_OR_TID(victim));
	return 0;
}
