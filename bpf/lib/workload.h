/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The two sides of a workload's veth, and the way back from the hold queue. */
#ifndef CS_WORKLOAD_H
#define CS_WORKLOAD_H

#include "established.h"
#include "event.h"
#include "exempt.h"
#include "fragment.h"
#include "neighbour.h"
#include "parse.h"
#include "verdict.h"

/* Every way out of the workload ends here: judged, then stamped, held or dropped. */
static __always_inline int leave(struct __sk_buff *skb, const struct cs_config *cfg, struct cs_packet *p, struct cs_case *c,
				 const struct cs_flow *flow, bool may_hold)
{
	__u8 reason = judge(skb, cfg, p, c, flow);
	int verdict = CS_PASS;
	bool held;

	may_hold = may_hold && cfg->hold_ifindex;
	held = (c->behind || c->miss) && may_hold && !(cfg->flags & (CS_CFG_OBSERVE | CS_CFG_STOPPED));
	if (reason && !held && !refuse(skb, cfg, c, reason))
		return CS_SHOT;
	if (held)
		verdict = hold(skb, cfg, c);
	else
		mark_write(skb, CS_MARK_STAMPED, c->endpoint);
	/* Later fragments follow a first that goes on or waits, not one for which there was no room. */
	if (verdict != CS_SHOT && p->kind & CS_PKT_FIRST)
		fragment_remember(p, c->key.ifindex, CS_EGRESS);
	return verdict;
}

static __always_inline bool source_mac_ok(const struct __sk_buff *skb, const struct cs_endpoint *ep)
{
	const struct ethhdr *eth = packet_start(skb);

	if ((void *)(eth + 1) > packet_end(skb))
		return false;
	return mac_is_unset(ep->mac) || mac_equal(eth->h_source, ep->mac);
}

/* What the short way did not take. c: its key need not be set. */
static __always_inline int leave_at_length(struct __sk_buff *skb, const struct cs_config *cfg, struct cs_case *c)
{
	const struct cs_endpoint *ep;
	struct cs_packet p = {};
	struct cs_flow *flow = NULL;
	__u8 reason;
	__u64 tick;

	reason = parse(skb, ETH_HLEN, &p);
	case_key(c, &p, skb->ifindex, CS_EGRESS);
	if (p.kind & CS_PKT_FRAGMENT && !p.reason)
		fragment_resolve(&p, &c->key, CS_EGRESS);
	if (!reason) {
		tick = clock_of_tick();
		flow = flow_of(&p, c, tick);
		if (flow && flow_holds(flow, cfg, &p, c, tick, 0)) {
			mark_write(skb, CS_MARK_STAMPED, flow->endpoint);
			if (p.kind & CS_PKT_FIRST)
				fragment_remember(&p, c->key.ifindex, CS_EGRESS);
			return CS_PASS;
		}
	}
	/* What neighbour messages keep: nobody gets a mark of ours from outside. */
	mark_write(skb, CS_MARK_NONE, 0);
	ep = endpoint_of_interface(skb->ifindex);
	case_open(c, ep, 0);
	if (!ep)
		return shoot(skb, c, CS_DROP_NO_ENDPOINT);
	endpoint_remember(ep, skb->ifindex);
	if (!(ep->flags & CS_EP_OPEN))
		return shoot(skb, c, CS_DROP_FENCED);
	if (!source_mac_ok(skb, ep))
		return shoot(skb, c, CS_DROP_INVALID_SOURCE_MAC);
	if (skb->protocol == bpf_htons(ETH_P_ARP) && !skb->vlan_present) {
		reason = arp_refusal(skb, c);
		return reason ? shoot(skb, c, reason) : CS_PASS;
	}
	if (reason)
		return shoot(skb, c, reason);
	if (p.kind & CS_PKT_NEIGHBOUR) {
		reason = nd_egress_refusal(skb, &p, c);
		return reason ? shoot(skb, c, reason) : CS_PASS;
	}
	/* Every stack says what it listens to, from an address of the link: nobody here forwards multicast. */
	if (p.kind & CS_PKT_MEMBERSHIP)
		return shoot(skb, c, CS_DROP_MEMBERSHIP);
	if (dhcp_may_leave(cfg, &p, c)) {
		mark_write(skb, CS_MARK_STAMPED, c->endpoint);
		return CS_PASS;
	}
	return leave(skb, cfg, &p, c, flow, true);
}

static __always_inline int leave_workload(struct __sk_buff *skb)
{
	const struct cs_config *cfg = config();
	const struct cs_flow *flow;
	struct cs_case c;

	if (!cfg)
		return CS_SHOT;
	flow = flow_established(skb, cfg, &c.key, CS_EGRESS);
	if (UNLIKELY(!flow))
		return leave_at_length(skb, cfg, &c);
	mark_write(skb, CS_MARK_STAMPED, flow->endpoint);
	return CS_PASS;
}

/* A held packet comes back. It has waited: everything is judged again, by the state of now; and it never waits twice. */
static __always_inline int leave_hold(struct __sk_buff *skb)
{
	const struct cs_config *cfg = config();
	const struct cs_endpoint *ep = NULL;
	struct cs_packet p = {};
	struct cs_case c;
	struct cs_owner source;
	__u32 ifindex = 0;
	__u8 reason;

	if (!cfg)
		return CS_SHOT;
	reason = parse(skb, 0, &p);
	if (!reason) {
		owner_of(&p.src, &source);
		if (source.kind == CS_OWNER_LOCAL)
			ep = endpoint_by_id(source.endpoint, &ifindex);
	}
	case_key(&c, &p, ifindex, CS_EGRESS);
	if (p.kind & CS_PKT_FRAGMENT && !p.reason)
		fragment_resolve(&p, &c.key, CS_EGRESS);
	case_open(&c, ep, 0);
	if (reason)
		return shoot(skb, &c, reason);
	if (!ep)
		return shoot(skb, &c, CS_DROP_INVALID_SOURCE_IP);
	if (!(ep->flags & CS_EP_OPEN))
		return shoot(skb, &c, CS_DROP_FENCED);
	hold_dequeue(&c);
	return leave(skb, cfg, &p, &c, flow_of(&p, &c, c.now), false);
}

/* As leave_at_length() */
static __always_inline int enter_at_length(struct __sk_buff *skb, const struct cs_config *cfg, struct cs_case *c)
{
	const struct cs_endpoint *ep;
	struct cs_packet p = {};
	struct cs_flow *flow = NULL;
	__u8 reason;
	__u64 tick;

	reason = parse(skb, ETH_HLEN, &p);
	case_key(c, &p, skb->ifindex, CS_INGRESS);
	if (p.kind & CS_PKT_FRAGMENT && !p.reason)
		fragment_resolve(&p, &c->key, CS_INGRESS);
	if (!reason) {
		tick = clock_of_tick();
		flow = flow_of(&p, c, tick);
		if (flow && flow_holds(flow, cfg, &p, c, tick, skb->mark)) {
			if (p.kind & CS_PKT_FIRST)
				fragment_remember(&p, c->key.ifindex, CS_INGRESS);
			return CS_PASS;
		}
	}
	ep = endpoint_of_interface(skb->ifindex);
	case_open(c, ep, skb->mark);
	if (!ep)
		return shoot(skb, c, CS_DROP_NO_ENDPOINT);
	if (!(ep->flags & CS_EP_OPEN))
		return shoot(skb, c, CS_DROP_FENCED);
	/* Only this host's own stack sends ARP here: what is forwarded is IP. */
	if (skb->protocol == bpf_htons(ETH_P_ARP) && !skb->vlan_present)
		return CS_MARK_KIND(skb->mark) == CS_MARK_NONE ? CS_PASS : shoot(skb, c, CS_DROP_NOT_STAMPED);
	if (reason)
		return shoot(skb, c, reason);
	if (p.kind & CS_PKT_NEIGHBOUR) {
		reason = nd_ingress_refusal(skb, &p);
		return reason ? shoot(skb, c, reason) : CS_PASS;
	}
	if (p.kind & CS_PKT_MEMBERSHIP)
		return shoot(skb, c, CS_DROP_MEMBERSHIP);
	if (dhcp_may_enter(cfg, &p, c))
		return CS_PASS;
	reason = judge(skb, cfg, &p, c, flow);
	if (reason && !refuse(skb, cfg, c, reason))
		return CS_SHOT;
	if (p.kind & CS_PKT_FIRST)
		fragment_remember(&p, skb->ifindex, CS_INGRESS);
	return CS_PASS;
}

static __always_inline int enter_workload(struct __sk_buff *skb)
{
	const struct cs_config *cfg = config();
	const struct cs_flow *flow;
	struct cs_case c;

	if (!cfg)
		return CS_SHOT;
	flow = flow_established(skb, cfg, &c.key, CS_INGRESS);
	if (UNLIKELY(!flow))
		return enter_at_length(skb, cfg, &c);
	return CS_PASS;
}

#endif
