/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The case that is judged: one packet of one endpoint, and what was found out about it on the way. */
#ifndef CS_CASE_H
#define CS_CASE_H

#include "parse.h"

struct cs_case {
	struct cs_flow_key key; /* as the endpoint sees it, the same for both directions */
	__u32 local_identity;
	__u32 remote_identity; /* 0: not known */
	__u32 remote_node;
	__u32 rule;
	__u32 mark;	 /* of the packet as it came */
	__u64 now;	 /* CLOCK_BOOTTIME, ns */
	__u64 revision;	 /* of the configuration, read before anything the verdict rests on */
	__u64 until_ns;	 /* how long the verdict holds */
	__u8 direction;	 /* of the packet */
	__u8 begun;	 /* direction of the packet that began the flow: whose policy counts */
	__u8 auth_type;
	__u8 miss; /* enum cs_event_kind: what the agent could mend; 0: nothing */
	__u8 behind; /* allowed, but earlier packets of the flow still wait */
} __attribute__((aligned(8)));

static __always_inline void case_open(struct cs_case *c, const struct cs_packet *p, const struct cs_endpoint *ep,
				      __u32 mark, __u8 direction)
{
	if (direction == CS_EGRESS) {
		addr_copy(&c->key.local, &p->src);
		addr_copy(&c->key.remote, &p->dst);
		c->key.lport = p->sport;
		c->key.rport = p->dport;
	} else {
		addr_copy(&c->key.local, &p->dst);
		addr_copy(&c->key.remote, &p->src);
		c->key.lport = p->dport;
		c->key.rport = p->sport;
	}
	c->key.proto = p->proto;
	c->key.endpoint = ep ? ep->endpoint : 0;
	c->local_identity = ep ? ep->identity : 0;
	c->mark = mark;
	c->direction = direction;
	c->begun = direction;
	c->now = bpf_ktime_get_boot_ns();
	c->until_ns = ~0ull;
}

#endif
