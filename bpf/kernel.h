/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Every kernel type, field and constant we depend on, by hand: CO-RE relocates the offsets at load, so only names
 * and types must be right. A generated vmlinux.h would hide which of its 130,000 lines matter.
 */
#ifndef TAILSPAN_KERNEL_H
#define TAILSPAN_KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed short __s16;
typedef signed int __s32;
typedef signed long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
enum { false = 0, true = 1 };

/* include/uapi/linux/bpf.h */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};
enum { BPF_ANY = 0, BPF_NOEXIST = 1 };
enum { BPF_F_NO_PREALLOC = 1 };
enum { BPF_LOCAL_STORAGE_GET_F_CREATE = 1 };
enum { BPF_RB_NO_WAKEUP = 1 };

#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */
#define TASK_DEAD 0x80	      /* include/linux/sched.h; since 2.6, never moved */

#define __access __attribute__((preserve_access_index))

/* Parts of the kernel's structs: their offsets are relocated, their padding means nothing. */
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wpadded"

struct kernfs_node {
	u64 id;
} __access;

struct cgroup {
	struct kernfs_node *kn;
} __access;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
} __access;

enum cgroup_subsys_id {
	cpu_cgrp_id = 1, /* bpf_core_enum_value() only: it depends on the configuration */
};

struct css_set {
	struct cgroup_subsys_state *subsys[1]; /* by cgroup_subsys_id */
	struct cgroup *dfl_cgrp;	       /* cgroup v2 */
} __access;

struct cfs_rq {
	int throttle_count; /* > 0: this or an ancestor group is out of quota */
} __access;

struct sched_entity {
	struct cfs_rq *cfs_rq;
} __access;

struct pid_namespace;

struct upid {
	int nr;
	struct pid_namespace *ns;
} __access;

struct pid {
	unsigned int level;
	struct upid numbers[1]; /* level + 1 of them */
} __access;

struct thread_info {
	u32 cpu;
} __access;

struct task_struct {
	struct thread_info thread_info; /* CONFIG_THREAD_INFO_IN_TASK: x86, arm64 */
	unsigned int __state;
	unsigned int flags;
	int on_cpu;
	struct sched_entity se;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct css_set *cgroups;
	struct pid *thread_pid;
	int pid;
	int tgid;
	unsigned in_iowait : 1; /* BPF_CORE_READ_BITFIELD only: a plain read takes the bit of this struct */
	char comm[16];
} __access;

/* since 6.18, commit "sched/fair: Switch to task based throttle model": throttling is a state of the task */
struct task_struct___throttled {
	bool throttled;
} __access;

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long orig_ax;
} __access;
#define SYSCALL_NR(regs) ((s32)(regs)->orig_ax)
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	int syscallno;
} __access;
#define SYSCALL_NR(regs) ((regs)->syscallno)
#else
#error "say where this architecture keeps the number of the system call"
#endif

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} __access;

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} __access;

#pragma clang diagnostic pop

#endif
