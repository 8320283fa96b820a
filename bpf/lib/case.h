/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The case that is judged: one packet of one endpoint, and what was found out about it on the way. */
#ifndef CS_CASE_H
#define CS_CASE_H

#include "clock.h"
#include "packet.h"

enum cs_proof { CS_PROOF_NOT_READ, CS_PROOF_NONE, CS_PROOF_FOUND, CS_PROOF_REFUSED };

/* No byte is left unset, and none lies between: functions that are verified by themselves take it whole. */
struct cs_case {
	struct cs_flow_key key; /* as the endpoint sees it, the same for both directions */
	__u32 mark;		/* of the packet as it came */
	__u64 now;		/* CLOCK_BOOTTIME, ns */
	__u64 revision;		/* of the configuration, read before anything the verdict rests on */
	__u64 until_ns;		/* how long the verdict holds */
	__u64 proof_ns;		/* c->proof says whether it was read: when the proof ends */
	__u32 endpoint;		/* 0: none */
	__u32 local_identity;
	__u32 remote_identity; /* 0: not known */
	__u32 remote_node;
	__u32 rule;
	__u32 observed_rule;
	__u32 proof_epoch;
	__u16 origin;	/* mark >> 16 that what comes in of the flow is to carry */
	__u8 direction; /* of the packet */
	__u8 begun;	/* direction of the packet that began the flow: whose policy counts */
	__u8 auth_type;
	__u8 state;  /* enum cs_flow_state that the packet leaves its flow in */
	__u8 miss;   /* enum cs_event_kind: what the agent could mend; 0: nothing */
	__u8 behind; /* allowed, but earlier packets of the flow still wait */
	__u8 observed_verdict; /* of the policies that only observe too: enum cs_policy_verdict; 0: they change nothing */
	__u8 observed_auth_type;
	__u8 observed; /* passes, and would not if all that only observes were in force */
	__u8 proof;    /* enum cs_proof */
	__u8 fences;   /* the endpoint may have some */
	__u8 flow_proven; /* the flow took a proof of its own */
	__u8 pad[6];
} __attribute__((aligned(8)));

_Static_assert(sizeof(struct cs_case) == offsetof(struct cs_case, pad) + 6, "struct cs_case has padding");

/* What an established flow needs and no more: most packets go no further. */
static __always_inline void case_key(struct cs_case *c, const struct cs_packet *p, __u32 ifindex, __u8 direction)
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
	c->key.ifindex = ifindex;
	*(__u32 *)&c->key.proto = p->proto; /* and the padding */
	c->direction = direction;
}

/* The same packet's flow with its ends named the other way round: `identity` is the local one then. */
static __always_inline void case_mirror(struct cs_case *c, __u32 identity)
{
	__u16 port = c->key.lport;

	c->key.lport = c->key.rport;
	c->key.rport = port;
	c->begun = !c->begun;
	c->local_identity = identity;
}

static __always_inline void case_open(struct cs_case *c, const struct cs_endpoint *ep, __u32 mark)
{
	c->endpoint = ep ? ep->endpoint : 0;
	c->local_identity = ep ? ep->identity : 0;
	c->remote_identity = CS_ID_UNKNOWN;
	c->remote_node = 0;
	c->rule = 0;
	c->mark = mark;
	c->begun = c->direction;
	c->auth_type = CS_AUTH_NONE;
	c->state = CS_FLOW_NONE;
	c->miss = 0;
	c->behind = 0;
	c->observed_verdict = 0;
	c->observed_auth_type = CS_AUTH_NONE;
	c->observed_rule = 0;
	c->proof = CS_PROOF_NOT_READ;
	c->proof_ns = 0;
	c->proof_epoch = 0;
	c->observed = 0;
	c->fences = ep && ep->flags & CS_EP_FENCES;
	c->flow_proven = 0;
	__builtin_memset(c->pad, 0, sizeof(c->pad));
	c->origin = 0;
	c->now = clock_exact();
	c->until_ns = ~0ull;
	c->revision = 0;
}

#endif
