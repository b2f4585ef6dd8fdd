// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * Stalls inside the kernel that sched_switch alone cannot name: direct memory reclaim and compaction (mostly CPU time
 * of the thread itself), and sleeps on contended kernel locks.
 */
#include "maps.bpf.h"

static __always_inline int begin_reclaim(u8 scope)
{
	struct follow *f = storage_of(CURRENT_TASK());

	if (!f || f->in_reclaim) /* compaction inside reclaim counts once */
		return 0;
	f->in_reclaim = scope;
	f->memcg |= scope == RECLAIM_MEMCG;
	f->reclaim_since_mono_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int end_reclaim(u8 scope)
{
	struct follow *f = storage_of(CURRENT_TASK());

	if (!f || f->in_reclaim != scope)
		return 0;
	f->in_reclaim = RECLAIM_NONE;
	if (f->reclaim_since_mono_ns)
		f->reclaim_ns += bpf_ktime_get_ns() - f->reclaim_since_mono_ns;
	f->reclaim_since_mono_ns = 0;
	return 0;
}

TRACEPOINT(mm_vmscan_direct_reclaim_begin, on_reclaim_begin)
{
	return begin_reclaim(RECLAIM_HOST);
}

TRACEPOINT(mm_vmscan_direct_reclaim_end, on_reclaim_end)
{
	return end_reclaim(RECLAIM_HOST);
}

TRACEPOINT(mm_vmscan_memcg_reclaim_begin, on_memcg_reclaim_begin)
{
	return begin_reclaim(RECLAIM_MEMCG);
}

TRACEPOINT(mm_vmscan_memcg_reclaim_end, on_memcg_reclaim_end)
{
	return end_reclaim(RECLAIM_MEMCG);
}

TRACEPOINT(mm_compaction_begin, on_compaction_begin)
{
	return begin_reclaim(RECLAIM_COMPACTION);
}

TRACEPOINT(mm_compaction_end, on_compaction_end)
{
	return end_reclaim(RECLAIM_COMPACTION);
}

/* Since 5.19; only on the slow path of a lock. A spinning waiter does not sleep. */
TRACEPOINT(contention_begin, on_contention_begin, void *lock, unsigned int flags)
{
	struct follow *f = flags & LCB_F_SPIN ? 0 : storage_of(CURRENT_TASK());

	if (f)
		f->in_kernel_lock = 1;
	return 0;
}

TRACEPOINT(contention_end, on_contention_end)
{
	struct follow *f = storage_of(CURRENT_TASK());

	if (f)
		f->in_kernel_lock = 0;
	return 0;
}
