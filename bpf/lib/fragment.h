/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which flow does a fragment belong to? Only the first one has ports: when it is let through, its datagram is remembered, and
 * the later ones are judged as packets of the same flow, each by the state of now. Whatever is not remembered is dropped:
 * nothing that the table forgets, or never knew, lets a fragment through. */
#ifndef CS_FRAGMENT_H
#define CS_FRAGMENT_H

#include "clock.h"
#include "maps.h"
#include "packet.h"

/* As long as Linux waits for the rest of a datagram (net.ipv4.ipfrag_time). */
#define CS_FRAGMENT_LIFE (30 * CS_SECOND)

/* What the receiver puts a datagram together by: RFC 791, section 3.2; RFC 8200, section 4.5, which leaves the protocol out. */
static __always_inline void fragment_key(struct cs_fragment_key *key, const struct cs_addr *src, const struct cs_addr *dst,
					 __u32 id, __u8 proto, __u32 ifindex, __u32 direction)
{
	addr_copy(&key->src, src);
	addr_copy(&key->dst, dst);
	key->id = id;
	key->ifindex = ifindex;
	key->proto = addr_is_mapped(src) ? proto : 0;
	key->direction = direction;
	key->pad = 0;
}

static __always_inline struct cs_fragment *fragment_find(const struct cs_fragment_key *key, __u64 now)
{
	struct cs_fragment *f = bpf_map_lookup_elem(&cs_fragments, key);

	return f && now - f->first_ns < CS_FRAGMENT_LIFE ? f : NULL;
}

/* Two firsts of one datagram that name different flows, or end their headers elsewhere: what the receiver makes of them nobody knows. Once the last fragment was
 * seen it is another datagram, because numbers are used again. */
static __always_inline bool fragment_contradicts(const struct cs_fragment *f, const struct cs_packet *p)
{
	return f && !f->complete &&
	       (f->proto != p->proto || f->sport != p->sport || f->dport != p->dport || f->head != p->fragment_head);
}

/* A fragment that parsing found no fault with. Gives a later one the ports of the first, in the packet and in the flow key, or
 * a reason. Verified once by itself. */
__noinline int fragment_resolve(struct cs_packet *p, struct cs_flow_key *flow, __u32 direction)
{
	struct cs_fragment_key key;
	struct cs_fragment *f;

	if (!p || !flow)
		return 0;
	fragment_key(&key, &p->src, &p->dst, p->fragment_id, p->proto, flow->ifindex, direction);
	f = fragment_find(&key, clock_exact());
	if (p->kind & CS_PKT_FIRST) {
		if (fragment_contradicts(f, p))
			p->reason = CS_DROP_FRAGMENT_OVERLAP;
		return 0;
	}
	if (!f) {
		p->reason = CS_DROP_FRAGMENT_NO_FIRST;
		return 0;
	}
	if (p->fragment_offset < f->head) {
		p->reason = CS_DROP_FRAGMENT_OVERLAP;
		return 0;
	}
	if (p->kind & CS_PKT_LAST)
		f->complete = 1;
	p->proto = f->proto;
	p->sport = f->sport;
	p->dport = f->dport;
	p->step = f->step;
	p->kind |= f->opens;
	flow->proto = f->proto;
	flow->lport = direction == CS_EGRESS ? f->sport : f->dport;
	flow->rport = direction == CS_EGRESS ? f->dport : f->sport;
	return 0;
}

/* A first fragment was let through, or is held: what comes after it is of this flow. */
__noinline int fragment_remember(struct cs_packet *p, __u32 ifindex, __u32 direction)
{
	struct cs_fragment_key key;
	struct cs_fragment f = {};

	if (!p || p->reason)
		return 0;
	fragment_key(&key, &p->src, &p->dst, p->fragment_id, p->proto, ifindex, direction);
	f.first_ns = clock_exact();
	f.sport = p->sport;
	f.dport = p->dport;
	f.head = p->fragment_head;
	f.proto = p->proto;
	f.step = p->step;
	f.opens = p->kind & CS_PKT_OPENS;
	bpf_map_update_elem(&cs_fragments, &key, &f, BPF_ANY);
	return 0;
}

#endif
