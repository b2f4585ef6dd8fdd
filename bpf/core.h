/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * How our programs are written for the first loader: compiled with the agent, relocated by the kernel's BTF (CO-RE).
 * bcc.h has the same names for the second one, which compiles them on the host; nothing else differs between the two.
 */
#ifndef TAILSPAN_CORE_H
#define TAILSPAN_CORE_H

#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include "abi.h"

/* A field behind a pointer that the verifier trusts: the kernel's arguments, and what they lead to. */
#define READ(pointer, field) ((pointer)->field)
#define READ_AT(type, pointer, offset) (*(type *)((void *)(pointer) + (offset)))
/* Bytes behind any pointer of the kernel's. */
#define READ_INTO(to, size, pointer, field) bpf_probe_read_kernel(to, size, &(pointer)->field)
/* Of a field that not every kernel has: read only where it exists. */
#define EXISTS(pointer, field) bpf_core_field_exists((pointer)->field)
#define READ_OPTIONAL(pointer, field) READ(pointer, field)
#define READ_OPTIONAL_BITFIELD(pointer, field) (EXISTS(pointer, field) && BPF_CORE_READ_BITFIELD(pointer, field))

#define TRACEPOINT(event, name, args...) \
	SEC("tp_btf/" #event)            \
	int BPF_PROG(name, ##args)

#define UPROBE(name) \
	SEC("uprobe") \
	int name(struct pt_regs *regs)

/* A program that user space runs by reading it: look(task, to) for every task, look(task, file, to) for every open
 * file of every process. */
#define TASK_ITERATOR(name, look)                       \
	SEC("iter/task")                                \
	int name(struct bpf_iter__task *ctx)            \
	{                                               \
		struct task_struct *task = ctx->task;   \
                                                        \
		if (task)                               \
			look(task, ctx->meta->seq);     \
		return 0;                               \
	}
#define FILE_ITERATOR(name, look)                             \
	SEC("iter/task_file")                                 \
	int name(struct bpf_iter__task_file *ctx)             \
	{                                                     \
		struct task_struct *task = ctx->task;         \
		struct file *file = ctx->file;                \
                                                              \
		if (task && file)                             \
			look(task, file, ctx->meta->seq);     \
		return 0;                                     \
	}
#define ANSWER(to, record) bpf_seq_write(to, &(record), sizeof(record))

#define MAP(name, ...)      \
	struct {            \
		__VA_ARGS__ \
	} name SEC(".maps")
struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
};

struct ring_array {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1); /* one per CPU; sized and filled by the loader */
	__type(key, u32);
	__array(values, struct ring);
};

/* One ring per CPU, for records of one class. */
#define RINGS(name) struct ring_array name SEC(".maps")
/* For each struct and enum that leaves the kernel, or clang leaves it out of BTF when only local pointers use it. */
#define ANCHOR(kind, name) kind anchor_##name

/* Set by the loader before it loads. */
#define KNOB(type, name, value) const volatile type name = value
#define KNOB_BYTES(name, count) const volatile u8 name[count]
#define BYTE_OF(name, index) ((name)[index])
/* All zero, to make a map's value from; within a function. */
#define EMPTY(type, name) static const type name

#define TASK_STORAGE(map, task) bpf_task_storage_get(map, task, 0, 0)
#define NEW_TASK_STORAGE(map, task, type) bpf_task_storage_get(map, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE)
#define DELETE_TASK_STORAGE(map, task) bpf_task_storage_delete(map, task)
#define TASK_HAS_ENDED(map, task)
#define SOCKET_STORAGE(map, sk) bpf_sk_storage_get(map, sk, 0, 0)
#define NEW_SOCKET_STORAGE(map, sk, type) bpf_sk_storage_get(map, sk, 0, BPF_LOCAL_STORAGE_GET_F_CREATE)
#define DELETE_SOCKET_STORAGE(map, sk) bpf_sk_storage_delete(map, sk)
/* In a state that comes after old: the kernel has cloned a listener's to what it accepts. */
#define SOCKET_STORAGE_AFTER(map, sk, old) SOCKET_STORAGE(map, sk)
#define NOTE_LISTENER(sk, storage)

/* What a tracepoint gives that gave a tid before. */
#define TASK_OR_TID(task) (task)
#define CURRENT_TASK() bpf_get_current_task_btf()
#define USER_REGISTERS(task) ((struct pt_regs *)bpf_task_pt_regs(task))
#define TCP_SOCK(sk) bpf_skc_to_tcp_sock(sk)
#define SOCKET_OF(file) bpf_sock_from_file(file)

/* Each says what it was before. */
#define ADD_TO(pointer, value) __sync_fetch_and_add(pointer, value)
#define REPLACE(pointer, old, new) __sync_val_compare_and_swap(pointer, old, new)

#endif
