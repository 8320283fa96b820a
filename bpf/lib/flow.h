/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Is this packet part of a flow that was judged already, and does that verdict still hold?
 *
 * A flow answers two questions. Its direction says whose policy counts, so that replies need no rule of their own. Its
 * revision, validity and origin say whether the verdict may be taken over; else the packet is judged again, in the
 * flow's direction. Losing an entry (LRU) therefore never allows anything: the next packet is judged in full. */
#ifndef CS_FLOW_H
#define CS_FLOW_H

#include "case.h"
#include "maps.h"
#include "state.h"

/* last_ns may be this old: an established flow must not write its cache line for every packet */
#define CS_FLOW_TOUCH CS_SECOND

/* tick: from clock_of_tick(), which may lie before last_ns. */
static __always_inline struct cs_flow *flow_find(const struct cs_flow_key *key, __u64 tick)
{
	struct cs_flow *flow = bpf_map_lookup_elem(&cs_flows, key);

	if (!flow || (__s64)(tick - flow->last_ns) > (__s64)(flow_idle_limit(flow->state) + CS_FLOW_TOUCH))
		return NULL;
	return flow;
}

static __always_inline bool flow_is_valid(const struct cs_flow *flow, const struct cs_config *cfg, __u64 tick)
{
	return flow->revision == cfg->revision && clock_before(tick, flow->valid_until_ns);
}

/* The flow a packet claims to be part of, if it may have one. What opens against the flow's direction is no reply: it is
 * judged as its sender's own, or a server could reach its clients' ports. What opens a flow that is over begins another. */
static __always_inline struct cs_flow *flow_of(const struct cs_packet *p, const struct cs_case *c, __u64 tick)
{
	struct cs_flow *flow;

	if (p->reason || (p->kind & (CS_PKT_ERROR | CS_PKT_NEIGHBOUR)))
		return NULL;
	flow = flow_find(&c->key, tick);
	if (flow && (p->kind & CS_PKT_OPENS) && (flow->direction != c->direction || flow_is_over(flow->state)))
		return NULL;
	return flow;
}

/* The flow's state after the packet; CS_FLOW_NONE: a stray. A later fragment says nothing that the first did not say. */
static __always_inline __u8 flow_state_after(const struct cs_flow *flow, const struct cs_packet *p, __u8 direction)
{
	if (!flow)
		return flow_next(false, p->step, CS_FLOW_NONE);
	if (p->kind & CS_PKT_LATER)
		return flow->state;
	return flow_next(flow->direction != direction, p->step, flow->state);
}

/* That the node is spoken with: the agent goes on holding leases of its addresses. Once a second for each flow, so that the map's
 * line is not written for every packet. */
static __noinline int use_note(__u32 node, __u64 now)
{
	__u64 *last;

	if (!node)
		return 0;
	last = bpf_map_lookup_elem(&cs_uses, &node);
	if (last)
		*last = now;
	else
		bpf_map_update_elem(&cs_uses, &node, &now, BPF_ANY);
	return 0;
}

/* Most packets end here: their flow's verdict holds. What comes in must carry what vouched for the flow (stamp of the same
 * sender, or the tunnel). The endpoint need not be looked up: closing it or taking it away raises the revision. */
static __always_inline bool flow_holds(struct cs_flow *flow, const struct cs_config *cfg, const struct cs_packet *p,
				       const struct cs_case *c, __u64 tick, __u32 mark)
{
	__u8 state;

	if (flow->flags & CS_FLOW_OBSERVED)
		return false;
	if (c->direction == CS_INGRESS && flow->origin != mark >> 16)
		return false;
	if (!flow_is_valid(flow, cfg, tick))
		return false;
	state = flow_state_after(flow, p, c->direction);
	if (state == CS_FLOW_NONE)
		return false;
	if (state != flow->state)
		flow->state = state;
	if ((__s64)(tick - flow->last_ns) > (__s64)CS_FLOW_TOUCH) {
		flow->last_ns = tick;
		use_note(flow->remote_node, tick);
	}
	return true;
}

/* The revision under which a verdict begins. User space changes a map first and raises the revision after it; here the
 * revision is read first and the maps after it. So a flow that carries the new revision was judged by the new maps, and
 * a verdict that raced with the change carries the old one and is judged again with the next packet. The fetching
 * atomic keeps that order on CPUs that would not (it is a full barrier); x86 has it anyway. */
static __always_inline __u64 flow_revision(const struct cs_config *cfg)
{
	__u64 revision = *(const volatile __u64 *)&cfg->revision, zero = 0;

	return revision + __sync_fetch_and_add(&zero, 1);
}

/* A failed or evicted store costs the next packet a full verdict, nothing else. */
static __noinline int flow_store(const struct cs_case *c)
{
	struct cs_flow flow = {
		.revision = c->revision,
		.valid_until_ns = c->until_ns,
		.last_ns = c->now,
		.remote_identity = c->remote_identity,
		.remote_node = c->remote_node,
		.direction = c->begun,
		.auth_type = c->auth_type,
		.state = c->state,
		.flags = (c->observed ? CS_FLOW_OBSERVED : 0) | (c->flow_proven ? CS_FLOW_PROVEN : 0),
		.origin = c->origin,
		.endpoint = c->endpoint,
	};

	struct cs_flow_key key = c->key; /* Linux 6.1 takes no key from where a caller's pointer leads */

	if (c->revision != CS_REVISION_STATELESS)
		bpf_map_update_elem(&cs_flows, &key, &flow, BPF_ANY);
	use_note(c->remote_node, c->now);
	return 0;
}

#endif
