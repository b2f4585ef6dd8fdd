/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Numbers that are the same in every kernel, and where an architecture keeps the arguments of calls. Macros all: the
 * kernel's own headers, where they are used, may say the same.
 */
#ifndef TAILSPAN_ABI_H
#define TAILSPAN_ABI_H

#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */
/* include/linux/sched.h; since 2.6, never moved */
#define TASK_UNINTERRUPTIBLE 0x2
#define TASK_DEAD 0x80
#define TASK_FROZEN 0x8000 /* since 6.1 */
#define TASK_NOLOAD 0x400 /* with TASK_UNINTERRUPTIBLE: idle, waits for work */

/* include/uapi/asm-generic/signal.h */
#define SIGKILL 9
#define SIGTERM 15
#define SIGCONT 18
#define SIGTTOU 22

/* include/linux/interrupt.h; part of its tracepoints' ABI */
#define NET_TX_SOFTIRQ 2
#define NET_RX_SOFTIRQ 3

#define LCB_F_SPIN 1 /* include/trace/events/lock.h */
#define REQ_OP_MASK 0xff /* include/linux/blk_types.h */

/* include/uapi/linux/stat.h */
#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define S_IFREG 0100000
#define S_IFBLK 0060000
#define S_IFDIR 0040000
#define S_IFCHR 0020000
#define S_IFIFO 0010000

/* include/linux/socket.h, include/uapi/linux/in.h */
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define SOCK_STREAM 1
#define MSG_PEEK 2
#define MSG_ERRQUEUE 0x2000
#define EAGAIN 11
/* include/net/sock.h, enum sock_flags: the second since 2.6 */
#define SOCK_DONE 1
/* include/net/tcp_states.h */
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8
#define TCP_LISTEN 10

#if defined(__TARGET_ARCH_x86)
#define SYSCALL_CONNECT 42
#define SYSCALL_NR(regs) ((s32)READ(regs, orig_ax))
#define SYSCALL_ARG0(regs) READ(regs, di)
#define SYSCALL_ARG1(regs) READ(regs, si)
/* Of a function of a library: the System V ABI */
#define CALL_ARG1(regs) BPF_CORE_READ(regs, si)
#define CALL_ARG2(regs) BPF_CORE_READ(regs, dx)
#define CALL_RESULT(regs) ((s32)BPF_CORE_READ(regs, ax))
#define CALL_STACK(regs) BPF_CORE_READ(regs, sp)
#elif defined(__TARGET_ARCH_arm64)
#define SYSCALL_CONNECT 203
#define SYSCALL_NR(regs) READ(regs, syscallno)
#define SYSCALL_ARG0(regs) READ(regs, orig_x0)
#define SYSCALL_ARG1(regs) READ(regs, regs[1])
#define CALL_ARG1(regs) BPF_CORE_READ(regs, regs[1])
#define CALL_ARG2(regs) BPF_CORE_READ(regs, regs[2])
#define CALL_RESULT(regs) ((s32)BPF_CORE_READ(regs, regs[0]))
#define CALL_STACK(regs) BPF_CORE_READ(regs, sp)
#else
#error "say where this architecture keeps the number of the system call"
#endif

#endif
