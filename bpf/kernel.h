/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Every kernel type and field we depend on, by hand: CO-RE relocates the offsets at load, so only names and types
 * must be right. A generated vmlinux.h would hide which of its 130,000 lines matter. bcc takes the kernel's own.
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
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
	BPF_MAP_TYPE_SK_STORAGE = 24,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};
enum { BPF_ANY = 0, BPF_NOEXIST = 1 };
enum { BPF_F_NO_PREALLOC = 1, BPF_F_CLONE = 512 };
enum { BPF_LOCAL_STORAGE_GET_F_CREATE = 1 };
enum { BPF_RB_NO_WAKEUP = 1, BPF_RB_FORCE_WAKEUP = 2 };
enum { BPF_RB_AVAIL_DATA = 0, BPF_RB_RING_SIZE = 1, BPF_RINGBUF_HDR_SZ = 8 };

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

struct rq {
	u64 clock; /* as of the last schedule(); steal and interrupts are in it */
} __access;

struct cfs_rq {
	struct rq *rq; /* CONFIG_FAIR_GROUP_SCHED */
	int throttle_count; /* > 0: this or an ancestor group is out of quota */
	u64 throttled_clock_self_time; /* since 6.6: how long it has been, on its CPU, in all; grows when it ends */
} __access;

struct sched_entity {
	struct cfs_rq *cfs_rq;
	u64 sum_exec_runtime;
	u64 prev_sum_exec_runtime; /* when it was last picked, be it again and again */
} __access;

struct sched_info {
	unsigned long long last_arrival; /* on its CPU, by rq.clock; CONFIG_SCHED_INFO */
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

struct super_block {
	u32 s_dev;
} __access;

struct inode {
	u16 i_mode;
	u32 i_rdev;
	struct super_block *i_sb;
	unsigned long i_ino;
} __access;

struct file {
	struct inode *f_inode;
	void *private_data;
} __access;

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} __access;

struct files_struct {
	struct fdtable *fdt;
} __access;

struct socket;

struct in6_addr {
	u8 bytes[16]; /* only its place is used */
};

struct net;

typedef struct {
	struct net *net; /* CONFIG_NET_NS */
} __access possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	u16 skc_num; /* local port, in host order */
	u16 skc_family;
	unsigned char skc_state;
	struct in6_addr skc_v6_daddr; /* CONFIG_IPV6; and the next */
	struct in6_addr skc_v6_rcv_saddr;
	unsigned long skc_flags;
	possible_net_t skc_net;
} __access;

struct sock {
	struct sock_common __sk_common;
	struct socket *sk_socket;
	int sk_wmem_queued;
	int sk_sndbuf;
	u32 sk_max_ack_backlog;
	u16 sk_protocol;
	u16 sk_type;
} __access;

struct inet_connection_sock {
	u32 icsk_rto; /* jiffies */
	struct {
		u16 rcv_mss;
	} __access icsk_ack;
} __access;

struct minmax_sample {
	u32 v;
} __access;

struct minmax {
	struct minmax_sample s[3];
} __access;

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	u32 snd_wnd;
	u32 mss_cache;
	u32 copied_seq;
	struct minmax rtt_min;
	u64 bytes_sent;
	u32 write_seq;
	u32 rcv_nxt;
	u32 snd_una;
	u32 srtt_us; /* times 8 */
	u64 bytes_received;
	u32 data_segs_in;
	u64 bytes_retrans;
	u32 total_retrans;
	u32 rcv_ooopack;
} __access;

struct sk_buff {
	unsigned int len;
	unsigned char *data;
} __access;

struct socket {
	struct sock *sk;
	struct file *file;
} __access;

struct gendisk {
	int major;
	int first_minor;
} __access;

struct request_queue {
	struct gendisk *disk;
} __access;

struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	unsigned int __data_len;
	u64 __sector;
	u64 start_time_ns;
} __access;

typedef struct {
	u32 val;
} __access kuid_t;

struct cred {
	kuid_t euid;
} __access;

struct nsproxy {
	struct net *net_ns;
} __access;

struct task_struct {
	struct thread_info thread_info; /* CONFIG_THREAD_INFO_IN_TASK: x86, arm64 */
	unsigned int __state;
	unsigned int flags;
	unsigned int on_cpu; /* an int; a u8 in 7.3: libbpf narrows a load only if both are unsigned */
	struct sched_entity se;
	struct sched_info sched_info;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct css_set *cgroups;
	struct pid *thread_pid;
	int pid;
	int tgid;
	int prio;
	unsigned long min_flt;
	unsigned long maj_flt;
	struct files_struct *files;
	struct nsproxy *nsproxy;
	const struct cred *cred;
	u64 start_time;
	unsigned in_memstall : 1; /* CONFIG_PSI */
	unsigned in_iowait : 1; /* BPF_CORE_READ_BITFIELD only: a plain read takes the bit of this struct */
	char comm[16];
} __access;

/* since 6.18, commit "sched/fair: Switch to task based throttle model": throttling is a state of the task */
struct task_struct___throttled {
	bool throttled;
} __access;

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long ax;
	unsigned long dx;
	unsigned long si;
	unsigned long di;
	unsigned long orig_ax;
	unsigned long sp;
} __access;
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	u64 regs[31];
	u64 sp;
	u64 orig_x0;
	int syscallno;
} __access;
#endif

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} __access;

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} __access;

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct file *file;
} __access;

#pragma clang diagnostic pop

#endif
