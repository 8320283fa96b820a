/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The node's own traffic, while a policy selects the node: on the underlay, and what comes for it out of the tunnel. What passes
 * between it and its endpoints is judged where the endpoint is (verdict.h). Nothing of it is held. */
#ifndef CS_HOST_H
#define CS_HOST_H

#include "event.h"
#include "exempt.h"
#include "fragment.h"
#include "neighbour.h"
#include "parse.h"
#include "verdict.h"

/* What was left where only the addresses counted: the transport header, behind tags and extension headers. */
static __always_inline void parse_rest(struct __sk_buff *skb, struct cs_packet *p)
{
	bool v6 = !addr_is_mapped(&p->src);
	__u32 length = p->end - p->transport;

	if (v6 && is_extension(p->proto))
		length = parse_chain(skb, p, length);
	if (p->reason || p->kind & CS_PKT_LATER)
		return;
	packet_linearise(skb, (p->transport & CS_TRANSPORT_MAX) + transport_header(p->proto));
	parse_transport(skb, p, length, v6);
}

/* Neighbour discovery, and who listens to which group: without them the link itself falls silent. Neither is ever routed. */
__noinline int keeps_link(struct __sk_buff *skb, struct cs_packet *p)
{
	struct cs_nd nd = {};

	if (!p)
		return 0;
	if ((p->kind & (CS_PKT_MEMBERSHIP | CS_PKT_FRAGMENT)) == CS_PKT_MEMBERSHIP)
		return p->hop_limit == 1; /* RFC 3376, section 4; RFC 3810, section 5 */
	return !p->reason && p->kind & CS_PKT_NEIGHBOUR && nd_read(skb, p, &nd);
}

static __always_inline bool host_exempt_has(const struct cs_addr *addr, __u16 port, __u8 proto)
{
	struct cs_host_exempt_key key = { .port = port, .proto = proto };

	if (addr)
		addr_copy(&key.addr, addr);
	return bpf_map_lookup_elem(&cs_host_exempt, &key);
}

/* A flow begun that way is one that no policy may cut off. */
static __always_inline bool host_needs(const struct cs_config *cfg, const struct cs_case *c, __u32 begun)
{
	__u16 lport = bpf_ntohs(c->key.lport), port = begun == CS_EGRESS ? bpf_ntohs(c->key.rport) : lport;
	struct cs_owner remote;

	switch (c->key.proto) {
	case IPPROTO_TCP:
		if (host_exempt_has(begun == CS_EGRESS ? &c->key.remote : &c->key.local, port, IPPROTO_TCP))
			return true;
		if (port != cfg->peer_port || begun == CS_INGRESS)
			return port == cfg->peer_port;
		owner_of(&c->key.remote, &remote);
		return remote.kind == CS_OWNER_RESERVED && remote.identity == CS_ID_REMOTE_NODE;
	case IPPROTO_UDP:
		if (cfg->exempt & CS_EXEMPT_DHCP &&
		    ((c->key.lport == CS_DHCP_CLIENT && c->key.rport == CS_DHCP_SERVER) ||
		     (c->key.lport == CS_DHCPV6_CLIENT && c->key.rport == CS_DHCPV6_SERVER)))
			return true;
		return host_exempt_has(NULL, lport, IPPROTO_UDP);
	default:
		return false;
	}
}

/* The agents' channels, the tunnel, the identity server: a policy that forgot them would take away what enforces it. What is no
 * opening and has no flow yet may be the answer on a connection that is older than the policy. */
__noinline int host_exempt(struct cs_case *c, __u32 opens)
{
	const struct cs_config *cfg = config();

	if (!cfg || !c)
		return 0;
	if (host_needs(cfg, c, c->begun))
		return 1;
	if (opens || !host_needs(cfg, c, !c->begun))
		return 0;
	c->begun = !c->begun;
	return 1;
}

/* No policy is asked, but who it is with is known, and where the answers come from. */
__noinline int host_follow(struct cs_case *c)
{
	const struct cs_config *cfg = config();
	struct cs_owner remote;

	if (!cfg || !c)
		return 0;
	owner_of(&c->key.remote, &remote);
	/* Never nobody: that is how flows of others are told. */
	c->remote_identity = remote.identity ? remote.identity : CS_ID_WORLD;
	c->remote_node = remote.node;
	c->origin = c->direction == CS_INGRESS ? c->mark >> 16 : origin_expected(cfg, &remote);
	return 0;
}

/* own: the node's; else a workload's under the node's address (masquerade), which its own policy has judged: what answers it is
 * for the workload, and passes to be judged there. */
static __always_inline __u8 host_refusal(struct __sk_buff *skb, const struct cs_config *cfg, struct cs_packet *p,
					 struct cs_case *c, const struct cs_flow *flow, bool own)
{
	bool judged = own && cfg->flags & CS_CFG_HOST(c->direction);
	__u8 reason = 0;

	c->revision = flow_revision(cfg);
	if (p->reason || p->kind & CS_PKT_NEIGHBOUR)
		return judged ? p->reason ? p->reason : CS_DROP_ICMP_TYPE : 0;
	/* Going out, it is about what came in, and of the flow or of what this node routes. */
	if (p->kind & CS_PKT_ERROR)
		return judged && c->direction == CS_INGRESS ? related_refusal(skb, p, c) : 0;
	c->state = flow_state_after(flow, p, c->direction);
	if (c->state == CS_FLOW_NONE)
		return judged ? CS_DROP_STRAY : 0;
	if (flow)
		c->begun = flow->direction;
	if (own && !(cfg->flags & CS_CFG_HOST(c->begun)))
		host_follow(c);
	else if (own && !host_exempt(c, flow || p->kind & CS_PKT_OPENS))
		reason = remote_refusal(c);
	else if (own)
		host_follow(c);
	else
		c->origin = CS_MARK_NONE;
	if (reason) {
		if (!passes_anyway(cfg, reason))
			return reason;
		c->observed = 1;
		c->origin = 0;
	} else {
		if (c->observed_verdict)
			observe_policies(skb, c);
		sample_verdict(skb, cfg, c);
	}
	flow_store(c);
	return reason;
}

/* p: as far as parse_frame() reads. Verified once by itself. */
__noinline int host_verdict(struct __sk_buff *skb, struct cs_packet *p, __u32 direction)
{
	const struct cs_config *cfg = config();
	struct cs_flow *flow;
	struct cs_case c;
	__u64 tick;
	__u8 reason;
	bool own;

	if (!cfg || !p || direction > CS_INGRESS)
		return CS_SHOT;
	parse_rest(skb, p);
	if (p->kind & (CS_PKT_MEMBERSHIP | CS_PKT_NEIGHBOUR) && keeps_link(skb, p))
		return CS_PASS;
	case_key(&c, p, CS_HOST_IFINDEX, direction);
	if (p->kind & CS_PKT_FRAGMENT && !p->reason)
		fragment_resolve(p, &c.key, direction);
	tick = clock_of_tick();
	flow = flow_of(p, &c, tick);
	if (!flow || !flow_holds(flow, cfg, p, &c, tick, skb->mark)) {
		case_open(&c, NULL, skb->mark);
		c.local_identity = CS_ID_HOST;
		/* A flow with nobody is one that this node does not judge. */
		own = flow ? flow->remote_identity || flow->flags & CS_FLOW_OBSERVED
			   : direction == CS_INGRESS || CS_MARK_KIND(skb->mark) != CS_MARK_STAMPED;
		reason = host_refusal(skb, cfg, p, &c, flow, own);
		if (reason && !refuse(skb, cfg, &c, reason))
			return CS_SHOT;
	}
	if (p->kind & CS_PKT_FIRST)
		fragment_remember(p, CS_HOST_IFINDEX, direction);
	return CS_PASS;
}

/* What comes in and is for no workload is the node's: an address that it has and nobody told of, a group, the link's broadcast.
 * Fails closed: what this node routes for others is judged as its own. */
__noinline int is_for_host(struct cs_packet *p)
{
	struct cs_owner destination;

	if (!p)
		return 0;
	owner_of(&p->dst, &destination);
	return destination.kind != CS_OWNER_LOCAL && destination.kind != CS_OWNER_NODE;
}

/* Under no workload's address: the node's own, or what it masquerades. */
__noinline int is_from_host(struct cs_packet *p)
{
	struct cs_owner source;

	if (!p)
		return 0;
	owner_of(&p->src, &source);
	return !owner_is_workload(&source);
}

#endif
