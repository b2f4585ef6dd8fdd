// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * Block requests that a followed thread may have waited for: when each was made, handed to the device and completed,
 * and who issued it. Every request of the host pays a table entry from issue to completion; a record is written only
 * for those of followed threads, and for all while one of those sleeps uninterruptibly.
 */
#include "maps.bpf.h"
#include "thread.bpf.h"

struct issue {
	u64 mono_ns; /* handed to the device; 0: it waits in the scheduler */
	u64 cgroup_id;
	u32 tid;
	u32 tgid;
	u32 kthread;
	u32 followed;
	char comm[COMM_LEN];
};

/* By the request's address. LRU: a request whose completion is never seen is pushed out by later ones. */
MAP(issues,
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, struct issue););

static __always_inline void note_issuer(struct request *rq, u64 issued_mono_ns)
{
	struct task_struct *task = CURRENT_TASK();
	struct issue issue = {};
	u64 key = (u64)rq;

	issue.mono_ns = issued_mono_ns;
	issue.cgroup_id = cpu_cgroup_id(task);
	issue.tid = READ(task, pid);
	issue.tgid = READ(task, tgid);
	issue.kthread = READ(task, flags) & PF_KTHREAD ? 1 : 0;
	issue.followed = follow_of(task) ? 1 : 0;
	read_comm(issue.comm, task);
	bpf_map_update_elem(&issues, &key, &issue, BPF_ANY);
}

/* Into the scheduler, by who made it; it may be handed to the device by another. */
TRACEPOINT(block_rq_insert, on_block_insert, struct request *rq)
{
	note_issuer(rq, 0);
	return 0;
}

TRACEPOINT(block_rq_issue, on_block_issue, struct request *rq)
{
	struct issue *issue;
	u64 key = (u64)rq;

	issue = bpf_map_lookup_elem(&issues, &key);
	if (issue)
		issue->mono_ns = bpf_ktime_get_ns();
	else
		note_issuer(rq, bpf_ktime_get_ns());
	return 0;
}

/* Merged into another request: it will never complete, and its address is used again. */
TRACEPOINT(block_rq_merge, on_block_merge, struct request *rq)
{
	u64 key = (u64)rq;

	bpf_map_delete_elem(&issues, &key);
	return 0;
}

TRACEPOINT(block_rq_complete, on_block_complete, struct request *rq, u8 error, unsigned int bytes)
{
	u32 zero = 0;
	s64 *sleepers = bpf_map_lookup_elem(&deep_sleepers, &zero);
	struct block_request *r;
	struct gendisk *disk;
	struct issue *issue;
	u64 key = (u64)rq;

	issue = bpf_map_lookup_elem(&issues, &key);
	if (!issue)
		return 0;
	if (!issue->mono_ns || (!issue->followed && (!sleepers || *sleepers <= 0)))
		goto out;
	r = reserve(&block_rings, sizeof(*r), CLASS_BLOCK);
	if (!r)
		goto out;
	disk = READ(READ(rq, q), disk);
	r->queued_mono_ns = READ(rq, start_time_ns);
	r->issued_mono_ns = issue->mono_ns;
	r->completed_mono_ns = bpf_ktime_get_ns();
	if (!r->queued_mono_ns || r->queued_mono_ns > r->issued_mono_ns) /* queue without iostats */
		r->queued_mono_ns = r->issued_mono_ns;
	r->sector = READ(rq, __sector);
	r->bytes = bytes;
	r->dev = disk ? (u32)READ(disk, major) << 20 | READ(disk, first_minor) : 0;
	r->op = READ(rq, cmd_flags) & REQ_OP_MASK;
	r->error = error;
	r->cgroup_id = issue->cgroup_id;
	r->tid = issue->tid;
	r->tgid = issue->tgid;
	r->kthread = issue->kthread;
	r->pad = 0;
	__builtin_memcpy(r->comm, issue->comm, COMM_LEN);
	submit(&block_rings, r, sizeof(*r));
out:
	bpf_map_delete_elem(&issues, &key);
	return 0;
}
