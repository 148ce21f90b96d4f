// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//
// Tells the program of connections that open and close at the server's side of chosen TCP ports.
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

#pragma clang attribute pop

// 48 bytes; ports in host order, addresses as on the wire, IPv4 as ::ffff:a.b.c.d.
struct record {
	__u8 local[16];
	__u8 remote[16];
	__u16 local_port;
	__u16 remote_port;
	__u32 netns;
	__u8 old_state;
	__u8 new_state;
	__u8 padding[6];
};

// Port -> events of this port that found the ring full.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u16);
	__type(value, __u64);
} ports SEC(".maps");

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
	__u64 *lost = bpf_map_lookup_elem(&ports, &port);
	if (!lost)
		return 0;
	__u16 remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (!remote_port)
		return 0;
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6)
		return 0;

	struct record *record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record) {
		__sync_fetch_and_add(lost, 1);
		return 0;
	}
	__builtin_memset(record, 0, sizeof(*record));
	if (family == AF_INET6) {
		BPF_CORE_READ_INTO(&record->local, sk, __sk_common.skc_v6_rcv_saddr.in6_u.u6_addr8);
		BPF_CORE_READ_INTO(&record->remote, sk, __sk_common.skc_v6_daddr.in6_u.u6_addr8);
	} else {
		mapped(record->local, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		mapped(record->remote, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	}
	record->local_port = port;
	record->remote_port = remote_port;
	record->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	record->old_state = old_state;
	record->new_state = new_state;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

// The kernel wants a GPL-compatible licence of programs that read its memory.
char LICENSE[] SEC("license") = "Dual MIT/GPL";
