// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * What the TCP sockets of followed threads did, by tracepoints alone: waits between two operations, and
 * connections that are over. A socket that no followed thread uses costs a look-up per operation and segment.
 *
 * A socket's state is kept in storage of its own. It is made when a followed thread listens or connects, on the
 * first operation of a followed thread, and by iter_sockets for the sockets that are older than that. A listener's
 * storage is cloned to what it accepts, so that such a connection is known from its handshake on, when no followed
 * thread runs.
 *
 * Segments come in softirqs, operations return with the socket unlocked: the two may touch one struct conn at the
 * same time. A segment only sets times and marks that an operation clears, and counts nothing.
 *
 * Not seen: bytes that are spliced out of a socket (splice, not sendfile into one), and MPTCP.
 */
#include "maps.bpf.h"

/* A wait shorter than this is not written (a request's beginning always is). */
KNOB(u64, socket_floor_ns, 1000000);
/* Length of a timer tick: the kernel counts its retransmission timeout in those. 0: not known, rto_us is 0 too. */
KNOB(u64, jiffy_ns, 0);

enum phase { PHASE_LISTENING = 1, PHASE_OPEN = 2, PHASE_OVER = 3 };
enum last_op { LAST_NONE = 0, LAST_RECEIVE = 1, LAST_SEND = 2 };

struct conn {
	u64 opened_mono_ns;
	u64 established_mono_ns;
	u64 first_byte_mono_ns;
	u64 first_sent_mono_ns;
	u64 last_mono_ns;	/* the last operation returned; before the first one: established, or first seen */
	u64 acked_mono_ns;	/* fewer than two segments of ours were unacknowledged; 0: two or more still are */
	u64 retransmit_mono_ns; /* the last one since the last operation */
	u64 arrived_mono_ns;	/* the first byte that is not read yet; 0: all is read */
	u64 later_mono_ns;	/* the byte later_seq came in, behind the first one; 0: there is no such mark */
	u64 socket;
	u64 message_bytes; /* tcp_sock.bytes_received when this side had sent last; and data_segs_in */
	u32 message_segments;
	u32 later_seq;
	u32 retransmits; /* tcp_sock.total_retrans at the last operation; and rcv_ooopack */
	u32 out_of_order;
	u32 tid; /* of the last operation */
	u32 tgid;
	u32 flags; /* enum socket_flags: those that last */
	u32 messages;
	u32 zero_windows;
	u16 local_port; /* kept: the socket has given it back when it is closed */
	u8 phase;
	u8 last_op;
	u8 unaccepted;	/* arrived_mono_ns was before the connection was accepted */
	u8 full;	/* the last send left the send buffer full, or found it so */
	u8 zero_window; /* the peer closed its window since the last operation */
	u8 pad[5];
};

MAP(conns,
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct conn););

static __always_inline bool is_tcp(struct sock *sk)
{
	u16 family = READ(sk, __sk_common.skc_family);

	/* the type too: a raw socket can have this protocol */
	return READ(sk, sk_protocol) == IPPROTO_TCP && READ(sk, sk_type) == SOCK_STREAM &&
	       (family == AF_INET || family == AF_INET6);
}

static __always_inline bool before(u32 a, u32 b)
{
	return (s32)(a - b) < 0;
}

/* A segment can come on another CPU while a record is made. */
static __always_inline u64 earlier(u64 time, u64 now)
{
	return time < now ? time : now;
}

static __always_inline void read_addresses(struct sock *sk, char *local, char *remote)
{
	if (READ(sk, __sk_common.skc_family) == AF_INET6 && EXISTS(&sk->__sk_common, skc_v6_daddr)) {
		READ_INTO(local, ADDRESS_LEN, sk, __sk_common.skc_v6_rcv_saddr);
		READ_INTO(remote, ADDRESS_LEN, sk, __sk_common.skc_v6_daddr);
		return;
	}
	__builtin_memset(local, 0, ADDRESS_LEN);
	__builtin_memset(remote, 0, ADDRESS_LEN);
	local[10] = local[11] = remote[10] = remote[11] = (char)0xff;
	READ_INTO(local + 12, 4, sk, __sk_common.skc_rcv_saddr);
	READ_INTO(remote + 12, 4, sk, __sk_common.skc_daddr);
}

#ifdef TAILSPAN_BCC
#include "listener.bcc.h"
#endif

static __always_inline u64 inode_of(struct sock *sk)
{
	return BPF_CORE_READ(sk, sk_socket, file, f_inode, i_ino);
}

/* Sent at least once: what still waits in the send buffer is not in it. */
static __always_inline u64 sent_bytes(struct tcp_sock *tp)
{
	return READ(tp, bytes_sent) - READ(tp, bytes_retrans);
}

/* The kernel counts the peer's FIN as a byte. */
static __always_inline u64 received_bytes(struct sock *sk, struct tcp_sock *tp)
{
	return READ(tp, bytes_received) - (READ(sk, __sk_common.skc_flags) >> SOCK_DONE & 1);
}

static __always_inline u32 min_rtt_us(struct tcp_sock *tp)
{
	u32 rtt = READ(tp, rtt_min.s[0].v);

	return rtt == ~0U ? 0 : rtt; /* no sample yet */
}

/* Two segments or more of ours are. */
static __always_inline bool unacknowledged(struct tcp_sock *tp, u32 acknowledged)
{
	return READ(tp, write_seq) - acknowledged >= 2 * READ(tp, mss_cache);
}

/* What waits to be delivered does not go out for want of room at the peer's. Not exactly 0: it shrinks until no
 * segment fits. */
static __always_inline bool window_closed(struct tcp_sock *tp)
{
	u32 window = READ(tp, snd_wnd);

	return window < READ(tp, mss_cache) && window < READ(tp, write_seq) - READ(tp, snd_una);
}

/* What came of this message came in full segments: nothing held the peer back but the way. */
static __always_inline bool in_bulk(struct tcp_sock *tp, struct conn *c)
{
	u64 segments = READ(tp, data_segs_in) - c->message_segments, bytes = READ(tp, bytes_received) - c->message_bytes;

	return segments >= 3 && 10 * bytes >= 9 * segments * READ(tp, inet_conn.icsk_ack.rcv_mss);
}

/* From here on the counters of the connection are compared with what they are now. */
static __always_inline void mark(struct sock *sk, struct tcp_sock *tp, struct conn *c, u64 now)
{
	c->last_mono_ns = now;
	c->retransmits = READ(tp, total_retrans);
	c->out_of_order = READ(tp, rcv_ooopack);
	c->zero_window = 0;
	c->local_port = READ(sk, __sk_common.skc_num);
}

static __always_inline void mark_message(struct tcp_sock *tp, struct conn *c)
{
	c->message_bytes = READ(tp, bytes_received);
	c->message_segments = READ(tp, data_segs_in);
}

/* A socket whose beginning was not seen. */
static __always_inline struct conn *meet(struct sock *sk, struct task_struct *task, u64 now)
{
	u8 state = READ(sk, __sk_common.skc_state);
	struct tcp_sock *tp = TCP_SOCK(sk);
	struct conn *c;

	if (!tp || state == TCP_CLOSE)
		return 0;
	c = NEW_SOCKET_STORAGE(&conns, sk, struct conn);
	if (!c) {
		count_loss(CLASS_SOCKET);
		return 0;
	}
	c->tid = READ(task, pid);
	c->tgid = READ(task, tgid);
	if (state == TCP_LISTEN) {
		c->phase = PHASE_LISTENING;
		NOTE_LISTENER(sk, c);
		return c;
	}
	c->phase = PHASE_OPEN;
	if (state == TCP_SYN_SENT)
		c->opened_mono_ns = now;
	else if (READ(sk, sk_max_ack_backlog)) /* its listener's: one that connected has none, nor after listen(0) */
		c->flags = SOCKET_ACCEPTED;
	c->acked_mono_ns = now;
	mark(sk, tp, c, now);
	mark_message(tp, c);
	return c;
}

static __always_inline void write_wait(struct sock *sk, struct tcp_sock *tp, struct conn *c, u32 op, u32 flags,
				       u64 now)
{
	struct socket_wait *w = reserve(&socket_rings, sizeof(*w), CLASS_SOCKET);
	u64 from = c->last_mono_ns, acked = c->acked_mono_ns;

	if (!w)
		return;
	w->from_mono_ns = from;
	w->arrived_mono_ns = op == SOCKET_RECEIVE ? earlier(c->arrived_mono_ns, now) : 0;
	if (!acked) /* it never was: the peer answered all the same, or it is over */
		acked = w->arrived_mono_ns ? w->arrived_mono_ns : now;
	w->acked_mono_ns = acked > from ? earlier(acked, now) : from;
	w->retransmit_mono_ns = earlier(c->retransmit_mono_ns, now);
	w->to_mono_ns = now;
	w->established_mono_ns = c->established_mono_ns;
	w->socket = c->socket;
	w->sent_bytes = sent_bytes(tp);
	w->received_bytes = received_bytes(sk, tp);
	w->tid = c->tid;
	w->tgid = c->tgid;
	w->op = op;
	w->flags = c->flags | flags;
	w->retransmits = READ(tp, total_retrans) - c->retransmits;
	w->out_of_order = READ(tp, rcv_ooopack) - c->out_of_order;
	w->srtt_us = READ(tp, srtt_us) >> 3;
	w->min_rtt_us = min_rtt_us(tp);
	w->rto_us = READ(tp, inet_conn.icsk_rto) * jiffy_ns / 1000;
	w->messages = c->messages;
	w->local_port = c->local_port;
	w->remote_port = bpf_ntohs(READ(sk, __sk_common.skc_dport));
	w->pad = 0;
	read_addresses(sk, w->local, w->remote);
	submit(&socket_rings, w, sizeof(*w));
}

static __always_inline void write_connection(struct sock *sk, struct tcp_sock *tp, struct conn *c, u64 now)
{
	struct connection *r = reserve(&connection_rings, sizeof(*r), CLASS_CONNECTION);

	if (!r)
		return;
	r->opened_mono_ns = c->opened_mono_ns;
	r->established_mono_ns = c->established_mono_ns;
	r->closed_mono_ns = now;
	r->first_byte_mono_ns = c->first_byte_mono_ns;
	r->first_sent_mono_ns = c->first_sent_mono_ns;
	r->socket = c->socket;
	r->sent_bytes = sent_bytes(tp);
	r->received_bytes = received_bytes(sk, tp);
	r->tgid = c->tgid;
	r->flags = c->flags;
	r->messages = c->messages;
	r->retransmits = READ(tp, total_retrans);
	r->out_of_order = READ(tp, rcv_ooopack);
	r->zero_windows = c->zero_windows;
	r->srtt_us = READ(tp, srtt_us) >> 3;
	r->min_rtt_us = min_rtt_us(tp);
	r->local_port = c->local_port;
	r->remote_port = bpf_ntohs(READ(sk, __sk_common.skc_dport));
	r->pad = 0;
	read_addresses(sk, r->local, r->remote);
	submit(&connection_rings, r, sizeof(*r));
}

/* Its listener's storage was cloned to it before the handshake was over. */
static __always_inline void accept(struct sock *sk, struct tcp_sock *tp, struct conn *c, u64 now)
{
	u32 tid = c->tid, tgid = c->tgid;

	__builtin_memset(c, 0, sizeof(*c));
	c->tid = tid;
	c->tgid = tgid;
	c->phase = PHASE_OPEN;
	c->flags = SOCKET_ACCEPTED;
	c->opened_mono_ns = now;
	c->established_mono_ns = now;
	c->acked_mono_ns = now;
	mark(sk, tp, c, now);
	if (READ(tp, data_segs_in)) { /* came with the handshake's last segment, which tcp_probe is not shown */
		c->arrived_mono_ns = now;
		c->first_byte_mono_ns = now;
		c->unaccepted = 1;
	}
}

static __always_inline void end_connect(struct sock *sk, struct tcp_sock *tp, struct conn *c, u64 now)
{
	c->last_mono_ns = c->opened_mono_ns;
	c->acked_mono_ns = c->opened_mono_ns;
	if (now - c->opened_mono_ns >= socket_floor_ns)
		write_wait(sk, tp, c, SOCKET_CONNECT, 0, now);
	c->retransmit_mono_ns = 0;
}

TRACEPOINT(inet_sock_set_state, on_tcp_state, struct sock *sk, int old, int new)
{
	struct task_struct *task;
	struct tcp_sock *tp;
	struct conn *c;
	u64 now;

	if (new != TCP_LISTEN && new != TCP_SYN_SENT && new != TCP_ESTABLISHED && new != TCP_CLOSE)
		return 0;
	if (!is_tcp(sk))
		return 0;
	if (new == TCP_LISTEN || new == TCP_SYN_SENT) {
		task = CURRENT_TASK();
		if (!follow_of(task))
			return 0;
		c = NEW_SOCKET_STORAGE(&conns, sk, struct conn);
		if (!c) {
			count_loss(CLASS_SOCKET);
			return 0;
		}
		__builtin_memset(c, 0, sizeof(*c));
		c->tid = READ(task, pid);
		c->tgid = READ(task, tgid);
		c->phase = new == TCP_LISTEN ? PHASE_LISTENING : PHASE_OPEN;
		c->opened_mono_ns = new == TCP_LISTEN ? 0 : bpf_ktime_get_ns();
		c->socket = inode_of(sk);
		if (new == TCP_LISTEN)
			NOTE_LISTENER(sk, c);
		return 0;
	}
	c = SOCKET_STORAGE_AFTER(&conns, sk, old);
	if (!c)
		return 0;
	tp = TCP_SOCK(sk);
	if (!tp)
		return 0;
	now = bpf_ktime_get_ns();
	if (new == TCP_ESTABLISHED) {
		if (c->phase == PHASE_LISTENING) {
			accept(sk, tp, c, now);
		} else if (c->opened_mono_ns) {
			c->established_mono_ns = now;
			c->local_port = READ(sk, __sk_common.skc_num);
			end_connect(sk, tp, c, now);
			c->acked_mono_ns = now;
			mark(sk, tp, c, now);
		}
		return 0;
	}
	if (c->phase == PHASE_OPEN) {
		if (old == TCP_SYN_SENT)
			end_connect(sk, tp, c, now);
		/* Without a FIN of ours and without a reset of the peer's: this side gave up. Not tcp_send_reset: it fires
		 * after this. */
		if ((old == TCP_ESTABLISHED || old == TCP_CLOSE_WAIT) && !(c->flags & SOCKET_RESET))
			c->flags |= SOCKET_ABORTED;
		write_connection(sk, tp, c, now);
	}
	c->phase = PHASE_OVER;
	return 0;
}

/* The socket's storage, made if there is none; for an operation of a followed thread that is through. */
static __always_inline struct conn *conn_of(struct sock *sk, struct task_struct *task, u64 now)
{
	struct conn *c;

	if (!is_tcp(sk))
		return 0;
	c = SOCKET_STORAGE(&conns, sk);
	return c ? c : meet(sk, task, now);
}

static __always_inline u32 begin_operation(struct sock *sk, struct tcp_sock *tp, struct conn *c,
					   struct task_struct *task)
{
	c->tid = READ(task, pid);
	c->tgid = READ(task, tgid);
	if (!c->socket) /* it had none in the accept queue */
		c->socket = inode_of(sk);
	if (!c->zero_window && !window_closed(tp))
		return 0;
	c->zero_windows++;
	return SOCKET_ZERO_WINDOW;
}

static __always_inline void end_operation(struct sock *sk, struct tcp_sock *tp, struct conn *c, u8 op, u64 now)
{
	c->last_op = op;
	c->retransmit_mono_ns = 0;
	mark(sk, tp, c, now);
}

/* What is left is known to have come no earlier than the mark before it. */
static __always_inline void consume(struct tcp_sock *tp, struct conn *c)
{
	u32 copied = READ(tp, copied_seq);

	c->unaccepted = 0;
	if (c->later_mono_ns && copied == c->later_seq) { /* even if it is not in the queue yet: it is just coming in */
		c->arrived_mono_ns = c->later_mono_ns;
		c->later_mono_ns = 0;
	} else if (copied == READ(tp, rcv_nxt)) {
		c->arrived_mono_ns = 0;
		c->later_mono_ns = 0;
	} else if (c->later_mono_ns && before(c->later_seq, copied)) {
		c->arrived_mono_ns = c->later_mono_ns;
		c->later_mono_ns = 0;
	}
}

TRACEPOINT(sock_recv_length, on_tcp_receive, struct sock *sk, int ret, int flags)
{
	struct task_struct *task;
	struct tcp_sock *tp;
	bool message;
	struct conn *c;
	u32 found;
	u64 now;

	if (ret <= 0 || flags & (MSG_PEEK | MSG_ERRQUEUE))
		return 0;
	task = CURRENT_TASK();
	if (!follow_of(task))
		return 0;
	now = bpf_ktime_get_ns();
	c = conn_of(sk, task, now);
	if (!c)
		return 0;
	tp = TCP_SOCK(sk);
	if (!tp)
		return 0;
	found = begin_operation(sk, tp, c, task);
	message = c->last_op != LAST_RECEIVE;
	if (message) {
		if (c->established_mono_ns && !c->messages)
			found |= SOCKET_FIRST;
		found |= SOCKET_MESSAGE;
		c->messages++;
	}
	if (!c->first_byte_mono_ns)
		c->first_byte_mono_ns = c->arrived_mono_ns ? c->arrived_mono_ns : now;
	if (c->unaccepted)
		found |= SOCKET_UNACCEPTED;
	if ((message && c->flags & SOCKET_ACCEPTED) || now - c->last_mono_ns >= socket_floor_ns) {
		if (in_bulk(tp, c))
			found |= SOCKET_BULK;
		write_wait(sk, tp, c, SOCKET_RECEIVE, found, now);
	}
	consume(tp, c);
	end_operation(sk, tp, c, LAST_RECEIVE, now);
	return 0;
}

/* Since the operation before, the thread slept in a call on this very socket. It may wake from connect() after the
 * handshake: that is a wait of its own. */
static __always_inline bool slept_on(struct follow *f, struct conn *c)
{
	return f->object_kind == OBJECT_TCP && f->object == c->socket && f->run_mono_ns > c->last_mono_ns &&
	       f->syscall_nr != SYSCALL_CONNECT;
}

TRACEPOINT(sock_send_length, on_tcp_send, struct sock *sk, int ret, int flags)
{
	struct task_struct *task;
	struct tcp_sock *tp;
	struct follow *f;
	struct conn *c;
	u32 found;
	u64 now;

	if (ret <= 0 && ret != -EAGAIN)
		return 0;
	task = CURRENT_TASK();
	f = follow_of(task);
	if (!f)
		return 0;
	now = bpf_ktime_get_ns();
	c = conn_of(sk, task, now);
	if (!c)
		return 0;
	if (ret < 0) {
		c->full = 1;
		return 0;
	}
	tp = TCP_SOCK(sk);
	if (!tp)
		return 0;
	found = begin_operation(sk, tp, c, task);
	if (!c->first_sent_mono_ns)
		c->first_sent_mono_ns = now;
	/* The time between two sends is mostly the thread's own: only what found the buffer full has waited. */
	if (now - c->last_mono_ns >= socket_floor_ns && (c->full || slept_on(f, c)))
		write_wait(sk, tp, c, SOCKET_SEND, found, now);
	c->full = READ(sk, sk_wmem_queued) >= READ(sk, sk_sndbuf);
	c->acked_mono_ns = unacknowledged(tp, READ(tp, snd_una)) ? 0 : now;
	mark_message(tp, c);
	end_operation(sk, tp, c, LAST_SEND, now);
	return 0;
}

/* Of struct tcphdr, in network order. */
struct segment {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack_seq;
	u8 words; /* length of the header, in its upper half */
	u8 pad[3];
};

/* Every segment that an established connection receives, before the kernel looks at it. One that comes while a
 * thread holds the socket's lock is shown when that is released. */
TRACEPOINT(tcp_probe, on_tcp_segment, struct sock *sk, struct sk_buff *skb)
{
	struct conn *c = SOCKET_STORAGE(&conns, sk);
	u32 header, seq, next, end;
	struct segment segment;
	struct tcp_sock *tp;

	if (!c || c->phase != PHASE_OPEN)
		return 0;
	tp = TCP_SOCK(sk);
	if (!tp || bpf_probe_read_kernel(&segment, sizeof(segment), READ(skb, data)))
		return 0;
	if (window_closed(tp))
		c->zero_window = 1;
	if (!c->acked_mono_ns && !unacknowledged(tp, bpf_ntohl(segment.ack_seq)))
		c->acked_mono_ns = bpf_ktime_get_ns();
	header = segment.words >> 4 << 2;
	if (READ(skb, len) <= header || c->later_mono_ns)
		return 0;
	seq = bpf_ntohl(segment.seq);
	end = seq + READ(skb, len) - header;
	next = READ(tp, rcv_nxt);
	if (before(next, seq) || !before(next, end)) /* behind a hole, or nothing new */
		return 0;
	if (!c->arrived_mono_ns && READ(tp, copied_seq) == next) {
		c->arrived_mono_ns = bpf_ktime_get_ns();
		c->unaccepted = !READ(sk, sk_socket);
		if (!c->first_byte_mono_ns)
			c->first_byte_mono_ns = c->arrived_mono_ns;
	} else {
		c->later_seq = next;
		c->later_mono_ns = bpf_ktime_get_ns();
	}
	return 0;
}

TRACEPOINT(tcp_retransmit_skb, on_tcp_retransmit, struct sock *sk)
{
	struct conn *c = SOCKET_STORAGE(&conns, sk);

	if (c)
		c->retransmit_mono_ns = bpf_ktime_get_ns();
	return 0;
}

TRACEPOINT(tcp_receive_reset, on_tcp_reset_received, struct sock *sk)
{
	struct conn *c = SOCKET_STORAGE(&conns, sk);

	if (c)
		c->flags |= SOCKET_RESET;
	return 0;
}

static __always_inline void look_at_socket(struct task_struct *task, struct file *file, void *to)
{
	struct follow *f = storage_of(task);
	struct tuning *t = tuned();
	struct socket *socket;
	struct conn *c;
	struct sock *sk;

	if (!t || (!f && !t->forgets))
		return;
	socket = SOCKET_OF(file);
	if (!socket)
		return;
	sk = READ(socket, sk);
	if (!sk || !is_tcp(sk))
		return;
	c = SOCKET_STORAGE(&conns, sk);
	if (t->forgets) {
		if (c)
			DELETE_SOCKET_STORAGE(&conns, sk);
		return;
	}
	if (!f)
		return;
	if (!c && !f->leaving)
		meet(sk, task, bpf_ktime_get_ns());
	if (c && f->leaving && c->tgid == (u32)READ(task, tgid)) /* else another process has used it last */
		DELETE_SOCKET_STORAGE(&conns, sk);
}

/* Walks the open files of all tasks: makes storage for those TCP sockets of followed threads that are older than
 * that, and takes it from those of threads that leave, or from all where tuning.forgets. Read once after adoption and
 * parting; writes nothing. */
FILE_ITERATOR(iter_sockets, look_at_socket)
