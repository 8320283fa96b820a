/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ARP (RFC 826) and neighbour discovery (RFC 4861): a workload may find its gateway and be found, in its own name only. */
#ifndef CS_NEIGHBOUR_H
#define CS_NEIGHBOUR_H

#include "case.h"
#include "icmp.h"
#include "identity.h"

struct cs_arp {
	__be16 hardware, protocol;
	__u8 hardware_length, protocol_length;
	__be16 operation;
	__u8 sender_mac[6], sender_ip[4], target_mac[6], target_ip[4];
};

struct cs_nd {
	__u8 type, code;
	__sum16 checksum;
	__be32 flags;
	struct cs_addr target; /* not in router solicitations */
};

static __always_inline bool mac_equal(const __u8 *a, const __u8 *b)
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) | (a[5] ^ b[5]));
}

static __always_inline bool mac_is_unset(const __u8 *a)
{
	return !(a[0] | a[1] | a[2] | a[3] | a[4] | a[5]);
}

static __always_inline bool addr_is_own(const struct cs_addr *addr, const struct cs_case *c)
{
	struct cs_owner o;

	owner_of(addr, &o);
	return owner_is_endpoint(&o, c->endpoint);
}

/* The sender is the endpoint; 0.0.0.0 is a probe for an address that is not in use yet (RFC 5227, section 2.1.1). */
__noinline int arp_refusal(struct __sk_buff *skb, struct cs_case *c)
{
	const struct cs_endpoint *ep = endpoint_of_interface(skb->ifindex);
	struct cs_arp arp;
	__be32 ip;

	if (!ep || !c)
		return CS_DROP_NO_ENDPOINT;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
		return CS_DROP_INVALID_PACKET;
	if (arp.hardware != bpf_htons(1) || arp.protocol != bpf_htons(ETH_P_IP) || arp.hardware_length != 6 ||
	    arp.protocol_length != 4)
		return CS_DROP_UNKNOWN_L3;
	if (!mac_is_unset(ep->mac) && !mac_equal(arp.sender_mac, ep->mac))
		return CS_DROP_INVALID_SOURCE_MAC;
	__builtin_memcpy(&ip, arp.sender_ip, sizeof(ip));
	addr_from_ipv4(&c->key.local, ip);
	__builtin_memcpy(&ip, arp.target_ip, sizeof(ip));
	addr_from_ipv4(&c->key.remote, ip);
	switch (bpf_ntohs(arp.operation)) {
	case 1: /* request */
		__builtin_memcpy(&ip, arp.sender_ip, sizeof(ip));
		return !ip || addr_is_own(&c->key.local, c) ? 0 : CS_DROP_INVALID_SOURCE_IP;
	case 2: /* reply */
		return addr_is_own(&c->key.local, c) ? 0 : CS_DROP_INVALID_SOURCE_IP;
	default:
		return CS_DROP_UNKNOWN_L3;
	}
}

/* Section 4.1.1: never forwarded, code 0. The target where the message has one. */
static __always_inline bool nd_read(const struct __sk_buff *skb, const struct cs_packet *p, struct cs_nd *nd)
{
	__u32 off = p->transport;

	if (p->hop_limit != 255 || p->end - off < 8)
		return false;
	if (p->icmp_type == CS_ND_NEIGHBOUR_SOLICITATION || p->icmp_type == CS_ND_NEIGHBOUR_ADVERTISEMENT)
		return p->end - off >= sizeof(*nd) && !bpf_skb_load_bytes(skb, off, nd, sizeof(*nd)) && nd->code == 0;
	return !bpf_skb_load_bytes(skb, off, nd, 8) && nd->code == 0;
}

static __always_inline bool nd_reaches_host_only(const struct cs_addr *dst)
{
	struct cs_owner o;

	if (addr_is_link_local(dst) || addr_is_link_local_multicast(dst))
		return true;
	owner_of(dst, &o);
	return o.kind == CS_OWNER_RESERVED && o.identity == CS_ID_HOST;
}

__noinline int nd_egress_refusal(struct __sk_buff *skb, struct cs_packet *p, struct cs_case *c)
{
	struct cs_nd nd = {};
	bool advertises;

	if (!p || !c)
		return CS_DROP_NO_ENDPOINT;
	advertises = p->icmp_type == CS_ND_NEIGHBOUR_ADVERTISEMENT;
	if (!nd_read(skb, p, &nd) || p->icmp_type == CS_ND_ROUTER_ADVERTISEMENT || !nd_reaches_host_only(&p->dst))
		return CS_DROP_ICMP_TYPE;
	/* Duplicate address detection asks from the unspecified address (RFC 4862, section 5.4.2). */
	if (!(addr_is_unspecified(&p->src) && !advertises) && !addr_is_link_local(&p->src) && !addr_is_own(&p->src, c))
		return CS_DROP_INVALID_SOURCE_IP;
	if (advertises && !addr_is_link_local(&nd.target) && !addr_is_own(&nd.target, c))
		return CS_DROP_INVALID_SOURCE_IP;
	return 0;
}

/* Hop limit 255 proves that this host made it: a router would have lowered it (section 6.1.2). */
__noinline int nd_ingress_refusal(struct __sk_buff *skb, struct cs_packet *p)
{
	struct cs_nd nd = {};

	if (!p || CS_MARK_KIND(skb->mark) != CS_MARK_NONE)
		return CS_DROP_NOT_STAMPED;
	return nd_read(skb, p, &nd) && p->icmp_type != CS_ND_ROUTER_SOLICITATION ? 0 : CS_DROP_ICMP_TYPE;
}

#endif
