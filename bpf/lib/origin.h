/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where did the packet come into this node, and may that place speak for its source address?
 * (leases and fences, rule 8: local delivery goes by the sender's stamp, the rest by the tunnel.) */
#ifndef CS_ORIGIN_H
#define CS_ORIGIN_H

#include "identity.h"

/* Volatile: clang would write half of the mark, which the verifier refuses. */
static __always_inline void mark_write(struct __sk_buff *skb, __u32 kind, __u32 endpoint)
{
	volatile __u32 *mark = &skb->mark;

	*mark = (*mark & ~CS_MARK_MASK) | kind << 28 | (endpoint & 0xfff) << 16;
}

static __always_inline bool endpoint_is_open(__u32 id)
{
	__u32 ifindex;
	const struct cs_endpoint *ep = endpoint_by_id(id, &ifindex);

	return ep && (ep->flags & CS_EP_OPEN);
}

/* StampSource, StampLocalDelivery: the stamp names a live endpoint, and the source address is that endpoint's. */
static __always_inline __u8 stamp_refusal(__u32 mark, const struct cs_owner *source)
{
	if (CS_MARK_KIND(mark) != CS_MARK_STAMPED)
		return CS_DROP_NOT_STAMPED;
	if (!owner_is_endpoint(source, CS_MARK_ENDPOINT(mark)))
		return CS_DROP_SPOOFED_STAMP;
	return endpoint_is_open(CS_MARK_ENDPOINT(mark)) ? 0 : CS_DROP_NOT_STAMPED;
}

static __always_inline __u8 origin_refusal(const struct cs_config *cfg, __u32 mark, const struct cs_owner *source)
{
	switch (CS_MARK_KIND(mark)) {
	case CS_MARK_STAMPED:
		return stamp_refusal(mark, source);
	case CS_MARK_TUNNEL:
		/* Another node's, or an address nobody vouches for, which the next step refuses by its own name. */
		return source->node || source->kind == CS_OWNER_NOBODY || source->identity == CS_ID_REMOTE_NODE ||
				       source->encrypt
			       ? 0
			       : CS_DROP_NOT_STAMPED;
	case CS_MARK_UNDERLAY:
		if (!(cfg->flags & CS_CFG_ALLOW_UNBOUND) || source->encrypt)
			return CS_DROP_UNENCRYPTED;
		return source->kind == CS_OWNER_NODE || source->kind == CS_OWNER_NOBODY ? 0 : CS_DROP_NOT_STAMPED;
	case CS_MARK_NONE:
		if (source->kind == CS_OWNER_LOCAL)
			return CS_DROP_NOT_STAMPED;
		return owner_is_workload(source) || source->encrypt ? CS_DROP_UNENCRYPTED : 0;
	default:
		return CS_DROP_NOT_STAMPED;
	}
}

/* mark >> 16 that packets from this owner are to carry. */
static __always_inline __u16 origin_expected(const struct cs_config *cfg, const struct cs_owner *remote)
{
	if (remote->kind == CS_OWNER_LOCAL)
		return CS_MARK_STAMPED << 12 | (remote->endpoint & 0xfff);
	if (owner_needs_tunnel(cfg, remote))
		return CS_MARK_TUNNEL << 12;
	return remote->kind == CS_OWNER_NODE ? CS_MARK_UNDERLAY << 12 : CS_MARK_NONE;
}

#endif
