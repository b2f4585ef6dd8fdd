/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Where the kernel does not clone a listener's storage to what it accepts: the listener is found by what it listens on.
 * Of several that share a port (SO_REUSEPORT) it is the last one, which tells the process until somebody receives.
 */
struct listener {
	u64 net;
	char address[ADDRESS_LEN]; /* :: or 0.0.0.0 for any */
	u16 port;
	u16 pad[3];
};

static __always_inline void read_listener(struct listener *l, struct sock *sk)
{
	char remote[ADDRESS_LEN];

	__builtin_memset(l, 0, sizeof(*l));
	l->net = (u64)READ(sk, __sk_common.skc_net.net);
	l->port = READ(sk, __sk_common.skc_num);
	read_addresses(sk, l->address, remote);
}

static __always_inline void NOTE_LISTENER(struct sock *sk, struct conn *c)
{
	u64 listening = (u64)sk;
	struct listener l;

	read_listener(&l, sk);
	c->local_port = l.port; /* kept: the socket has given it back when it is closed */
	if (bpf_map_update_elem(&listeners, &l, &listening, BPF_ANY))
		count_loss(CLASS_SOCKET);
}

static __always_inline struct conn *cloned_storage(struct sock *sk)
{
	struct conn *c, *of_listener;
	struct listener l;
	u64 *listening;

	read_listener(&l, sk);
	listening = bpf_map_lookup_elem(&listeners, &l);
	if (!listening) { /* any address: of IPv4, then of both */
		__builtin_memset(l.address + 12, 0, 4);
		listening = bpf_map_lookup_elem(&listeners, &l);
	}
	if (!listening) {
		__builtin_memset(l.address, 0, ADDRESS_LEN);
		listening = bpf_map_lookup_elem(&listeners, &l);
	}
	of_listener = listening ? SOCKET_STORAGE(&conns, *listening) : 0;
	if (!of_listener)
		return SOCKET_STORAGE(&conns, sk); /* it connected, and so did its peer */
	c = NEW_SOCKET_STORAGE(&conns, sk, struct conn);
	if (c)
		*c = *of_listener;
	else
		count_loss(CLASS_SOCKET);
	return c;
}

#define SOCKET_STORAGE_AFTER(map, sk, old) ((old) == TCP_SYN_RECV ? cloned_storage(sk) : SOCKET_STORAGE(map, sk))

/* The last that is heard of a socket. */
TRACEPOINT(tcp_destroy_sock, on_tcp_destroy, struct sock *sk)
{
	struct conn *c = SOCKET_STORAGE(&conns, sk);
	struct listener l;
	u64 *listening;

	if (!c)
		return 0;
	read_listener(&l, sk);
	l.port = c->local_port;
	listening = bpf_map_lookup_elem(&listeners, &l);
	if (listening && *listening == (u64)sk)
		bpf_map_delete_elem(&listeners, &l);
	NOT_STORED(&conns, sk);
	return 0;
}
