/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * The names of core.h for the second loader: bcc compiles on the host, on the headers of its kernel or on a stub of
 * them that has every type (__VMLINUX_H__). No pointer is trusted, so every field is read by a helper; maps are numbers
 * until the loader makes them; what goes with a task or a socket lies in a hash table by its address.
 *
 * Included before the names of the maps are defined, and by nothing but what the loader hands to bcc: bcc rewrites what
 * it is handed, but not what that includes.
 */
#ifndef TAILSPAN_BCC_H
#define TAILSPAN_BCC_H

#ifndef __VMLINUX_H__
#include <linux/sched.h>
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/cgroup.h>
#include <linux/cred.h>
#include <linux/fdtable.h>
#include <linux/fs.h>
#include <linux/idr.h>
#include <linux/kernfs.h>
#include <linux/net.h>
#include <linux/nsproxy.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/ptrace.h>
#include <linux/tcp.h>
#include <linux/xarray.h>
#include <net/sock.h>
#endif

#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wmacro-redefined"
#include "abi.h"
#pragma clang diagnostic pop

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

/* bcc's own name for it does not take a map by number. */
#define bpf_map_lookup_elem ((void *(*)(void *map, const void *key))BPF_FUNC_map_lookup_elem)
#define bpf_map_update_elem \
	((long (*)(void *map, const void *key, const void *value, u64 flags))BPF_FUNC_map_update_elem)
#define bpf_map_delete_elem ((long (*)(void *map, const void *key))BPF_FUNC_map_delete_elem)
#define bpf_ntohs(x) __builtin_bswap16(x)
#define bpf_ntohl(x) __builtin_bswap32(x)
#define barrier_var(variable) asm volatile("" : "+r"(variable))

/* The loader says which map is which number, and puts the real ones into the programs. */
#define MAP_AT(number) (*(char *)bpf_pseudo_fd(1, number))
#define MAP(name, ...)
#define RINGS(name)
#define ANCHOR(kind, name)
#define KNOB(type, name, value)
/* The loader knows the value only when all is compiled: so that it is compiled once. */
#define KNOB_AT(number)                                                         \
	({                                                                      \
		u32 _knob = number;                                             \
		u64 *_set = bpf_map_lookup_elem(&knobs, &_knob);                \
		_set ? *_set : 0;                                               \
	})
#define KNOB_BYTES(name, count)
#define BYTE_OF(name, index)                                       \
	({                                                         \
		u32 _index = index;                                \
		u8 *_byte = bpf_map_lookup_elem(&name, &_index);    \
		_byte ? *_byte : 0;                                \
	})
#define EMPTY(type, name) const type name = {}

#define OFFSET(pointer, field) __builtin_offsetof(typeof(*(pointer)), field)
#define READ_INTO(to, size, pointer, field) \
	bpf_probe_read_kernel(to, size, (const char *)(pointer) + OFFSET(pointer, field))
#define READ(pointer, field)                                          \
	({                                                            \
		typeof(((typeof(pointer))0)->field) _value;           \
		READ_INTO(&_value, sizeof(_value), pointer, field);   \
		_value;                                               \
	})
#define READ_AT(type, pointer, offset)                                                \
	({                                                                            \
		type _value = 0;                                                      \
		bpf_probe_read_kernel(&_value, sizeof(_value), (void *)(pointer) + (offset)); \
		_value;                                                               \
	})
#define READ2(pointer, a, b) READ(READ(pointer, a), b)
#define READ3(pointer, a, b, c) READ(READ2(pointer, a, b), c)
#define READ4(pointer, a, b, c, d) READ(READ3(pointer, a, b, c), d)
#define FIFTH(_1, _2, _3, _4, found, ...) found
#define BPF_CORE_READ(pointer, fields...) FIFTH(fields, READ4, READ3, READ2, READ)(pointer, fields)

/* HAS_field is 0 or 1: the loader looks into the headers. */
#define JOINED(a, b) JOINED_(a, b)
#define JOINED_(a, b) a##b
#define EXISTS(pointer, field) HAS_##field
#define READ_OPTIONAL(pointer, field) JOINED(READ_IF_, HAS_##field)(pointer, field)
#define READ_IF_0(pointer, field) 0
#define READ_IF_1(pointer, field) READ(pointer, field)
#define READ_OPTIONAL_BITFIELD(pointer, field) JOINED(READ_BITFIELD_IF_, HAS_##field)(pointer, field)
#define READ_BITFIELD_IF_0(pointer, field) 0
#define READ_BITFIELD_IF_1(pointer, field) BPF_CORE_READ_BITFIELD(pointer, field)

/* A bit has no offset to be had: so the bytes before the first field behind the bits of struct task_struct are read,
 * and looked at as if the struct lay around them. */
#define BITS_LEN 64
#define BPF_CORE_READ_BITFIELD(task, field)                                                                    \
	({                                                                                                     \
		char _bits[BITS_LEN] __attribute__((aligned(8)));                                              \
		u64 _end = __builtin_offsetof(struct task_struct, atomic_flags);                               \
		bpf_probe_read_kernel(_bits, BITS_LEN, (const char *)(task) + _end - BITS_LEN);                \
		((struct task_struct *)((unsigned long)_bits + BITS_LEN - _end))->field;                       \
	})
#define bpf_core_field_offset(type, field) __builtin_offsetof(type, field)
#define bpf_core_enum_value(type, value) (value)
#define task_struct___throttled task_struct

#define PROGRAM(name) __attribute__((section(".bpf.fn." #name), used)) int name
#define ARGUMENTS0(ctx) ctx
#define ARGUMENTS1(ctx, a) ctx, (void *)(ctx)[0]
#define ARGUMENTS2(ctx, a, b) ctx, (void *)(ctx)[0], (void *)(ctx)[1]
#define ARGUMENTS3(ctx, a, b, c) ctx, (void *)(ctx)[0], (void *)(ctx)[1], (void *)(ctx)[2]
#define ARGUMENTS4(ctx, a, b, c, d) ctx, (void *)(ctx)[0], (void *)(ctx)[1], (void *)(ctx)[2], (void *)(ctx)[3]
#define SIXTH(_0, _1, _2, _3, _4, found, ...) found
#define ARGUMENTS(ctx, args...) \
	SIXTH(ctx, ##args, ARGUMENTS4, ARGUMENTS3, ARGUMENTS2, ARGUMENTS1, ARGUMENTS0)(ctx, ##args)
#define TRACEPOINT(event, name, args...)                                           \
	static __always_inline int look_##name(u64 *ctx, ##args);                  \
	PROGRAM(name)(u64 * ctx)                                                   \
	{                                                                          \
		_Pragma("clang diagnostic push")                                   \
		_Pragma("clang diagnostic ignored \"-Wint-conversion\"")           \
		return look_##name(ARGUMENTS(ctx, ##args));                        \
		_Pragma("clang diagnostic pop")                                    \
	}                                                                          \
	static __always_inline int look_##name(u64 *ctx, ##args)
#define UPROBE(name) PROGRAM(name)(struct pt_regs * regs)

/* No lock keeps a thread where it is, and the compiler has no atomic instruction that tells what was there before: an
 * adopted thread that is switched at that very moment may be counted wrong for that once. */
#define ADD_TO(pointer, value)                            \
	({                                                \
		typeof(*(pointer)) _was = *(pointer);     \
		__sync_fetch_and_add(pointer, value);     \
		_was;                                     \
	})
#define REPLACE(pointer, old, new)                        \
	({                                                \
		typeof(*(pointer)) _was = *(pointer);     \
		if (_was == (old))                        \
			*(pointer) = new;                 \
		_was;                                     \
	})

#define STORED(map, owner)                                \
	({                                                \
		u64 _owner = (u64)(owner);                \
		bpf_map_lookup_elem(map, &_owner);        \
	})
/* A value that is there already is emptied where it is: a program on another CPU may be using it. */
#define NEWLY_STORED(map, owner, type)                                                           \
	({                                                                                       \
		u64 _owner = (u64)(owner);                                                       \
		u32 _zero = 0;                                                                   \
		void *_nothing = bpf_map_lookup_elem(&nothing, &_zero);                          \
		type *_there = bpf_map_lookup_elem(map, &_owner);                                \
		if (_there)                                                                      \
			__builtin_memset(_there, 0, sizeof(*_there));                            \
		else if (_nothing)                                                               \
			bpf_map_update_elem(map, &_owner, _nothing, BPF_ANY);                    \
		_there ? _there : bpf_map_lookup_elem(map, &_owner);                             \
	})
#define NOT_STORED(map, owner)                            \
	({                                                \
		u64 _owner = (u64)(owner);                \
		bpf_map_delete_elem(map, &_owner);        \
	})
#define TASK_STORAGE(map, task) STORED(map, task)
#define NEW_TASK_STORAGE(map, task, type) NEWLY_STORED(map, task, type)
/* Only its own last switch deletes it: a program on another CPU may be using it, and an entry is used again at once. */
#define DELETE_TASK_STORAGE(map, task)
#define TASK_HAS_ENDED(map, task) NOT_STORED(map, task)
#define SOCKET_STORAGE(map, sk) STORED(map, sk)
#define NEW_SOCKET_STORAGE(map, sk, type) NEWLY_STORED(map, sk, type)
#define DELETE_SOCKET_STORAGE(map, sk) NOT_STORED(map, sk)

#define CURRENT_TASK() ((struct task_struct *)bpf_get_current_task())
#define TCP_SOCK(sk) ((struct tcp_sock *)(sk)) /* the caller has looked whether it is one */
/* Where on its kernel stack the registers of user space are: the loader tries. */
#define USER_REGISTERS(task)                                                             \
	({                                                                               \
		u32 _zero = 0;                                                           \
		u64 *_offset = bpf_map_lookup_elem(&registers_at, &_zero);               \
		(struct pt_regs *)((u64)READ(task, stack) + (_offset ? *_offset : 0));   \
	})

#endif
