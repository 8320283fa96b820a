/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The verdict, in the order in which it is reached. What it costs does not grow with rules, identities or nodes. */
#ifndef CS_VERDICT_H
#define CS_VERDICT_H

#include "auth.h"
#include "event.h"
#include "exempt.h"
#include "fence.h"
#include "flow.h"
#include "hold.h"
#include "identity.h"
#include "origin.h"
#include "policy.h"
#include "related.h"

/* The functions that are not inlined are verified once, each by itself, whatever leads to them. */

/* The endpoint's side of the packet must be its own address. */
__noinline int local_refusal(struct cs_case *c)
{
	struct cs_owner local;

	if (!c)
		return CS_DROP_NO_ENDPOINT;
	owner_of(&c->key.local, &local);
	if (owner_is_endpoint(&local, c->endpoint))
		return 0;
	return c->direction == CS_EGRESS ? CS_DROP_INVALID_SOURCE_IP : CS_DROP_INVALID_DESTINATION_IP;
}

/* What would the policies say that only observe, if they were in force too? It passes in any case. */
__noinline int observe_policies(struct __sk_buff *skb, struct cs_case *c)
{
	const struct cs_config *cfg = config();
	struct cs_owner remote;
	__u8 auth_type, reason = 0;
	__u32 rule;

	if (!cfg || !c)
		return 0;
	owner_of(&c->key.remote, &remote);
	rule = c->rule;
	auth_type = c->auth_type;
	c->rule = c->observed_rule;
	c->auth_type = c->observed_auth_type;
	if (auth_type == CS_AUTH_CONNECTION)
		c->proof = CS_PROOF_NOT_READ;
	if (c->observed_verdict != CS_POLICY_ALLOW)
		reason = deny_reason(c->rule);
	else if (c->observed_auth_type != auth_type)
		reason = auth_refusal(cfg, c, &remote);
	if (reason) {
		c->observed = 1;
		observe(skb, c, reason);
	}
	c->rule = rule;
	c->auth_type = auth_type;
	c->miss = 0;
	return 0;
}

static __always_inline void sample_verdict(struct __sk_buff *skb, const struct cs_config *cfg, const struct cs_case *c)
{
	if (cfg->verdict_sample && bpf_get_prandom_u32() % cfg->verdict_sample == 0)
		report(skb, c, CS_EVENT_VERDICT, 0, 0);
}

/* May the endpoint and the other side speak, in the direction in which the flow began? */
__noinline int remote_refusal(struct cs_case *c)
{
	const struct cs_config *cfg = config();
	struct cs_owner remote;
	__u8 reason;

	if (!cfg || !c)
		return CS_DROP_NO_ENDPOINT;
	owner_of(&c->key.remote, &remote);
	c->remote_identity = remote.identity;
	c->remote_node = remote.node;
	if (c->direction == CS_INGRESS) {
		reason = origin_refusal(cfg, c->mark, &remote);
		if (reason)
			return reason;
	}
	/* Before anybody is asked to vouch or to prove: it would not help. */
	reason = fence_refusal(c, &remote);
	if (reason)
		return reason;
	reason = vouch_refusal(&remote, c->now);
	if (reason) {
		c->miss = CS_EVENT_VOUCH_MISS;
		return reason;
	}
	c->until_ns = remote.lease_ns;
	c->origin = c->direction == CS_INGRESS ? c->mark >> 16 : origin_expected(cfg, &remote);
	if (is_host_probe(cfg, c, &remote))
		return 0;
	reason = policy_refusal(c, &remote);
	return reason ? reason : auth_refusal(cfg, c, &remote);
}

/* Only this host may be there: what a veth carries to or from the link is not routed. */
static __always_inline bool is_host_side(const struct cs_case *c)
{
	const struct cs_addr *remote = &c->key.remote;

	return c->remote_identity == CS_ID_HOST || addr_is_link_local(remote) || addr_is_multicast(remote) ||
	       addr_is_limited_broadcast(remote);
}

/* A policy selects this node: what passes between it and its endpoint is its policy's to allow too, seen from its side. */
__noinline int host_side_refusal(struct cs_case *c)
{
	const struct cs_config *cfg = config();
	struct cs_owner endpoint = { .lease_ns = ~0ull, .kind = CS_OWNER_LOCAL };
	__u8 reason, auth_type, observed_verdict, observed_auth_type;
	__u32 rule, observed_rule;

	if (!cfg || !c || !is_host_side(c) || !(cfg->flags & CS_CFG_HOST(!c->begun)))
		return 0;
	if (cfg->exempt & CS_EXEMPT_HOST_PROBES && c->begun == CS_INGRESS)
		return 0;
	endpoint.identity = c->local_identity;
	endpoint.endpoint = c->endpoint;
	rule = c->rule;
	auth_type = c->auth_type;
	observed_verdict = c->observed_verdict;
	observed_auth_type = c->observed_auth_type;
	observed_rule = c->observed_rule;
	case_mirror(c, CS_ID_HOST);
	reason = policy_refusal(c, &endpoint);
	if (!reason && c->auth_type != CS_AUTH_NONE)
		reason = CS_DROP_AUTH_NOT_A_WORKLOAD;
	case_mirror(c, endpoint.identity);
	c->proof = CS_PROOF_NOT_READ;
	if (reason)
		return reason;
	c->rule = rule;
	c->auth_type = auth_type;
	if (c->observed_verdict != CS_POLICY_DENY) {
		c->observed_verdict = observed_verdict;
		c->observed_auth_type = observed_auth_type;
		c->observed_rule = observed_rule;
	}
	return 0;
}

/* Remembers an allow. While packets of the flow wait, none may overtake them: no flow is made yet, and each comes this way. */
static __always_inline void admit(struct __sk_buff *skb, const struct cs_config *cfg, struct cs_case *c)
{
	if (c->direction == CS_EGRESS && hold_must_follow(c)) {
		c->behind = 1;
		return;
	}
	if (c->observed_verdict)
		observe_policies(skb, c);
	if (c->auth_type == CS_AUTH_CONNECTION) {
		flow_proof_take(c);
		c->flow_proven = 1;
	}
	flow_store(c);
	sample_verdict(skb, cfg, c);
}

/* Judges what no valid flow covers. */
static __always_inline __u8 judge_in_full(struct __sk_buff *skb, const struct cs_config *cfg, struct cs_packet *p,
					  struct cs_case *c)
{
	__u8 reason = local_refusal(c);

	if (reason)
		return reason;
	if (p->reason)
		return p->reason;
	if (p->kind & CS_PKT_ERROR)
		return related_refusal(skb, p, c);
	if (p->kind & CS_PKT_NEIGHBOUR)
		return CS_DROP_ICMP_TYPE;
	if (c->state == CS_FLOW_NONE)
		return CS_DROP_STRAY;
	reason = remote_refusal(c);
	if (!reason && cfg->flags & CS_CFG_HOST_ANY)
		reason = host_side_refusal(c);
	if (!reason)
		admit(skb, cfg, c);
	return reason;
}

/* Everybody's verdict but an established flow's. flow: what flow_of() found. Returns 0 for allow, else the drop reason. */
static __always_inline __u8 judge(struct __sk_buff *skb, const struct cs_config *cfg, struct cs_packet *p,
				  struct cs_case *c, const struct cs_flow *flow)
{
	__u8 reason;

	/* An endpoint that took over the interface does not take over the flows. */
	if (flow && flow->endpoint != c->endpoint)
		flow = NULL;
	if (flow) {
		c->begun = flow->direction;
		c->flow_proven = (flow->flags & CS_FLOW_PROVEN) != 0;
	}
	c->state = flow_state_after(flow, p, c->direction);
	c->revision = flow_revision(cfg);
	reason = judge_in_full(skb, cfg, p, c);
	/* What passes although it is refused for whom it speaks to is a flow, so that its answers are told from strays. As such
	 * it lets nothing pass. */
	if (reason >= CS_DROP_NO_VOUCH && reason != CS_DROP_INVALID_DESTINATION_IP && passes_anyway(cfg, reason)) {
		c->observed = 1;
		c->origin = 0;
		flow_store(c);
	}
	return reason;
}

#endif
