/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Iterators for kernels that have none of BPF's: user space writes which tasks it asks about and runs the program
 * (BPF_PROG_TEST_RUN), which is then in a read-side critical section of RCU: no task that it finds is freed meanwhile.
 */
#ifndef TAILSPAN_WALK_H
#define TAILSPAN_WALK_H

#define MAX_ASKED 4096
#define TASKS_AT_ONCE 8
#define MAX_TID (1 << 22) /* include/linux/threads.h, PID_MAX_LIMIT */
#define FILES_AT_ONCE 16

/* What the next runs are about: tids, or addresses of followed tasks. Each goes on where the one before has ended: at
 * an index into ids; for files, of the first task alone, at a descriptor. */
struct asked {
	u64 at;
	u64 count;
	u64 ids[MAX_ASKED];
};

/* As find_task_by_pid_ns(): the table of ids of the outermost pid namespace is an xarray. */
static __always_inline struct task_struct *task_of(u32 tid)
{
	struct pid *pid = READ(CURRENT_TASK(), thread_pid);
	struct task_struct *task = 0;
	struct pid_namespace *ns = 0;
	struct hlist_node *link;
	struct xa_node *node;
	void *entry;
	u32 slot;

	bpf_probe_read_kernel(&ns, sizeof(ns), (void *)pid + OFFSET(pid, numbers) + __builtin_offsetof(struct upid, ns));
	entry = READ(ns, idr.idr_rt.xa_head);
	for (int i = 0; i < 6 && ((u64)entry & 3) == 2; i++) { /* an inner node */
		node = entry - 2;
		slot = tid >> READ(node, shift) & (sizeof(node->slots) / sizeof(void *) - 1);
		entry = 0;
		bpf_probe_read_kernel(&entry, sizeof(entry), (void *)node + OFFSET(node, slots) + slot * sizeof(entry));
	}
	if (!entry || (u64)entry & 3)
		return 0;
	pid = entry;
	link = READ(pid, tasks[PIDTYPE_PID].first);
	if (!link)
		return 0;
	task = (void *)link - OFFSET(task, pid_links[PIDTYPE_PID]);
	return (u32)READ(task, pid) == tid ? task : 0;
}

#define TASK_OR_TID(task) ((u64)(task) < MAX_TID ? task_of((u64)(task)) : (task))

/* An address counts only while the task is followed: else it may be gone. A dead one waits for its parent only. */
static __always_inline struct task_struct *asked_task(u64 id)
{
	struct task_struct *task = id < MAX_TID ? task_of(id) : (struct task_struct *)id;

	if (!task || (id >= MAX_TID && !TASK_STORAGE(&follows, task)))
		return 0;
	return READ(task, __state) & TASK_DEAD ? 0 : task;
}

static __always_inline struct asked *what_is_asked(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&asked_for, &zero);
}

#define TASK_ITERATOR(name, look)                                                  \
	PROGRAM(name)(u64 * ctx)                                                   \
	{                                                                          \
		struct asked *a = what_is_asked();                                 \
		struct task_struct *task;                                          \
                                                                                   \
		for (u32 i = 0; a && i < TASKS_AT_ONCE && a->at < a->count; i++) { \
			task = asked_task(a->ids[a->at++ & (MAX_ASKED - 1)]);      \
			if (task)                                                  \
				look(task, 0);                                     \
		}                                                                  \
		return 0;                                                          \
	}
/* Returns whether there are more. */
#define FILE_ITERATOR(name, look)                                                                      \
	PROGRAM(name)(u64 * ctx)                                                                       \
	{                                                                                              \
		struct asked *a = what_is_asked();                                                     \
		struct task_struct *task = a ? asked_task(a->ids[0]) : 0;                              \
		struct file **files, *file;                                                            \
		struct fdtable *table;                                                                 \
		u32 first, count;                                                                      \
                                                                                                       \
		if (!task)                                                                             \
			return 0;                                                                      \
		table = BPF_CORE_READ(task, files, fdt);                                               \
		count = READ(table, max_fds);                                                          \
		files = READ(table, fd);                                                               \
		first = a->at;                                                                         \
		a->at += FILES_AT_ONCE;                                                                \
		for (u32 i = 0; i < FILES_AT_ONCE; i++) {                                              \
			if (first + i >= count)                                                        \
				return 0;                                                              \
			file = 0;                                                                      \
			bpf_probe_read_kernel(&file, sizeof(file), files + first + i);                 \
			if (file)                                                                      \
				look(task, file, 0);                                                   \
		}                                                                                      \
		return 1;                                                                              \
	}
#define ANSWER(to, record)                                                                             \
	({                                                                                             \
		if (bpf_ringbuf_output(&answers, &(record), sizeof(record), BPF_RB_NO_WAKEUP))         \
			count_loss(CLASS_THREAD);                                                      \
	})

/* As sock_from_file(): the file belongs to the socket that it leads to. */
static __always_inline struct socket *SOCKET_OF(struct file *file)
{
	struct socket *socket = READ(file, private_data);

	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK || READ(socket, file) != file)
		return 0;
	return socket;
}

/* The loader runs this in a system call of its own, whose number it knows, until it has the right offset. */
PROGRAM(find_registers)(u64 *ctx)
{
	struct pt_regs *regs = USER_REGISTERS(CURRENT_TASK());

	return SYSCALL_NR(regs);
}

#endif
