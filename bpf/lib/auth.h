/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Have both sides proved who they are? One exact entry, alive, of this epoch: for the pair and the node, or for the flow. */
#ifndef CS_AUTH_H
#define CS_AUTH_H

#include "case.h"
#include "identity.h"

static __always_inline bool owner_has_svid(const struct cs_owner *o)
{
	return o->kind == CS_OWNER_LOCAL || o->kind == CS_OWNER_NODE;
}

static __always_inline void proof_read(struct cs_case *c, const struct cs_owner *remote)
{
	struct cs_auth_key key = {
		.local = c->local_identity,
		.remote = remote->identity,
		.remote_node = remote->node,
		.auth_type = CS_AUTH_SPIFFE,
	};
	const struct cs_auth *proof = bpf_map_lookup_elem(&cs_auth, &key);

	if (!proof) {
		c->proof = CS_PROOF_NONE;
		return;
	}
	c->proof = proof->flags & CS_AUTH_REFUSED ? CS_PROOF_REFUSED : CS_PROOF_FOUND;
	c->proof_ns = proof->expires_ns;
	c->proof_epoch = proof->epoch;
}

static __always_inline void flow_auth_key(struct cs_flow_auth_key *key, const struct cs_case *c)
{
	addr_copy(&key->local, &c->key.local);
	addr_copy(&key->remote, &c->key.remote);
	key->lport = c->key.lport;
	key->rport = c->key.rport;
	key->endpoint = c->endpoint;
	*(__u32 *)&key->proto = c->key.proto; /* and the padding */
}

/* A proof that was made for this flow. One that another flow took is none: ports are used again. */
static __noinline int flow_proof_read(struct cs_case *c, __u32 remote_identity, __u32 remote_node)
{
	struct cs_flow_auth_key key;
	const struct cs_flow_auth *proof;

	flow_auth_key(&key, c);
	proof = bpf_map_lookup_elem(&cs_flow_auth, &key);
	c->proof = CS_PROOF_NONE;
	if (!proof || proof->local != c->local_identity || proof->remote != remote_identity ||
	    proof->remote_node != remote_node || ((proof->flags & CS_AUTH_TAKEN) && !c->flow_proven))
		return 0;
	c->proof = proof->flags & CS_AUTH_REFUSED ? CS_PROOF_REFUSED : CS_PROOF_FOUND;
	c->proof_ns = proof->expires_ns;
	c->proof_epoch = proof->epoch;
	return 0;
}

/* The flow goes on: its proof is used up. Without flows each packet begins one, and would need a proof. */
static __noinline int flow_proof_take(const struct cs_case *c)
{
	struct cs_flow_auth_key key;
	struct cs_flow_auth *proof;

	flow_auth_key(&key, c);
	proof = bpf_map_lookup_elem(&cs_flow_auth, &key);
	if (proof && c->revision != CS_REVISION_STATELESS)
		proof->flags |= CS_AUTH_TAKEN;
	return 0;
}

/* Of the type that c->auth_type says. Sets c->miss where the agent could mend it. */
static __always_inline __u8 auth_refusal(const struct cs_config *cfg, struct cs_case *c, const struct cs_owner *remote)
{
	if (c->auth_type == CS_AUTH_NONE)
		return 0;
	/* A host, a node, the world: nobody holds an SVID for these, waiting would not help. */
	if (!owner_has_svid(remote) || c->local_identity == CS_ID_HOST)
		return CS_DROP_AUTH_NOT_A_WORKLOAD;
	if (c->auth_type != CS_AUTH_SPIFFE && c->auth_type != CS_AUTH_CONNECTION)
		return CS_DROP_AUTH_ALWAYS_FAIL;
	if (c->auth_type == CS_AUTH_CONNECTION)
		flow_proof_read(c, remote->identity, remote->node);
	else if (c->proof == CS_PROOF_NOT_READ)
		proof_read(c, remote);
	c->miss = CS_EVENT_AUTH_MISS;
	if (c->proof == CS_PROOF_NONE)
		return CS_DROP_AUTH_REQUIRED;
	/* What failed is not tried, and not held, with every packet: when this has run out, the next packet asks again. */
	if (c->proof == CS_PROOF_REFUSED) {
		if (c->now >= c->proof_ns)
			return CS_DROP_AUTH_REQUIRED;
		c->miss = 0;
		return CS_DROP_AUTH_REFUSED;
	}
	if (c->proof_epoch < cfg->epoch)
		return CS_DROP_AUTH_EPOCH;
	if (c->now >= c->proof_ns)
		return CS_DROP_AUTH_EXPIRED;
	c->miss = 0;
	if (c->proof_ns < c->until_ns)
		c->until_ns = c->proof_ns;
	return 0;
}

#endif
