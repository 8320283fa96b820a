/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The short way of most packets: a whole TCP or UDP packet without IP options or extension headers, of an established flow
 * whose verdict holds and which it does not change. It reads nothing but that, in as little code and memory as it takes:
 * between two packets the rest of the kernel has had the CPU's caches. Whatever is otherwise, or looks wrong, goes the long
 * way (parse.h, flow.h), which comes to the same for packets that might have gone this one. */
#ifndef CS_ESTABLISHED_H
#define CS_ESTABLISHED_H

#include "flow.h"
#include "packet.h"
#include "tcp.h"

/* So that the compiler lays out the short way in one piece: cold, each line of code costs as much as one of data. */
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

/* The transport header is whole, and says no more than that the flow goes on. length: of what follows the IP header. */
static __always_inline bool segment_is_plain(const __u8 *l4, const void *end, __u8 proto, __u32 length)
{
	__u32 header;

	if (proto == IPPROTO_TCP) {
		if ((void *)(l4 + CS_TCP_HEADER) > end)
			return false;
		header = (l4[12] >> 4) * 4;
		return header >= CS_TCP_HEADER && header <= length &&
		       (l4[13] & (CS_TCP_FIN | CS_TCP_SYN | CS_TCP_RST | CS_TCP_ACK)) == CS_TCP_ACK;
	}
	if (proto != IPPROTO_UDP || (void *)(l4 + CS_UDP_HEADER) > end)
		return false;
	header = bpf_ntohs(*(__be16 *)(l4 + 4));
	return header >= CS_UDP_HEADER && header <= length;
}

static __always_inline void key_ports(struct cs_flow_key *key, const __u8 *l4, __u8 proto, __u32 ifindex, __u8 direction)
{
	key->lport = *(__be16 *)(direction == CS_EGRESS ? l4 : l4 + 2);
	key->rport = *(__be16 *)(direction == CS_EGRESS ? l4 + 2 : l4);
	key->ifindex = ifindex;
	*(__u32 *)&key->proto = proto; /* and the padding */
}

/* False: not a packet for the short way. */
static __always_inline bool plain_key(struct __sk_buff *skb, struct cs_flow_key *key, __u8 direction)
{
	struct cs_addr *src = direction == CS_EGRESS ? &key->local : &key->remote;
	struct cs_addr *dst = direction == CS_EGRESS ? &key->remote : &key->local;
	const void *data = packet_start(skb), *end = packet_end(skb);

	if (UNLIKELY(skb->vlan_present))
		return false;
	if (LIKELY(skb->protocol == bpf_htons(ETH_P_IP))) {
		const struct cs_ipv4 *ip = data + ETH_HLEN;
		__u32 total;

		if (UNLIKELY((void *)(ip + 1) > end || ip->version_ihl != 0x45 ||
			     ip->fragment & bpf_htons(CS_IPV4_MORE_FRAGMENTS | CS_IPV4_FRAGMENT_OFFSET)))
			return false;
		total = bpf_ntohs(ip->total_length);
		if (total < sizeof(*ip) || total > skb->len - ETH_HLEN ||
		    !segment_is_plain((void *)(ip + 1), end, ip->protocol, total - sizeof(*ip)))
			return false;
		addr_from_ipv4(src, ip->src);
		addr_from_ipv4(dst, ip->dst);
		key_ports(key, (void *)(ip + 1), ip->protocol, skb->ifindex, direction);
		return true;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		const struct cs_ipv6 *ip = data + ETH_HLEN;
		__u32 length;

		if ((void *)(ip + 1) > end || ip->version_class >> 4 != 6)
			return false;
		length = bpf_ntohs(ip->payload_length);
		if (length > skb->len - ETH_HLEN - sizeof(*ip) ||
		    !segment_is_plain((void *)(ip + 1), end, ip->next_header, length))
			return false;
		addr_copy(src, &ip->src);
		addr_copy(dst, &ip->dst);
		if (addr_is_mapped(src) || addr_is_mapped(dst))
			return false;
		key_ports(key, (void *)(ip + 1), ip->next_header, skb->ifindex, direction);
		return true;
	}
	return false;
}

/* The established flow whose verdict the packet may take over, unless it is due to be written (last_ns). As flow_of() and
 * flow_holds() have it. key: room for the flow's. */
static __always_inline const struct cs_flow *flow_established(struct __sk_buff *skb, const struct cs_config *cfg,
							      struct cs_flow_key *key, __u8 direction)
{
	const struct cs_flow *flow;
	__u64 tick;

	if (UNLIKELY(!plain_key(skb, key, direction)))
		return NULL;
	flow = bpf_map_lookup_elem(&cs_flows, key);
	if (UNLIKELY(!flow || flow->flags & CS_FLOW_OBSERVED || !flow_rests(flow->state, flow->direction == direction)))
		return NULL;
	if (UNLIKELY(direction == CS_INGRESS && flow->origin != skb->mark >> 16))
		return NULL;
	tick = clock_of_tick();
	if (UNLIKELY((__s64)(tick - flow->last_ns) > (__s64)CS_FLOW_TOUCH || !flow_is_valid(flow, cfg, tick)))
		return NULL;
	return flow;
}

#endif
