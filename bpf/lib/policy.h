/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Does policy allow it, and does it ask for proof? What that costs does not grow with rules: two lookups for the classes, then
 * one for each port prefix length that the local class uses, at most 36 in all and one where it matters. */
#ifndef CS_POLICY_H
#define CS_POLICY_H

#include "auth.h"
#include "case.h"
#include "identity.h"

static __always_inline const struct cs_class *class_of(__u32 identity, __u32 slot)
{
	struct cs_class_key key = { .identity = identity, .slot = slot };

	return bpf_map_lookup_elem(&cs_classes, &key);
}

/* The port that a rule speaks of: of the side to which the flow was opened. For an ICMP echo it is the request's type. */
static __always_inline __u16 policy_port(const struct cs_case *c)
{
	return bpf_ntohs(c->begun == CS_EGRESS ? c->key.rport : c->key.lport);
}

/* The remote class before any, the longest port prefix first, any protocol last. The compiler put deny over allow into the
 * entries, so the first that is found decides. bits: the lengths that are worth a try. */
static __always_inline const struct cs_policy *policy_find(struct cs_policy_key *key, __u32 remote, __u8 proto, __u16 port,
							   __u32 bits)
{
	const struct cs_policy *found;

#pragma clang loop unroll(full)
	for (int any_remote = 0; any_remote < 2; any_remote++) {
		key->remote = any_remote ? 0 : remote;
		key->proto = proto;
#pragma clang loop unroll(disable)
		for (int n = CS_PORT_BITS; n >= 0; n--) {
			if (!(bits >> n & 1))
				continue;
			key->port_bits = n;
			key->dport = port & (0xffff0000u >> n);
			found = bpf_map_lookup_elem(&cs_policy, key);
			if (found)
				return found;
		}
		if (!(bits & 1))
			continue;
		key->proto = 0;
		key->port_bits = 0;
		key->dport = 0;
		found = bpf_map_lookup_elem(&cs_policy, key);
		if (found)
			return found;
	}
	return NULL;
}

/* No rule that allows and a rule that denies have names of their own. */
static __always_inline __u8 deny_reason(__u32 rule)
{
	return rule ? CS_DROP_POLICY_DENY_RULE : CS_DROP_POLICY_DENIED;
}

/* Verified once by itself, because of its loops. Returns a drop reason, or 0. */
__noinline int policy_refusal(struct cs_case *c, struct cs_owner *remote)
{
	const struct cs_config *cfg = config();
	const struct cs_class *mine, *theirs;
	const struct cs_policy *policy;
	struct cs_policy_key key = {};
	__u32 slot, begun;
	__u16 port;

	if (!cfg || !c || !remote)
		return CS_DROP_POLICY_DENIED;
	slot = cfg->policy_slot;
	port = policy_port(c);
	/* The agents prove identities to each other on this port: no workload may knock there, whatever policy says. */
	if (c->begun == CS_EGRESS && remote->kind == CS_OWNER_RESERVED && c->key.proto == IPPROTO_TCP &&
	    port == cfg->peer_port)
		return CS_DROP_CONTROL_PLANE;
	mine = class_of(c->local_identity, slot);
	theirs = class_of(remote->identity, slot);
	begun = c->begun & 1;
	/* Here, where the CPU waits for the remote class and not for each after the other. */
	if (mine && (mine->port_bits[begun] & CS_CLASS_ASKS) && owner_has_svid(remote))
		proof_read(c, remote);
	if (!mine || !theirs)
		return CS_DROP_POLICY_UNKNOWN_IDENTITY;
	key.local = mine->local[begun];
	key.direction = begun;
	key.slot = slot;
	policy = policy_find(&key, theirs->remote[begun], c->key.proto, port, mine->port_bits[begun]);
	if (!policy)
		return CS_DROP_POLICY_DENIED;
	c->rule = policy->rule;
	if (policy->verdict != CS_POLICY_ALLOW)
		return deny_reason(policy->rule);
	c->auth_type = policy->auth_type;
	c->observed_verdict = policy->observed_verdict;
	c->observed_auth_type = policy->observed_auth_type;
	c->observed_rule = policy->observed_rule;
	return 0;
}

#endif
