// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/* What a thread that leaves the CPU is going to sleep on. */
#ifndef TAILSPAN_SLEEP_H
#define TAILSPAN_SLEEP_H

#include "maps.bpf.h"

/* What a system call's arguments say about what it may sleep on; by number, filled in by the loader, which knows
 * the numbers of this architecture. */
enum call_shape {
	SHAPE_NONE = 0,
	SHAPE_FUTEX = 1, /* the first argument is the futex word */
	SHAPE_FD = 2,	 /* the first argument is a descriptor */
	SHAPE_POLL = 3,	 /* the first argument is an array of struct pollfd, the second its length */
	/* Of several descriptors the first counts only where it is a character device: a driver's library polls its own. */
};

#define MAX_SYSCALLS 512
KNOB_BYTES(call_shapes, MAX_SYSCALLS);

static __always_inline u32 socket_kind(struct file *file)
{
	struct socket *socket = BPF_CORE_READ(file, private_data);
	struct sock *sk = BPF_CORE_READ(socket, sk);
	u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	if (family == AF_UNIX)
		return OBJECT_UNIX;
	if ((family == AF_INET || family == AF_INET6) && BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP)
		return OBJECT_TCP;
	return OBJECT_SOCKET;
}

static __always_inline void read_file(struct task_struct *task, struct follow *f, u32 fd)
{
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files, *file = 0;
	struct inode *inode;

	if (fd >= BPF_CORE_READ(table, max_fds))
		return;
	files = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof(file), files + fd);
	inode = BPF_CORE_READ(file, f_inode);
	if (!inode)
		return;
	f->object = BPF_CORE_READ(inode, i_ino);
	f->object_dev = BPF_CORE_READ(inode, i_sb, s_dev);
	switch (BPF_CORE_READ(inode, i_mode) & S_IFMT) {
	case S_IFSOCK:
		f->object_kind = socket_kind(file);
		break;
	case S_IFIFO:
		f->object_kind = OBJECT_PIPE;
		break;
	case S_IFREG:
		f->object_kind = OBJECT_FILE;
		break;
	case S_IFDIR:
		f->object_kind = OBJECT_DIRECTORY;
		break;
	case S_IFBLK:
		f->object_kind = OBJECT_BLOCK_DEVICE;
		f->object_dev = BPF_CORE_READ(inode, i_rdev);
		break;
	case S_IFCHR:
		f->object_kind = OBJECT_CHAR_DEVICE;
		f->object_dev = BPF_CORE_READ(inode, i_rdev);
		break;
	default:
		f->object_kind = OBJECT_OTHER;
	}
}

static __always_inline void read_object(struct task_struct *task, struct follow *f, struct pt_regs *regs)
{
	u32 nr = f->syscall_nr, fd;

	if (nr >= MAX_SYSCALLS)
		return;
	switch (BYTE_OF(call_shapes, nr)) {
	case SHAPE_FUTEX:
		f->object = SYSCALL_ARG0(regs);
		f->object_kind = OBJECT_FUTEX;
		break;
	case SHAPE_FD:
		read_file(task, f, SYSCALL_ARG0(regs));
		break;
	case SHAPE_POLL: /* the array is in the thread's own memory: only when it is the one that runs */
		if (!SYSCALL_ARG1(regs) || task != CURRENT_TASK() ||
		    bpf_probe_read_user(&fd, sizeof(fd), (void *)SYSCALL_ARG0(regs)))
			break;
		read_file(task, f, fd);
		if (SYSCALL_ARG1(regs) > 1 && f->object_kind != OBJECT_CHAR_DEVICE) {
			f->object = 0;
			f->object_kind = OBJECT_NONE;
			f->object_dev = 0;
		}
		break;
	}
}

/* f->state says how it sleeps; 0: it does not, it was preempted. */
static __always_inline void read_sleep(struct task_struct *task, struct follow *f)
{
	struct pt_regs *regs = USER_REGISTERS(task);

	f->object = 0;
	f->object_kind = OBJECT_NONE;
	f->object_dev = 0;
	f->flags = 0;
	f->syscall_nr = -1;
	if (READ(task, flags) & PF_KTHREAD)
		return;
	f->syscall_nr = SYSCALL_NR(regs);
	if (BPF_CORE_READ_BITFIELD(task, in_iowait))
		f->flags |= CYCLE_IOWAIT;
	if (!f->state)
		return;
	if (f->in_reclaim || READ_OPTIONAL_BITFIELD(task, in_memstall))
		f->flags |= CYCLE_MEMSTALL;
	if (f->in_kernel_lock)
		f->flags |= CYCLE_KERNEL_LOCK;
	read_object(task, f, regs);
}

static __always_inline void count_deep_sleep(struct follow *f, s64 by)
{
	u32 zero = 0;
	s64 *sleepers = bpf_map_lookup_elem(&deep_sleepers, &zero);

	if (sleepers)
		ADD_TO(sleepers, by);
	f->deep = by > 0;
}

#endif
