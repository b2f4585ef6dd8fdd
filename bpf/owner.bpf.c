// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * Which process holds the other end of a connection on this host. A unix socket says who connected; a TCP socket
 * does not, and /proc shows the files of other users' processes to nobody without CAP_SYS_PTRACE. Nothing runs until
 * one of the iterators is read.
 */
#include "maps.bpf.h"
#include "thread.bpf.h"
#include <bpf/bpf_endian.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32); /* the port that the sockets of interest are connected to */
} owners_of SEC(".maps");

static __always_inline void read_process(struct socket_owner *o, struct task_struct *task)
{
	o->started_mono_ns = task->group_leader->start_time;
	o->tgid = task->tgid;
	o->ns_tgid = namespace_id(task->group_leader);
	o->uid = task->cred->euid.val;
}

/* One record for each process and socket: a socket that was inherited has several owners. */
SEC("iter/task_file")
int iter_owners(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	char remote[ADDRESS_LEN];
	struct socket_owner o;
	struct socket *socket;
	struct sock *sk;
	u32 zero = 0;
	u32 *port;

	port = bpf_map_lookup_elem(&owners_of, &zero);
	if (!task || !file || !port)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || !is_tcp(sk) || bpf_ntohs(sk->__sk_common.skc_dport) != *port)
		return 0;
	__builtin_memset(&o, 0, sizeof(o));
	read_process(&o, task);
	o.own_net = sk->__sk_common.skc_net.net == bpf_get_current_task_btf()->nsproxy->net_ns;
	read_addresses(sk, o.address, remote);
	o.port = sk->__sk_common.skc_num;
	bpf_seq_write(ctx->meta->seq, &o, sizeof(o));
	return 0;
}

/* Every process that there is. */
SEC("iter/task")
int iter_processes(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct socket_owner o;

	if (!task || task->pid != task->tgid || task->flags & PF_KTHREAD)
		return 0;
	__builtin_memset(&o, 0, sizeof(o));
	read_process(&o, task);
	bpf_seq_write(ctx->meta->seq, &o, sizeof(o));
	return 0;
}
