// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//
// Tells the program of connections that open and close at the server's side of chosen TCP ports, and of clients that send.
//
// Built by scripts/build-bpf.sh; connections.bpf.o beside this file is the result. Read by src/connections/kernel.rs.
//
// Of the kernel's types only the fields in use are declared. Their places are those of the running kernel: the loader
// relocates each access by the kernel's own type information (CO-RE).

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define TCP_ESTABLISHED 1
// At most one record of clients' segments for a port in this time.
#define SENT_EVERY_NS 10000000ull

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};

struct inet_sock {
	__be16 inet_sport;
};

struct sk_buff {
	unsigned int len;
	unsigned char *data;
};

#pragma clang attribute pop

// What a record tells of.
enum { STATE_CHANGED = 0, CLIENT_SENT = 1 };

// 56 bytes; ports in host order, addresses as on the wire, IPv4 as ::ffff:a.b.c.d.
struct record {
	__u8 local[16];
	__u8 remote[16];
	__u16 local_port;
	__u16 remote_port;
	__u32 netns;
	__u8 old_state;
	__u8 new_state;
	__u8 kind;
	__u8 padding[5];
	// Of CLIENT_SENT alone: when, by CLOCK_MONOTONIC.
	__u64 sent_ns;
};

struct port {
	// Changes of state that found the ring full.
	__u64 lost;
	// When a record CLIENT_SENT was last made.
	__u64 sent_ns;
};

// By port number, in host order.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u16);
	__type(value, struct port);
} ports SEC(".maps");

// 20 bytes, as in a record.
struct client {
	__u8 remote[16];
	__u16 remote_port;
	__u16 local_port;
};

// Clients whose segments are not told of. Their changes of state are: the program has to know when they have gone.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct client);
	__type(value, __u8);
} ignored SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

static __always_inline void mapped(__u8 *to, __be32 address)
{
	__builtin_memset(to, 0, 10);
	to[10] = 0xff;
	to[11] = 0xff;
	__builtin_memcpy(to + 12, &address, 4);
}

static __always_inline void remote_of(const struct sock *sk, __u16 family, __u8 *to)
{
	if (family == AF_INET6)
		BPF_CORE_READ_INTO((__u8(*)[16])to, sk, __sk_common.skc_v6_daddr.in6_u.u6_addr8);
	else
		mapped(to, BPF_CORE_READ(sk, __sk_common.skc_daddr));
}

static __always_inline void fill(struct record *record, const struct sock *sk, __u16 family)
{
	__builtin_memset(record, 0, sizeof(*record));
	if (family == AF_INET6)
		BPF_CORE_READ_INTO(&record->local, sk, __sk_common.skc_v6_rcv_saddr.in6_u.u6_addr8);
	else
		mapped(record->local, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
	remote_of(sk, family, record->remote);
	record->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(inet_sock_set_state, const struct sock *sk, int old_state, int new_state)
{
	// Only what enters or leaves ESTABLISHED changes a count. (On entering SYN_RECV the addresses are not filled in.)
	if ((old_state == TCP_ESTABLISHED) == (new_state == TCP_ESTABLISHED))
		return 0;
	if (BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	// Not skc_num: the kernel zeroes it before it tells of the last change to CLOSE, which would then be missed.
	__u16 port = bpf_ntohs(BPF_CORE_READ((const struct inet_sock *)sk, inet_sport));
	struct port *watched = bpf_map_lookup_elem(&ports, &port);
	if (!watched)
		return 0;
	__u16 remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (!remote_port)
		return 0;
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6)
		return 0;

	struct record *record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record) {
		__sync_fetch_and_add(&watched->lost, 1);
		return 0;
	}
	fill(record, sk, family);
	record->local_port = port;
	record->remote_port = remote_port;
	record->kind = STATE_CHANGED;
	record->old_state = old_state;
	record->new_state = new_state;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

// Called for each segment that an established connection receives, on the whole machine: what is not of a watched port
// costs two loads and a look into a table.
SEC("tp_btf/tcp_probe")
int BPF_PROG(tcp_probe, struct sock *sk, struct sk_buff *skb)
{
	// The local port; here, in ESTABLISHED, it is set.
	__u16 port = sk->__sk_common.skc_num;
	struct port *watched = bpf_map_lookup_elem(&ports, &port);
	if (!watched)
		return 0;
	// The segment starts with its TCP header, whose length in words is in the upper half of byte 12.
	__u8 offset = 0;
	if (bpf_probe_read_kernel(&offset, sizeof(offset), skb->data + 12))
		return 0;
	if (skb->len <= (offset >> 4) * 4u)
		return 0;
	// Two CPUs may both come through here: the reader looks at the time too.
	__u64 now = bpf_ktime_get_ns();
	if (now - watched->sent_ns < SENT_EVERY_NS)
		return 0;
	__u16 family = sk->__sk_common.skc_family;
	if (family != AF_INET && family != AF_INET6)
		return 0;
	struct client client = {};
	remote_of(sk, family, client.remote);
	client.remote_port = bpf_ntohs(sk->__sk_common.skc_dport);
	client.local_port = port;
	if (bpf_map_lookup_elem(&ignored, &client))
		return 0;

	struct record *record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	// With a full ring the next segment tries again.
	if (!record)
		return 0;
	watched->sent_ns = now;
	fill(record, sk, family);
	record->local_port = port;
	record->remote_port = client.remote_port;
	record->kind = CLIENT_SENT;
	record->sent_ns = now;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

// The kernel wants a GPL-compatible licence of programs that read its memory.
char LICENSE[] SEC("license") = "Dual MIT/GPL";
