/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is this packet? Addresses, transport, ports, and what it may do to a flow. Nothing is believed that the
 * length does not cover. */
#ifndef CS_PARSE_H
#define CS_PARSE_H

#include "extension.h"
#include "icmp.h"
#include "options.h"
#include "packet.h"
#include "sctp.h"
#include "tcp.h"

/* No transport header begins past this, behind eight extension headers of any length; the verifier wants a bound. */
#define CS_TRANSPORT_MAX 0x7fff

/* Header bytes without which no fragment is read as the first, and into which no later one may reach. */
static __always_inline __u32 transport_header(__u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return CS_TCP_HEADER;
	case IPPROTO_SCTP:
		return CS_SCTP_HEADER;
	default:
		return 8; /* UDP, ICMP */
	}
}

/* A fragment's place in its datagram. length: of its data; offset: where they belong. */
static __always_inline __u8 parse_fragment(struct cs_packet *p, __u32 id, __u32 offset, bool more, __u32 length)
{
	p->fragment_id = id;
	p->fragment_offset = offset;
	if ((more && length & 7) || !length || offset + length > 0xffff)
		return CS_DROP_INVALID_PACKET;
	if (!offset) {
		p->kind = CS_PKT_FIRST;
		return 0;
	}
	p->kind = more ? CS_PKT_LATER : CS_PKT_LATER | CS_PKT_LAST;
	return 0;
}

/* length: of what follows the IP header. Sets p->reason. */
static __always_inline void parse_transport(struct __sk_buff *skb, struct cs_packet *p, __u32 length, bool v6)
{
	const __u8 *l4 = packet_start(skb) + (p->transport & CS_TRANSPORT_MAX);
	const void *end = packet_end(skb);
	__u32 header;

	/* A whole packet is damaged if its header is not; a first fragment may hide what it is. */
	p->reason = p->kind & CS_PKT_FIRST ? CS_DROP_FRAGMENT : CS_DROP_INVALID_PACKET;
	switch (p->proto) {
	case IPPROTO_TCP:
		if (length < CS_TCP_HEADER || (void *)(l4 + CS_TCP_HEADER) > end)
			return;
		header = (l4[12] >> 4) * 4;
		if (header < CS_TCP_HEADER) {
			p->reason = CS_DROP_INVALID_PACKET;
			return;
		}
		if (header > length)
			return;
		p->fragment_head += header;
		p->reason = tcp_read(p, l4[13]);
		break;
	case IPPROTO_UDP: /* RFC 768 */
		if (length < CS_UDP_HEADER || (void *)(l4 + CS_UDP_HEADER) > end)
			return;
		header = bpf_ntohs(*(__be16 *)(l4 + 4));
		if (header < CS_UDP_HEADER || (header > length && !(p->kind & CS_PKT_FIRST))) {
			p->reason = CS_DROP_INVALID_PACKET;
			return;
		}
		p->fragment_head += CS_UDP_HEADER;
		p->reason = 0;
		p->step = CS_STEP_UDP;
		break;
	case IPPROTO_SCTP:
		if (length < CS_SCTP_HEADER || (void *)(l4 + CS_SCTP_HEADER) > end)
			return;
		p->fragment_head += CS_SCTP_HEADER;
		p->reason = sctp_read(p, l4, length);
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (v6 != (p->proto == IPPROTO_ICMPV6)) {
			p->reason = CS_DROP_UNKNOWN_L4;
			return;
		}
		if (length < CS_ICMP_HEADER || (void *)(l4 + CS_ICMP_HEADER) > end)
			return;
		p->fragment_head += CS_ICMP_HEADER;
		p->reason = icmp_read(p, l4, v6);
		return;
	case IPPROTO_IGMP:
		if (!v6) {
			p->kind |= CS_PKT_MEMBERSHIP;
			p->reason = CS_DROP_MEMBERSHIP;
			return;
		}
		/* fallthrough */
	default:
		p->reason = CS_DROP_UNKNOWN_L4;
		return;
	}
	p->sport = *(__be16 *)l4;
	p->dport = *(__be16 *)(l4 + 2);
}

/* off: where the IP header begins. *length: of what follows it. Returns a drop reason if not even the addresses are known. */
static __always_inline __u8 parse_ipv4(struct __sk_buff *skb, __u32 off, struct cs_packet *p, __u32 *length)
{
	const struct cs_ipv4 *ip = packet_start(skb) + off;
	__u32 header, total, fragment;

	if ((void *)(ip + 1) > packet_end(skb) || ip->version_ihl >> 4 != 4)
		return CS_DROP_INVALID_PACKET;
	header = (ip->version_ihl & 0xf) * 4;
	total = bpf_ntohs(ip->total_length);
	if (header < sizeof(*ip) || total < header || total > skb->len - off)
		return CS_DROP_INVALID_PACKET;
	addr_from_ipv4(&p->src, ip->src);
	addr_from_ipv4(&p->dst, ip->dst);
	p->proto = ip->protocol;
	p->hop_limit = ip->ttl;
	p->transport = off + header;
	p->end = off + total;
	*length = total - header;
	fragment = bpf_ntohs(ip->fragment);
	if (fragment & (CS_IPV4_MORE_FRAGMENTS | CS_IPV4_FRAGMENT_OFFSET)) {
		p->reason = parse_fragment(p, ip->id, (fragment & CS_IPV4_FRAGMENT_OFFSET) * 8,
					   fragment & CS_IPV4_MORE_FRAGMENTS, *length);
		if (p->kind & CS_PKT_LATER && p->fragment_offset < transport_header(p->proto) && !p->reason)
			p->reason = CS_DROP_FRAGMENT_OVERLAP;
	}
	if (header > sizeof(*ip) && !p->reason)
		p->reason = options_refusal(skb, off + sizeof(*ip), header - sizeof(*ip));
	return 0;
}

/* Behind extension headers. length: of them and what follows. Returns how much follows, if p->reason is 0. */
__noinline int parse_chain(struct __sk_buff *skb, struct cs_packet *p, __u32 length)
{
	struct cs_chain chain = {};

	if (!p)
		return 0;
	chain.off = p->transport;
	chain.end = p->transport + (length & 0xffff);
	chain.proto = p->proto;
	p->reason = extension_walk(skb, &chain);
	if (p->reason)
		return 0;
	if (chain.off > CS_TRANSPORT_MAX) {
		p->reason = CS_DROP_INVALID_PACKET;
		return 0;
	}
	p->proto = chain.proto;
	p->transport = chain.off;
	if (chain.fragment_start) {
		p->reason = parse_fragment(p, chain.fragment_id, chain.fragment_offset, chain.more,
					   chain.end - chain.fragment_start);
		/* Extension headers between the fragment header and the transport header are data of the first fragment. */
		p->fragment_head = chain.off - chain.fragment_start;
	}
	return chain.end - chain.off;
}

/* As parse_ipv4() */
static __always_inline __u8 parse_ipv6(struct __sk_buff *skb, __u32 off, struct cs_packet *p, __u32 *length)
{
	const struct cs_ipv6 *ip = packet_start(skb) + off;

	if ((void *)(ip + 1) > packet_end(skb) || ip->version_class >> 4 != 6)
		return CS_DROP_INVALID_PACKET;
	*length = bpf_ntohs(ip->payload_length);
	if (*length > skb->len - off - sizeof(*ip))
		return CS_DROP_INVALID_PACKET;
	addr_copy(&p->src, &ip->src);
	addr_copy(&p->dst, &ip->dst);
	/* On the wire a mapped address is nobody's (RFC 4291, section 2.5.5.2); here it would pass for an IPv4 address. */
	if (addr_is_mapped(&p->src) || addr_is_mapped(&p->dst))
		return CS_DROP_UNKNOWN_L3;
	p->proto = ip->next_header;
	p->hop_limit = ip->hop_limit;
	p->transport = off + sizeof(*ip);
	p->end = off + sizeof(*ip) + *length;
	return 0;
}

/* The kernel's idea of the protocol counts, because the stack acts on that one. off: where the IP header begins. Returns a
 * drop reason if not even the addresses are known. *p is all zero before. */
static __always_inline __u8 parse(struct __sk_buff *skb, __u32 off, struct cs_packet *p)
{
	__u32 length = 0;
	bool v6 = false;
	__u8 reason;

	if (skb->vlan_present)
		return CS_DROP_VLAN;
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		packet_linearise(skb, off + sizeof(struct cs_ipv4));
		reason = parse_ipv4(skb, off, p, &length);
		break;
	case bpf_htons(ETH_P_IPV6):
		v6 = true;
		packet_linearise(skb, off + sizeof(struct cs_ipv6));
		reason = parse_ipv6(skb, off, p, &length);
		if (!reason && is_extension(p->proto))
			length = parse_chain(skb, p, length);
		break;
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		return CS_DROP_VLAN;
	default:
		return CS_DROP_UNKNOWN_L3;
	}
	if (!reason && !p->reason && !(p->kind & CS_PKT_LATER)) {
		packet_linearise(skb, (p->transport & CS_TRANSPORT_MAX) + transport_header(p->proto));
		parse_transport(skb, p, length, v6);
	}
	return reason;
}

#endif
