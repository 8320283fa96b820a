/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The paths between nodes: what may go into the tunnel or onto the underlay, and what came out of which. */
#ifndef CS_PATH_H
#define CS_PATH_H

#include "event.h"
#include "exempt.h"
#include "identity.h"
#include "origin.h"
#include "underlay.h"

/* A refusal outside of any endpoint. */
static __always_inline int path_refuse(struct __sk_buff *skb, const struct cs_config *cfg, const struct cs_packet *p,
				       __u8 direction, __u8 reason)
{
	struct cs_case c;

	case_key(&c, p, skb->ifindex, direction);
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
	return reason ? path_refuse(skb, cfg, &p, CS_EGRESS, reason) : CS_PASS;
}

/* Which node it came from is the tunnel's word: a peer's allowed addresses are exactly those its node vouches for. */
static __always_inline int leave_tunnel(struct __sk_buff *skb)
{
	mark_write(skb, CS_MARK_TUNNEL, 0);
	return CS_PASS;
}

static __always_inline int leave_underlay(struct __sk_buff *skb)
{
	const struct cs_config *cfg = config();
	struct cs_packet p = {};
	struct cs_owner source;
	__u8 reason;

	if (!cfg)
		return CS_SHOT;
	mark_write(skb, CS_MARK_NONE, 0);
	switch (parse_frame(skb, &p, &reason)) {
	case CS_FRAME_IP:
		break;
	case CS_FRAME_BAD:
		return path_refuse(skb, cfg, &p, CS_INGRESS, reason);
	default:
		return CS_PASS;
	}
	owner_of(&p.src, &source);
	/* Addresses of this node and its workloads do not come from outside. */
	if (source.kind == CS_OWNER_LOCAL || owner_is_own_host(&source))
		return path_refuse(skb, cfg, &p, CS_INGRESS, CS_DROP_NOT_STAMPED);
	if (!owner_is_workload(&source) && !source.encrypt)
		return CS_PASS;
	mark_write(skb, CS_MARK_UNDERLAY, 0);
	return owner_needs_tunnel(cfg, &source) ? path_refuse(skb, cfg, &p, CS_INGRESS, CS_DROP_UNENCRYPTED) : CS_PASS;
}

/* IP inside of IP (RFC 2003, RFC 4213), GRE, MPLS and Ethernet in IP: another network's way between nodes, in clear. */
static __always_inline bool is_wrapped(struct __sk_buff *skb, struct cs_packet *p)
{
	struct cs_chain chain = { .off = p->transport, .end = p->end, .proto = p->proto };

	if (is_extension(p->proto) && !addr_is_mapped(&p->src)) {
		extension_walk(skb, &chain); /* however far it comes */
		p->proto = chain.proto;
	}
	return p->proto == IPPROTO_IPIP || p->proto == IPPROTO_IPV6 || p->proto == IPPROTO_GRE ||
	       p->proto == IPPROTO_MPLS || p->proto == IPPROTO_ETHERNET || p->proto == 97 /* EtherIP, RFC 3378 */;
}

/* What an endpoint sent to its own link, as an exemption lets it: wherever it turns up here, it is not meant for others. */
static __always_inline bool is_for_own_link(const struct cs_packet *p)
{
	return addr_is_limited_broadcast(&p->dst) || addr_is_link_local_multicast(&p->dst) ||
	       addr_is_unspecified_ipv4(&p->src);
}

static __always_inline int enter_underlay(struct __sk_buff *skb)
{
	const struct cs_config *cfg = config();
	struct cs_owner source, destination;
	struct cs_packet p = {};
	__u8 reason;

	if (!cfg)
		return CS_SHOT;
	switch (parse_frame(skb, &p, &reason)) {
	case CS_FRAME_IP:
		break;
	case CS_FRAME_BAD:
		return path_refuse(skb, cfg, &p, CS_EGRESS, reason);
	default:
		return CS_PASS;
	}
	owner_of(&p.src, &source);
	if (owner_is_workload(&source)) {
		reason = stamp_refusal(skb->mark, &source);
		if (reason)
			return path_refuse(skb, cfg, &p, CS_EGRESS, reason);
	}
	owner_of(&p.dst, &destination);
	if (source.encrypt || owner_needs_tunnel(cfg, &destination))
		return path_refuse(skb, cfg, &p, CS_EGRESS, CS_DROP_UNENCRYPTED);
	if (CS_MARK_KIND(skb->mark) == CS_MARK_STAMPED &&
	    (is_for_own_link(&p) || (is_wrapped(skb, &p) && !(cfg->flags & CS_CFG_ALLOW_UNBOUND))))
		return path_refuse(skb, cfg, &p, CS_EGRESS, CS_DROP_UNENCRYPTED);
	return CS_PASS;
}

#endif
