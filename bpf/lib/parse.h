/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is this packet? Addresses, transport, ports, and what it may do to a flow. Nothing is believed that the
 * length does not cover. */
#ifndef CS_PARSE_H
#define CS_PARSE_H

#include "base.h"

enum cs_packet_kind {
	CS_PKT_OPENS = 1 << 0,	   /* TCP SYN, ICMP echo request: begins a flow, is never a reply */
	CS_PKT_ANSWERS = 1 << 1,   /* ICMP echo reply: never begins a flow */
	CS_PKT_CLOSES = 1 << 2,	   /* TCP FIN or RST */
	CS_PKT_ERROR = 1 << 3,	   /* an ICMP error, which belongs to the flow it quotes */
	CS_PKT_NEIGHBOUR = 1 << 4, /* RFC 4861 */
};

struct cs_packet {
	struct cs_addr src;
	struct cs_addr dst;
	__be16 sport; /* ICMP echo: the identifier in both */
	__be16 dport;
	__u16 transport; /* offset of the transport header from skb->data */
	__u8 proto;
	__u8 kind;   /* enum cs_packet_kind, or-ed */
	__u8 reason; /* the addresses are good, the rest is not: why */
	__u8 hop_limit;
	__u8 icmp_type;
	__u8 pad;
} __attribute__((aligned(8)));

/* RFC 791, section 3.1 */
struct cs_ipv4 {
	__u8 version_ihl, tos;
	__be16 total_length, id, fragment;
	__u8 ttl, protocol;
	__sum16 checksum;
	__be32 src, dst;
};

/* RFC 8200, section 3 */
struct cs_ipv6 {
	__u8 version_class, class_flow;
	__be16 flow;
	__be16 payload_length;
	__u8 next_header, hop_limit;
	struct cs_addr src, dst;
};

#define CS_IPV4_FRAGMENT_MASK 0x3fff /* more fragments, or an offset */
#define CS_HEADERS_MAX 80	     /* an IPv4 header with all options, a TCP header without */

/* ICMP (RFC 792) and ICMPv6 (RFC 4443, RFC 4861) types */
#define CS_ICMP_ECHO_REPLY 0
#define CS_ICMP_UNREACHABLE 3
#define CS_ICMP_ECHO 8
#define CS_ICMP_TIME_EXCEEDED 11
#define CS_ICMP_PARAMETER_PROBLEM 12
#define CS_ICMPV6_ERROR_FIRST 1
#define CS_ICMPV6_ERROR_LAST 4
#define CS_ICMPV6_ECHO 128
#define CS_ICMPV6_ECHO_REPLY 129
#define CS_ND_ROUTER_SOLICITATION 133
#define CS_ND_ROUTER_ADVERTISEMENT 134
#define CS_ND_NEIGHBOUR_SOLICITATION 135
#define CS_ND_NEIGHBOUR_ADVERTISEMENT 136

static __always_inline void *packet_start(const struct __sk_buff *skb)
{
	return (void *)(long)skb->data;
}

static __always_inline void *packet_end(const struct __sk_buff *skb)
{
	return (void *)(long)skb->data_end;
}

/* Headers may lie in page fragments; direct access sees only the linear part. */
static __always_inline void parse_linearise(struct __sk_buff *skb, __u32 want)
{
	if (want > skb->len)
		want = skb->len;
	if (skb->data_end - skb->data < want)
		bpf_skb_pull_data(skb, want);
}

static __always_inline void parse_icmp(struct cs_packet *p, __u8 type, __be16 id, bool v6)
{
	__u8 request = v6 ? CS_ICMPV6_ECHO : CS_ICMP_ECHO;
	__u8 reply = v6 ? CS_ICMPV6_ECHO_REPLY : CS_ICMP_ECHO_REPLY;

	p->icmp_type = type;
	if (type == request || type == reply) {
		p->sport = id;
		p->dport = id;
		p->kind = type == request ? CS_PKT_OPENS : CS_PKT_ANSWERS;
	} else if (v6 ? type >= CS_ICMPV6_ERROR_FIRST && type <= CS_ICMPV6_ERROR_LAST
		      : type == CS_ICMP_UNREACHABLE || type == CS_ICMP_TIME_EXCEEDED ||
				  type == CS_ICMP_PARAMETER_PROBLEM) {
		p->kind = CS_PKT_ERROR;
	} else if (v6 && type >= CS_ND_ROUTER_SOLICITATION && type <= CS_ND_NEIGHBOUR_ADVERTISEMENT) {
		p->kind = CS_PKT_NEIGHBOUR;
	} else {
		p->reason = CS_DROP_ICMP_TYPE;
	}
}

/* length: of transport header and payload, as the IP header says */
static __always_inline void parse_transport(struct cs_packet *p, const __u8 *l4, const void *end, __u32 length, bool v6)
{
	__u8 header, flags;

	p->reason = CS_DROP_INVALID_PACKET;
	switch (p->proto) {
	case IPPROTO_TCP: /* RFC 9293, section 3.1 */
		if (length < 20 || (void *)(l4 + 20) > end)
			return;
		header = (l4[12] >> 4) * 4;
		if (header < 20 || header > length)
			return;
		flags = l4[13];
		if ((flags & 0x12) == 0x02) /* SYN without ACK */
			p->kind = CS_PKT_OPENS;
		if (flags & 0x05) /* FIN, RST */
			p->kind |= CS_PKT_CLOSES;
		break;
	case IPPROTO_UDP:
		if (length < 8 || (void *)(l4 + 8) > end)
			return;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (v6 != (p->proto == IPPROTO_ICMPV6)) {
			p->reason = CS_DROP_UNKNOWN_L4;
			return;
		}
		if (length < 8 || (void *)(l4 + 8) > end)
			return;
		p->reason = 0;
		parse_icmp(p, l4[0], *(__be16 *)(l4 + 4), v6);
		return;
	default:
		p->reason = CS_DROP_UNKNOWN_L4;
		return;
	}
	p->reason = 0;
	p->sport = *(__be16 *)l4;
	p->dport = *(__be16 *)(l4 + 2);
}

static __always_inline __u8 parse_ipv4(struct __sk_buff *skb, __u32 off, struct cs_packet *p)
{
	const struct cs_ipv4 *ip = packet_start(skb) + off;
	const void *end = packet_end(skb);
	__u32 header, total;

	if ((void *)(ip + 1) > end || ip->version_ihl >> 4 != 4)
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
	if (ip->fragment & bpf_htons(CS_IPV4_FRAGMENT_MASK))
		p->reason = CS_DROP_FRAGMENT;
	else
		parse_transport(p, (const __u8 *)ip + header, end, total - header, false);
	return 0;
}

static __always_inline __u8 parse_ipv6(struct __sk_buff *skb, __u32 off, struct cs_packet *p)
{
	const struct cs_ipv6 *ip = packet_start(skb) + off;
	const void *end = packet_end(skb);
	__u32 payload;

	if ((void *)(ip + 1) > end || ip->version_class >> 4 != 6)
		return CS_DROP_INVALID_PACKET;
	payload = bpf_ntohs(ip->payload_length);
	if (payload > skb->len - off - sizeof(*ip))
		return CS_DROP_INVALID_PACKET;
	addr_copy(&p->src, &ip->src);
	addr_copy(&p->dst, &ip->dst);
	/* On the wire a mapped address is nobody's (RFC 4291, section 2.5.5.2); here it would pass for an IPv4 address. */
	if (addr_is_mapped(&p->src) || addr_is_mapped(&p->dst))
		return CS_DROP_UNKNOWN_L3;
	p->proto = ip->next_header;
	p->hop_limit = ip->hop_limit;
	p->transport = off + sizeof(*ip);
	switch (p->proto) {
	case IPPROTO_FRAGMENT:
		p->reason = CS_DROP_FRAGMENT;
		break;
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_AH:
	case IPPROTO_DSTOPTS:
	case IPPROTO_MH:
	case 139: /* HIP, RFC 7401 */
	case 140: /* Shim6, RFC 5533 */
		p->reason = CS_DROP_IPV6_EXTENSION;
		break;
	default:
		parse_transport(p, (const __u8 *)(ip + 1), end, payload, true);
	}
	return 0;
}

/* off: where the IP header begins; the kernel's idea of the protocol counts, because the stack acts on that one.
 * Returns a drop reason if not even the addresses are known. *p is all zero before. */
static __always_inline __u8 parse(struct __sk_buff *skb, __u32 off, struct cs_packet *p)
{
	if (skb->vlan_present)
		return CS_DROP_UNKNOWN_L3;
	parse_linearise(skb, off + CS_HEADERS_MAX);
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return parse_ipv4(skb, off, p);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(skb, off, p);
	return CS_DROP_UNKNOWN_L3;
}

#endif
