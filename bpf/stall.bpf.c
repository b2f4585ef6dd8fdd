// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * Stalls inside the kernel that sched_switch alone cannot name: direct memory reclaim and compaction (mostly CPU time
 * of the thread itself), and sleeps on contended kernel locks.
 */
#include "maps.bpf.h"

static __always_inline int begin_reclaim(u8 scope)
{
	struct follow *f = follow_of(bpf_get_current_task_btf());

	if (!f || f->in_reclaim) /* compaction inside reclaim counts once */
		return 0;
	f->in_reclaim = scope;
	f->memcg |= scope == RECLAIM_MEMCG;
	f->reclaim_since_mono_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int end_reclaim(u8 scope)
{
	struct follow *f = follow_of(bpf_get_current_task_btf());

	if (!f || f->in_reclaim != scope)
		return 0;
	f->in_reclaim = RECLAIM_NONE;
	if (f->reclaim_since_mono_ns)
		f->reclaim_ns += bpf_ktime_get_ns() - f->reclaim_since_mono_ns;
	f->reclaim_since_mono_ns = 0;
	return 0;
}

SEC("tp_btf/mm_vmscan_direct_reclaim_begin")
int BPF_PROG(on_reclaim_begin)
{
	return begin_reclaim(RECLAIM_HOST);
}

SEC("tp_btf/mm_vmscan_direct_reclaim_end")
int BPF_PROG(on_reclaim_end)
{
	return end_reclaim(RECLAIM_HOST);
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_begin")
int BPF_PROG(on_memcg_reclaim_begin)
{
	return begin_reclaim(RECLAIM_MEMCG);
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_end")
int BPF_PROG(on_memcg_reclaim_end)
{
	return end_reclaim(RECLAIM_MEMCG);
}

SEC("tp_btf/mm_compaction_begin")
int BPF_PROG(on_compaction_begin)
{
	return begin_reclaim(RECLAIM_COMPACTION);
}

SEC("tp_btf/mm_compaction_end")
int BPF_PROG(on_compaction_end)
{
	return end_reclaim(RECLAIM_COMPACTION);
}

#define LCB_F_SPIN 1 /* include/trace/events/lock.h */

/* Since 5.19; only on the slow path of a lock. A spinning waiter does not sleep. */
SEC("tp_btf/contention_begin")
int BPF_PROG(on_contention_begin, void *lock, unsigned int flags)
{
	struct follow *f = flags & LCB_F_SPIN ? 0 : follow_of(bpf_get_current_task_btf());

	if (f)
		f->in_kernel_lock = 1;
	return 0;
}

SEC("tp_btf/contention_end")
int BPF_PROG(on_contention_end)
{
	struct follow *f = follow_of(bpf_get_current_task_btf());

	if (f)
		f->in_kernel_lock = 0;
	return 0;
}
