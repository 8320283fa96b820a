/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The paths between nodes: what may go into the tunnel or onto the underlay, and what came out of which. */
#ifndef CS_PATH_H
#define CS_PATH_H

#include "event.h"
#include "exempt.h"
#include "host.h"
#include "identity.h"
#include "origin.h"
#include "underlay.h"

/* A refusal outside of any endpoint. Verified once by itself. */
__noinline int path_refuse(struct __sk_buff *skb, struct cs_packet *p, __u32 direction, __u32 reason)
{
	const struct cs_config *cfg = config();
	struct cs_case c;

	if (!cfg || !p)
		return CS_SHOT;
	case_key(&c, p, skb->ifindex, direction & 1);
	case_open(&c, NULL, skb->mark);
	return refuse(skb, cfg, &c, reason) ? CS_PASS : CS_SHOT;
}

/* What the node chatters on its own devices (router solicitations, MLD) has no business in a tunnel between workloads:
 * it is no stamped packet, so it falls here too. */
static __always_inline int enter_tunnel(struct __sk_buff *skb)
{
	const struct cs_config *cfg = config();
	struct cs_packet p = {};
	struct cs_owner source;
	__u8 reason;

	if (!cfg)
		return CS_SHOT;
	reason = parse(skb, 0, &p);
	if (!reason) {
		owner_of(&p.src, &source);
		reason = stamp_refusal(skb->mark, &source);
	}
	return reason ? path_refuse(skb, &p, CS_EGRESS, reason) : CS_PASS;
}

/* Which node it came from is the tunnel's word: a peer's allowed addresses are exactly those its node vouches for. */
static __always_inline int leave_tunnel(struct __sk_buff *skb)
{
	const struct cs_config *cfg = config();
	struct cs_packet p = {};
	__u8 reason;

	mark_write(skb, CS_MARK_TUNNEL, 0);
	if (!cfg || !(cfg->flags & CS_CFG_HOST_ANY))
		return CS_PASS;
	reason = parse_addresses(skb, skb->protocol, 0, &p);
	if (reason)
		return path_refuse(skb, &p, CS_INGRESS, reason);
	return is_for_host(&p) ? host_verdict(skb, &p, CS_INGRESS) : CS_PASS;
}

/* Addresses of this node and its workloads do not come from outside, and others' workloads not in clear. Says by the mark where
 * the packet came from. */
static __always_inline __u8 arrival_refusal(struct __sk_buff *skb, const struct cs_config *cfg, const struct cs_packet *p)
{
	struct cs_owner source;

	owner_of(&p->src, &source);
	if (source.kind == CS_OWNER_LOCAL || owner_is_own_host(&source))
		return CS_DROP_NOT_STAMPED;
	if (!owner_is_workload(&source) && !source.encrypt)
		return 0;
	mark_write(skb, CS_MARK_UNDERLAY, 0);
	return owner_needs_tunnel(cfg, &source) ? CS_DROP_UNENCRYPTED : 0;
}

static __always_inline int leave_underlay(struct __sk_buff *skb)
{
	const struct cs_config *cfg = config();
	struct cs_packet p = {};
	__u8 reason;

	if (!cfg)
		return CS_SHOT;
	mark_write(skb, CS_MARK_NONE, 0);
	switch (parse_frame(skb, &p, &reason)) {
	case CS_FRAME_IP:
		reason = arrival_refusal(skb, cfg, &p);
		if (!reason)
			break;
		/* fallthrough */
	case CS_FRAME_BAD:
		return path_refuse(skb, &p, CS_INGRESS, reason);
	default:
		return CS_PASS;
	}
	if (cfg->flags & CS_CFG_HOST_ANY && is_for_host(&p))
		return host_verdict(skb, &p, CS_INGRESS);
	return CS_PASS;
}

/* IP inside of IP (RFC 2003, RFC 4213), GRE, MPLS and Ethernet in IP: another network's way between nodes, in clear. */
static __always_inline bool is_wrapped(struct __sk_buff *skb, const struct cs_packet *p)
{
	struct cs_chain chain = { .off = p->transport, .end = p->end, .proto = p->proto };

	if (is_extension(p->proto) && !addr_is_mapped(&p->src))
		extension_walk(skb, &chain); /* however far it comes */
	return chain.proto == IPPROTO_IPIP || chain.proto == IPPROTO_IPV6 || chain.proto == IPPROTO_GRE ||
	       chain.proto == IPPROTO_MPLS || chain.proto == IPPROTO_ETHERNET || chain.proto == 97 /* EtherIP, RFC 3378 */;
}

/* What an endpoint sent to its own link, as an exemption lets it: wherever it turns up here, it is not meant for others. */
static __always_inline bool is_for_own_link(const struct cs_packet *p)
{
	return addr_is_limited_broadcast(&p->dst) || addr_is_link_local_multicast(&p->dst) ||
	       addr_is_unspecified_ipv4(&p->src);
}

/* A workload's address goes out under its stamp, and nothing in clear that is not to. */
static __always_inline __u8 departure_refusal(struct __sk_buff *skb, const struct cs_config *cfg, const struct cs_packet *p)
{
	struct cs_owner owner;
	__u8 reason;

	owner_of(&p->src, &owner);
	if (owner_is_workload(&owner)) {
		reason = stamp_refusal(skb->mark, &owner);
		if (reason)
			return reason;
	}
	if (owner.encrypt)
		return CS_DROP_UNENCRYPTED;
	owner_of(&p->dst, &owner);
	if (owner_needs_tunnel(cfg, &owner))
		return CS_DROP_UNENCRYPTED;
	if (CS_MARK_KIND(skb->mark) != CS_MARK_STAMPED)
		return 0;
	return is_for_own_link(p) || (is_wrapped(skb, p) && !(cfg->flags & CS_CFG_ALLOW_UNBOUND)) ? CS_DROP_UNENCRYPTED : 0;
}

static __always_inline int enter_underlay(struct __sk_buff *skb)
{
	const struct cs_config *cfg = config();
	struct cs_packet p = {};
	__u8 reason;

	if (!cfg)
		return CS_SHOT;
	switch (parse_frame(skb, &p, &reason)) {
	case CS_FRAME_IP:
		reason = departure_refusal(skb, cfg, &p);
		if (!reason)
			break;
		/* fallthrough */
	case CS_FRAME_BAD:
		return path_refuse(skb, &p, CS_EGRESS, reason);
	default:
		return CS_PASS;
	}
	if (cfg->flags & CS_CFG_HOST_ANY && is_from_host(&p))
		return host_verdict(skb, &p, CS_EGRESS);
	return CS_PASS;
}

#endif
