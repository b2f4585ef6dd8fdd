// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * Calls into the CUDA driver and its runtime, by uprobes that the loader puts into followed processes only. The cookie
 * of each probe (bpf_get_attach_cookie, since 5.15) says what its function does: enum gpu_call_kind in the lowest byte,
 * and in the next which argument is a number of bytes, from 1; 0: none.
 */
#include "maps.bpf.h"

/* Calls, exact: (process, kind) -> how many. The loader makes the keys when it attaches. */
MAP(gpu_call_counts,
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct gpu_call_key);
	__type(value, u64););

static __always_inline void count_gpu_call(struct task_struct *task, u32 kind)
{
	struct gpu_call_key key = {.tgid = READ(task, tgid), .kind = kind};
	u64 *count = bpf_map_lookup_elem(&gpu_call_counts, &key);

	if (count)
		(*count)++;
	else
		count_loss(CLASS_GPU_CALL);
}

static __always_inline u64 bytes_of(struct pt_regs *regs, u32 argument)
{
	switch (argument) {
	case 2:
		return CALL_ARG1(regs);
	case 3:
		return CALL_ARG2(regs);
	default:
		return 0;
	}
}

UPROBE(on_gpu_call)
{
	struct task_struct *task = CURRENT_TASK();
	u64 cookie = bpf_get_attach_cookie(regs), stack = CALL_STACK(regs);
	struct follow *f = follow_of(task);
	u32 kind = cookie & 0xff;

	if (!f)
		return 0;
	/* A call within a call is the outer one's affair. One that a longjmp has left is not around it any more. */
	if (f->gpu_enter_mono_ns && stack < f->gpu_stack)
		return 0;
	count_gpu_call(task, kind);
	f->gpu_enter_mono_ns = bpf_ktime_get_ns();
	f->gpu_stack = stack;
	f->gpu_kind = kind;
	f->gpu_bytes = bytes_of(regs, cookie >> 8 & 0xff);
	return 0;
}

UPROBE(on_gpu_return)
{
	struct task_struct *task = CURRENT_TASK();
	struct follow *f = storage_of(task);
	struct gpu_call *r;
	u64 entered;

	/* The return address is off the stack where calls push it. */
	if (!f || !f->gpu_enter_mono_ns || CALL_STACK(regs) - f->gpu_stack > sizeof(u64))
		return 0;
	entered = f->gpu_enter_mono_ns;
	f->gpu_enter_mono_ns = 0;
	if (f->leaving)
		return 0;
	r = reserve(&gpu_call_rings, sizeof(*r), CLASS_GPU_CALL);
	if (r) {
		r->enter_mono_ns = entered;
		r->exit_mono_ns = bpf_ktime_get_ns();
		r->launch_mono_ns = f->gpu_launch_mono_ns;
		r->bytes = f->gpu_bytes;
		r->launches = f->gpu_launches;
		r->tid = READ(task, pid);
		r->tgid = READ(task, tgid);
		r->kind = f->gpu_kind;
		r->result = CALL_RESULT(regs);
		r->pad = 0;
		submit(&gpu_call_rings, r, sizeof(*r));
	}
	f->gpu_launches = 0;
	f->gpu_launch_mono_ns = 0;
	return 0;
}

/* Launches come by the ten thousand: they are counted, and ride on the thread's next gpu_call. */
UPROBE(on_gpu_launch)
{
	struct task_struct *task = CURRENT_TASK();
	struct follow *f = follow_of(task);

	if (!f)
		return 0;
	count_gpu_call(task, GPU_CALL_LAUNCH);
	if (!f->gpu_launches++)
		f->gpu_launch_mono_ns = bpf_ktime_get_ns();
	return 0;
}
