/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose address is this, who says so, and may it still be believed? */
#ifndef CS_IDENTITY_H
#define CS_IDENTITY_H

#include "maps.h"

enum cs_owner_kind {
	CS_OWNER_NOBODY = 0, /* inside a cluster prefix, and no node vouches for it */
	CS_OWNER_LOCAL,	     /* an endpoint of this node */
	CS_OWNER_NODE,	     /* another node vouches for it */
	CS_OWNER_RESERVED,   /* host, remote-node */
	CS_OWNER_WORLD,	     /* everything else, CIDR identities included */
};

struct cs_owner {
	__u64 lease_ns;
	__u32 identity;
	__u32 node;
	__u32 endpoint;
	__u32 kind;
	__u32 encrypt; /* not 0: only through the tunnel, whatever may go in clear otherwise */
	__u32 pad;     /* as in struct cs_case */
};

static __always_inline void owner_of(const struct cs_addr *addr, struct cs_owner *o)
{
	struct cs_prefix_key key = { .prefixlen = 128 };
	const struct cs_prefix *prefix;
	const struct cs_ipcache *e;

	/* A function that is verified by itself may not look up what its caller points to: Linux 6.1 takes keys from here only. */
	addr_copy(&key.addr, addr);
	e = bpf_map_lookup_elem(&cs_ipcache, &key.addr);
	o->pad = 0;
	if (e) {
		o->lease_ns = e->lease_ns;
		o->identity = e->identity;
		o->node = e->node;
		o->endpoint = e->endpoint;
		o->encrypt = e->flags & CS_IP_ENCRYPT;
		if (e->flags & CS_IP_LOCAL)
			o->kind = CS_OWNER_LOCAL;
		else if (e->flags & CS_IP_RESERVED)
			o->kind = CS_OWNER_RESERVED;
		else
			o->kind = e->node ? CS_OWNER_NODE : CS_OWNER_NOBODY;
		return;
	}
	prefix = bpf_map_lookup_elem(&cs_prefixes, &key);
	o->lease_ns = ~0ull;
	o->node = 0;
	o->endpoint = 0;
	o->encrypt = 0;
	o->identity = CS_ID_WORLD;
	o->kind = CS_OWNER_WORLD;
	if (!prefix)
		return;
	o->encrypt = prefix->flags & CS_PREFIX_ENCRYPT;
	if (prefix->flags & CS_PREFIX_CLUSTER) {
		o->identity = CS_ID_UNKNOWN;
		o->kind = CS_OWNER_NOBODY;
	} else if (prefix->identity) {
		o->identity = prefix->identity;
	}
}

static __always_inline bool owner_is_endpoint(const struct cs_owner *o, __u32 endpoint)
{
	return o->kind == CS_OWNER_LOCAL && o->endpoint == endpoint;
}

/* A workload's address, known or not. */
static __always_inline bool owner_is_workload(const struct cs_owner *o)
{
	return o->kind == CS_OWNER_LOCAL || o->kind == CS_OWNER_NODE || o->kind == CS_OWNER_NOBODY;
}

/* What must never cross the underlay in clear. */
static __always_inline bool owner_needs_tunnel(const struct cs_config *cfg, const struct cs_owner *o)
{
	return o->encrypt || (owner_is_workload(o) && !(cfg->flags & CS_CFG_ALLOW_UNBOUND));
}

static __always_inline bool owner_is_own_host(const struct cs_owner *o)
{
	return o->kind == CS_OWNER_RESERVED && o->identity == CS_ID_HOST;
}

/* LeaseEveryPacket, NoWorldInside: no packet to or from an address that nobody vouches for now. */
static __always_inline __u8 vouch_refusal(const struct cs_owner *o, __u64 now)
{
	if (o->kind == CS_OWNER_NOBODY)
		return CS_DROP_NO_VOUCH;
	return now >= o->lease_ns ? CS_DROP_LEASE_EXPIRED : 0;
}

#endif
