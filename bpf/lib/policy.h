/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Does policy allow it, and does it ask for proof? At most six lookups, however many rules there are. */
#ifndef CS_POLICY_H
#define CS_POLICY_H

#include "case.h"
#include "identity.h"

/* Most specific first: remote before port before protocol. The compiler put deny over allow into the entries, so the
 * first that is found decides. Port 0 is "any" in an entry; a packet that really has port 0 only meets those. */
static __always_inline const struct cs_policy *policy_find(struct cs_policy_key *key)
{
	__u32 remote = key->remote;
	__u16 dport = key->dport;
	__u8 proto = key->proto;
	const struct cs_policy *found;

#pragma unroll
	for (int any_remote = 0; any_remote < 2; any_remote++) {
		key->remote = any_remote ? 0 : remote;
		key->proto = proto;
		key->dport = dport;
		if (dport) {
			found = bpf_map_lookup_elem(&cs_policy, key);
			if (found)
				return found;
			key->dport = 0;
		}
		found = bpf_map_lookup_elem(&cs_policy, key);
		if (found)
			return found;
		key->proto = 0;
		found = bpf_map_lookup_elem(&cs_policy, key);
		if (found)
			return found;
	}
	return NULL;
}

static __always_inline __u8 policy_refusal(const struct cs_config *cfg, struct cs_case *c, const struct cs_owner *remote)
{
	__u16 dport = bpf_ntohs(c->begun == CS_EGRESS ? c->key.rport : c->key.lport);
	bool has_ports = c->key.proto == IPPROTO_TCP || c->key.proto == IPPROTO_UDP;
	struct cs_policy_key key = {
		.local = c->local_identity,
		.remote = remote->identity,
		.dport = has_ports ? dport : 0,
		.proto = c->key.proto,
		.direction = c->begun,
		.slot = cfg->policy_slot,
	};
	const struct cs_policy *policy;

	/* The agents prove identities to each other on this port: no workload may knock there, whatever policy says. */
	if (c->begun == CS_EGRESS && remote->kind == CS_OWNER_RESERVED && c->key.proto == IPPROTO_TCP &&
	    dport == cfg->peer_port)
		return CS_DROP_CONTROL_PLANE;
	policy = policy_find(&key);
	if (!policy)
		return CS_DROP_POLICY_DENIED;
	c->rule = policy->rule;
	if (policy->verdict != CS_POLICY_ALLOW)
		return CS_DROP_POLICY_DENY_RULE;
	c->auth_type = policy->auth_type;
	return 0;
}

#endif
