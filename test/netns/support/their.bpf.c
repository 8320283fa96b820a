/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Somebody else's programs on the same hooks: they count what they see, and pass it on or let it go. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} their_counts SEC(".maps");

static __always_inline void count(__u32 which)
{
	__u64 *seen = bpf_map_lookup_elem(&their_counts, &which);

	if (seen)
		__sync_fetch_and_add(seen, 1);
}

SEC("tc")
int their_next(struct __sk_buff *skb)
{
	count(0);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int their_ok(struct __sk_buff *skb)
{
	count(1);
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
