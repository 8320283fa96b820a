/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What happened, for whoever asks: a counter for every drop, and an event that a flood cannot multiply. */
#ifndef CS_EVENT_H
#define CS_EVENT_H

#include "case.h"
#include "maps.h"
#include "origin.h"

/* Different keys per endpoint and interval: a scan over addresses cannot fill the ring buffer for the others. */
#define CS_EVENTS_PER_INTERVAL 256

static __always_inline void count_packet(const struct __sk_buff *skb, __u8 kind, __u8 reason, __u8 direction)
{
	__u32 index = reason * 2 + direction;
	struct cs_counter *counter = kind == CS_EVENT_OBSERVED ? bpf_map_lookup_elem(&cs_observed, &index)
							       : bpf_map_lookup_elem(&cs_drops, &index);

	if (!counter)
		return;
	counter->packets++;
	counter->bytes += skb->len;
}

/* What is looked up, one after the other, and what is written where nothing was found: calls nest, and their stacks add up. */
struct cs_scratch {
	union {
		struct cs_pair_key pair;
		struct cs_signal_key signal;
	} key;
	union {
		struct cs_counter counter;
		struct cs_signal signal;
	} fresh;
};

/* Per pair of identities, as many as the map holds: a pair that has not dropped for long makes room. */
static __always_inline void count_pair(const struct __sk_buff *skb, const struct cs_case *c, __u8 reason,
				       struct cs_scratch *s)
{
	struct cs_counter *counter;

	s->key.pair = (struct cs_pair_key){
		.local = c->local_identity,
		.remote = c->remote_identity,
		.reason = reason,
		.direction = c->direction,
	};
	counter = bpf_map_lookup_elem(&cs_pair_drops, &s->key.pair);
	if (!counter) {
		s->fresh.counter = (struct cs_counter){};
		bpf_map_update_elem(&cs_pair_drops, &s->key.pair, &s->fresh.counter, BPF_NOEXIST);
		counter = bpf_map_lookup_elem(&cs_pair_drops, &s->key.pair);
		if (!counter)
			return;
	}
	__sync_fetch_and_add(&counter->packets, 1);
	__sync_fetch_and_add(&counter->bytes, skb->len);
}

/* One per key and interval. Those left out are counted in the record. */
static __always_inline bool signal_admit(const struct cs_case *c, __u8 kind, __u8 reason, __u64 now, __u64 interval,
					 __u64 *suppressed, struct cs_scratch *s)
{
	struct cs_signal *seen;
	bool each;

	addr_copy(&s->key.signal.remote, &c->key.remote);
	s->key.signal.endpoint = c->endpoint;
	each = kind == CS_EVENT_AUTH_MISS && c->auth_type == CS_AUTH_CONNECTION;
	s->key.signal.lport = each ? c->key.lport : 0;
	s->key.signal.rport = each ? c->key.rport : 0;
	s->key.signal.kind = kind;
	s->key.signal.reason = reason;
	s->key.signal.direction = c->direction;
	s->key.signal.proto = c->key.proto;
	seen = bpf_map_lookup_elem(&cs_signals, &s->key.signal);
	*suppressed = 0;
	if (!seen) {
		s->fresh.signal = (struct cs_signal){ .last_ns = now };
		bpf_map_update_elem(&cs_signals, &s->key.signal, &s->fresh.signal, BPF_ANY);
		return true;
	}
	if (now - seen->last_ns < interval) {
		__sync_fetch_and_add(&seen->suppressed, 1);
		return false;
	}
	*suppressed = seen->suppressed;
	seen->suppressed = 0;
	seen->last_ns = now;
	return true;
}

/* The endpoint's share: a record under a key that no event has (kind 0), its `suppressed` counts what was sent. Samples of what
 * is allowed have one of their own, so that they take no room from what the agent must hear. */
static __always_inline bool share_admit(const struct cs_case *c, __u8 kind, __u64 now, __u64 interval, struct cs_scratch *s)
{
	struct cs_signal *share;

	s->key.signal = (struct cs_signal_key){ .endpoint = c->endpoint, .reason = kind == CS_EVENT_VERDICT };
	share = bpf_map_lookup_elem(&cs_signals, &s->key.signal);
	if (!share || now - share->last_ns >= interval) {
		s->fresh.signal = (struct cs_signal){ .last_ns = now, .suppressed = 1 };
		bpf_map_update_elem(&cs_signals, &s->key.signal, &s->fresh.signal, BPF_ANY);
		return true;
	}
	return __sync_fetch_and_add(&share->suppressed, 1) < CS_EVENTS_PER_INTERVAL;
}

/* Counts the drop (reason != 0), or what would have been one, and tells the agent (kind). Chatter on the link is counted only: every stack makes it. */
__noinline int report(struct __sk_buff *skb, const struct cs_case *c, __u32 kind, __u32 reason, __u32 held)
{
	const struct cs_config *cfg = config();
	__u64 now = clock_exact(), suppressed;
	struct cs_scratch scratch;
	struct cs_event *e;

	if (!c)
		return 0;
	if (reason)
		count_packet(skb, kind, reason, c->direction);
	if (!cfg || addr_is_link_local_multicast(c->direction == CS_EGRESS ? &c->key.remote : &c->key.local))
		return 0;
	if (reason && kind != CS_EVENT_OBSERVED && c->local_identity)
		count_pair(skb, c, reason, &scratch);
	if (!signal_admit(c, kind, reason, now, cfg->signal_interval_ns, &suppressed, &scratch) ||
	    !share_admit(c, kind, now, cfg->signal_interval_ns, &scratch))
		return 0;
	e = bpf_ringbuf_reserve(&cs_events, sizeof(*e), 0);
	if (!e)
		return 0;
	e->time_ns = now;
	e->suppressed = suppressed;
	addr_copy(&e->local, &c->key.local);
	addr_copy(&e->remote, &c->key.remote);
	e->local_identity = c->local_identity;
	e->remote_identity = c->remote_identity;
	e->remote_node = c->remote_node;
	e->endpoint = c->endpoint;
	e->rule = c->rule;
	e->lport = bpf_ntohs(c->key.lport);
	e->rport = bpf_ntohs(c->key.rport);
	e->kind = kind;
	e->reason = reason;
	e->direction = c->direction;
	e->proto = c->key.proto;
	e->auth_type = c->auth_type;
	e->held = held;
	e->length = skb->len > 0xffff ? 0xffff : skb->len;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* Does what would be dropped for this reason pass nevertheless? Everything while enforcement is stopped. enforcement: observe
 * lets pass what policy, proof or encryption would stop; what cannot be read, lies about where it comes from, or knocks at
 * the control plane is stopped all the same: it is no one's traffic to try policies on. */
static __always_inline bool passes_anyway(const struct cs_config *cfg, __u8 reason)
{
	if (cfg->flags & CS_CFG_STOPPED)
		return true;
	if (!(cfg->flags & CS_CFG_OBSERVE))
		return false;
	switch (reason) {
	case CS_DROP_UNKNOWN_L4:
	case CS_DROP_FRAGMENT:
	case CS_DROP_IPV6_EXTENSION:
	case CS_DROP_ICMP_TYPE:
	case CS_DROP_IP_OPTIONS:
	case CS_DROP_TCP_FLAGS:
	case CS_DROP_FRAGMENT_NO_FIRST:
	case CS_DROP_FRAGMENT_OVERLAP:
	case CS_DROP_STRAY:
	case CS_DROP_SCTP_CHUNK:
	case CS_DROP_NO_VOUCH:
	case CS_DROP_LEASE_EXPIRED:
	case CS_DROP_POLICY_DENIED:
	case CS_DROP_POLICY_DENY_RULE:
	case CS_DROP_POLICY_UNKNOWN_IDENTITY:
	case CS_DROP_AUTH_REQUIRED:
	case CS_DROP_AUTH_EXPIRED:
	case CS_DROP_AUTH_EPOCH:
	case CS_DROP_AUTH_ALWAYS_FAIL:
	case CS_DROP_AUTH_NOT_A_WORKLOAD:
	case CS_DROP_AUTH_REFUSED:
	case CS_DROP_UNENCRYPTED:
		return true;
	default:
		return false;
	}
}

/* It passes, and would not. What the agent could mend it is asked to, so that the proof is there when it is needed. */
static __always_inline void observe(struct __sk_buff *skb, const struct cs_case *c, __u8 reason)
{
	report(skb, c, CS_EVENT_OBSERVED, reason, 0);
	if (c->miss)
		report(skb, c, c->miss, 0, 0);
}

/* Counted and told; true if the packet passes nevertheless. */
static __always_inline bool refuse(struct __sk_buff *skb, const struct cs_config *cfg, const struct cs_case *c, __u8 reason)
{
	if (passes_anyway(cfg, reason)) {
		observe(skb, c, reason);
		return true;
	}
	report(skb, c, c->miss ? c->miss : CS_EVENT_DROP, reason, 0);
	return false;
}

/* Refuses what has not become a case: nobody's policies are tried on it, only stopping lets it pass. What a known endpoint
 * sends carries its stamp even so. */
__noinline int shoot(struct __sk_buff *skb, const struct cs_case *c, __u32 reason)
{
	const struct cs_config *cfg = config();

	if (!cfg || !c)
		return CS_SHOT;
	if (!(cfg->flags & CS_CFG_STOPPED)) {
		report(skb, c, CS_EVENT_DROP, reason, 0);
		return CS_SHOT;
	}
	observe(skb, c, reason);
	if (c->direction == CS_EGRESS && c->endpoint)
		mark_write(skb, CS_MARK_STAMPED, c->endpoint);
	return CS_PASS;
}

#endif
