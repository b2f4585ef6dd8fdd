// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * Enter-to-exit latency of every system call of followed threads. Off by default: while these two are attached,
 * every system call of every task of the host takes the kernel's slow path, some 30 to 200 ns dearer. The blocking part
 * of the latency comes free from sched_switch.
 */
#include "maps.bpf.h"

/* A call at least this long is also written as a record. */
KNOB(u64, syscall_floor_ns, 1000000);

MAP(syscall_hists,
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct syscall_key);
	__type(value, struct syscall_hist););

static __always_inline u32 log2_slot(u64 value)
{
	u32 slot = 0;

	for (u32 shift = 32; shift; shift >>= 1) {
		if (value >> shift) {
			value >>= shift;
			slot += shift;
		}
	}
	return slot < SYSCALL_SLOTS ? slot : SYSCALL_SLOTS - 1;
}

TRACEPOINT(sys_enter, on_sys_enter)
{
	struct follow *f = storage_of(CURRENT_TASK());

	if (f)
		f->enter_mono_ns = bpf_ktime_get_ns();
	return 0;
}

TRACEPOINT(sys_exit, on_sys_exit, struct pt_regs *regs, long ret)
{
	struct task_struct *task = CURRENT_TASK();
	struct follow *f = follow_of(task);
	EMPTY(struct syscall_hist, no_calls);
	struct syscall_record *record;
	struct syscall_hist *hist;
	struct syscall_key key;
	u64 enter, now, took;

	if (!f || !f->enter_mono_ns)
		return 0;
	now = bpf_ktime_get_ns();
	enter = f->enter_mono_ns;
	f->enter_mono_ns = 0;
	took = now - enter;
	key.tgid = READ(task, tgid);
	key.nr = SYSCALL_NR(regs);
	hist = bpf_map_lookup_elem(&syscall_hists, &key);
	if (!hist) {
		bpf_map_update_elem(&syscall_hists, &key, &no_calls, BPF_NOEXIST);
		hist = bpf_map_lookup_elem(&syscall_hists, &key);
	}
	if (hist) {
		hist->count++;
		hist->total_ns += took;
		hist->slots[log2_slot(took)]++;
	} else {
		count_loss(CLASS_SYSCALL); /* more (process, call) pairs than the map holds */
	}
	if (took < syscall_floor_ns)
		return 0;
	record = reserve(&syscall_rings, sizeof(*record), CLASS_SYSCALL);
	if (!record)
		return 0;
	record->enter_mono_ns = enter;
	record->exit_mono_ns = now;
	record->ret = ret;
	record->tid = READ(task, pid);
	record->tgid = key.tgid;
	record->nr = key.nr;
	record->pad = 0;
	submit(&syscall_rings, record, sizeof(*record));
	return 0;
}
