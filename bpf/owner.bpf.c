// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * Which process holds the other end of a connection on this host. A unix socket says who connected; a TCP socket
 * does not, and /proc shows the files of other users' processes to nobody without CAP_SYS_PTRACE. Nothing runs until
 * one of the iterators is read.
 */
#include "maps.bpf.h"
#include "thread.bpf.h"

MAP(owners_of,
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32); /* the port that the sockets of interest are connected to */);

static __always_inline void read_process(struct socket_owner *o, struct task_struct *task)
{
	o->started_mono_ns = READ(READ(task, group_leader), start_time);
	o->tgid = READ(task, tgid);
	o->ns_tgid = namespace_id(READ(task, group_leader));
	o->uid = READ(READ(task, cred), euid.val);
}

static __always_inline void look_at_owner(struct task_struct *task, struct file *file, void *to)
{
	char remote[ADDRESS_LEN];
	struct socket_owner o;
	struct socket *socket;
	struct sock *sk;
	u32 zero = 0;
	u32 *port;

	port = bpf_map_lookup_elem(&owners_of, &zero);
	if (!port)
		return;
	socket = SOCKET_OF(file);
	if (!socket)
		return;
	sk = READ(socket, sk);
	if (!sk || !is_tcp(sk) || bpf_ntohs(READ(sk, __sk_common.skc_dport)) != *port)
		return;
	__builtin_memset(&o, 0, sizeof(o));
	read_process(&o, task);
	o.own_net = READ(sk, __sk_common.skc_net.net) == READ(READ(CURRENT_TASK(), nsproxy), net_ns);
	read_addresses(sk, o.address, remote);
	o.port = READ(sk, __sk_common.skc_num);
	ANSWER(to, o);
}

/* One record for each process and socket: a socket that was inherited has several owners. */
FILE_ITERATOR(iter_owners, look_at_owner)

static __always_inline void look_at_process(struct task_struct *task, void *to)
{
	struct socket_owner o;

	if (READ(task, pid) != READ(task, tgid) || READ(task, flags) & PF_KTHREAD)
		return;
	__builtin_memset(&o, 0, sizeof(o));
	read_process(&o, task);
	ANSWER(to, o);
}

/* Every process that there is. */
TASK_ITERATOR(iter_processes, look_at_process)
