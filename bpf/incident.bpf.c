// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/* What others did to a followed process: signals that stop, continue or kill it, and the out-of-memory killer. */
#include "maps.bpf.h"

enum { SIGKILL = 9, SIGTERM = 15, SIGCONT = 18, SIGSTOP = 19, SIGTSTP = 20, SIGTTIN = 21, SIGTTOU = 22 };

static __always_inline void write_incident(u32 kind, s32 signal, struct task_struct *target)
{
	struct incident *i = reserve(&incident_rings, sizeof(*i), CLASS_INCIDENT);
	struct task_struct *actor = bpf_get_current_task_btf();

	if (!i)
		return;
	i->mono_ns = bpf_ktime_get_ns();
	i->kind = kind;
	i->signal = signal;
	i->actor_tid = actor->pid;
	i->actor_tgid = actor->tgid;
	i->target_tid = target->pid;
	i->target_tgid = target->tgid;
	read_comm(i->actor_comm, actor);
	read_comm(i->target_comm, target);
	bpf_ringbuf_submit(i, BPF_RB_NO_WAKEUP);
}

SEC("tp_btf/signal_generate")
int BPF_PROG(on_signal, int signal, void *info, struct task_struct *task)
{
	if (signal != SIGKILL && signal != SIGTERM && (signal < SIGCONT || signal > SIGTTOU))
		return 0;
	if (follow_of(task))
		write_incident(INCIDENT_SIGNAL, signal, task);
	return 0;
}

/* Since 6.10 with the task; before, with its pid only. */
SEC("tp_btf/mark_victim")
int BPF_PROG(on_oom_victim, struct task_struct *victim)
{
	write_incident(INCIDENT_OOM_KILL, SIGKILL, victim);
	return 0;
}
