/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Hold a packet instead of dropping it: into the TUN that the agent reads, until the proof is there.
 * Bounded per identity and in all, before the redirect: the TUN's own queue is one for everybody. */
#ifndef CS_HOLD_H
#define CS_HOLD_H

#include "case.h"
#include "event.h"
#include "maps.h"

/* Packets of a flow queue behind held ones no longer than this after the last miss: the agent may have dropped those. */
#define CS_WAITING_LIMIT 1000000000ull

/* As how many packets it comes out of the TUN, which takes none that is larger than its segments: a packet that the stack
 * would cut later (GSO) is cut in front of it. Senders of raw frames may leave the count to the kernel; then the bytes say it. */
static __always_inline __u32 hold_packets(const struct __sk_buff *skb)
{
	__u32 segments = skb->gso_segs, size = skb->gso_size;

	if (!size)
		return 1;
	return segments ? segments : skb->len / size + 1;
}

/* More may have been returned than taken for a moment, while a take that was refused is undone: that is an empty queue. */
static __always_inline __s64 hold_waits(__u64 taken, const __u64 *returned)
{
	__s64 waits = taken - (returned ? *returned : 0);

	return waits > 0 ? waits : 0;
}

static __always_inline bool hold_take(__u32 identity, __u32 packets, __u32 limit)
{
	__u64 *taken = bpf_map_lookup_elem(&cs_hold_taken, &identity);
	__u64 none = 0;

	if (!taken) {
		bpf_map_update_elem(&cs_hold_taken, &identity, &none, BPF_NOEXIST);
		taken = bpf_map_lookup_elem(&cs_hold_taken, &identity);
		if (!taken)
			return false;
	}
	/* Take first, look after: two CPUs at once may both be refused, never both be let in. */
	if (hold_waits(__sync_fetch_and_add(taken, packets), bpf_map_lookup_elem(&cs_hold_returned, &identity)) + packets <=
	    limit)
		return true;
	__sync_fetch_and_add(taken, -(__u64)packets);
	return false;
}

static __always_inline void hold_give_back(__u32 identity, __u32 packets)
{
	__u64 *taken = bpf_map_lookup_elem(&cs_hold_taken, &identity);

	if (taken)
		__sync_fetch_and_add(taken, -(__u64)packets);
}

static __always_inline bool hold_budget(const struct cs_config *cfg, __u32 identity, __u32 packets)
{
	if (!hold_take(0, packets, cfg->hold_limit_total))
		return false;
	if (hold_take(identity, packets, cfg->hold_limit_identity))
		return true;
	hold_give_back(0, packets);
	return false;
}

static __always_inline __u64 hold_length(__u32 identity)
{
	const __u64 *taken = bpf_map_lookup_elem(&cs_hold_taken, &identity);

	return taken ? hold_waits(*taken, bpf_map_lookup_elem(&cs_hold_returned, &identity)) : 0;
}

/* Nearly always this ends the question, for the price of reading one word. */
static __always_inline bool hold_is_busy(const struct cs_case *c)
{
	__u32 zero = 0;
	const __u64 *last = bpf_map_lookup_elem(&cs_last_held, &zero);

	return last && c->now - *last < CS_WAITING_LIMIT;
}

/* The flow's packets in the queue, if any. The agent does not say which packets it dropped, only how many of an identity left
 * its queue: an empty queue and an old miss both mean that nothing waits. key: c's; on the caller's own stack, as flow_store(). */
static __always_inline struct cs_waiting *hold_waiting(const struct cs_case *c, const struct cs_flow_key *key)
{
	struct cs_waiting *w;

	if (!hold_is_busy(c))
		return NULL;
	w = bpf_map_lookup_elem(&cs_waiting, key);
	return w && w->packets && c->now - w->held_ns < CS_WAITING_LIMIT && hold_length(c->local_identity) ? w : NULL;
}

/* A miss starts (or goes on with) the flow's queue; a packet that only queues behind does not prolong it. */
static __always_inline void hold_enqueue(const struct cs_case *c, __u32 packets)
{
	struct cs_flow_key key = c->key;
	struct cs_waiting *w = hold_waiting(c, &key);
	struct cs_waiting fresh = { .held_ns = c->now, .packets = packets };
	__u32 zero = 0;
	__u64 *last = bpf_map_lookup_elem(&cs_last_held, &zero);

	if (last && c->miss)
		*last = c->now;
	if (!w) {
		bpf_map_update_elem(&cs_waiting, &key, &fresh, BPF_ANY);
		return;
	}
	__sync_fetch_and_add(&w->packets, packets);
	if (c->miss)
		w->held_ns = c->now;
}

/* Do packets of the flow wait, which none may overtake? */
static __always_inline bool hold_must_follow(const struct cs_case *c)
{
	struct cs_flow_key key;

	if (!hold_is_busy(c))
		return false;
	key = c->key;
	return hold_waiting(c, &key);
}

/* A held packet came back. True if others of its flow still wait. */
static __always_inline bool hold_dequeue(const struct cs_case *c)
{
	struct cs_waiting *w = hold_waiting(c, &c->key);

	if (!w)
		return false;
	if (__sync_fetch_and_add(&w->packets, -1) > 1)
		return true;
	bpf_map_delete_elem(&cs_waiting, &c->key);
	return false;
}

/* Room in the queue, taken. */
static __noinline int hold_admit(struct __sk_buff *skb, const struct cs_case *c)
{
	const struct cs_config *cfg = config();
	__u32 packets = hold_packets(skb);

	if (!cfg || !hold_budget(cfg, c->local_identity, packets))
		return 0;
	hold_enqueue(c, packets);
	return 1;
}

/* Only what leaves a workload is held: its sender is here and can wait. If the device is gone (its agent died), the kernel drops
 * what is sent there, and the next agent counts it; a number that a device had is not given to another by itself. */
static __always_inline int hold(struct __sk_buff *skb, const struct cs_config *cfg, struct cs_case *c)
{
	if (!hold_admit(skb, c)) {
		report(skb, c, c->miss ? c->miss : CS_EVENT_DROP, CS_DROP_HOLD_FULL, 0);
		return CS_SHOT;
	}
	/* One that only queues behind others asks for nothing. */
	if (c->miss)
		report(skb, c, c->miss, 0, 1);
	/* Strips the MAC header: the TUN takes bare IP packets. Our mark bits go with it; from_hold judges and stamps anew. */
	return bpf_redirect(cfg->hold_ifindex, 0);
}

#endif
