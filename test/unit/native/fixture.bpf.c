/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Maps of each kind the addon must serve, and programs that fill the ring buffer. For the addon's tests only. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct lpm_key {
	__u32 prefixlen;
	__u32 address;
};

struct record {
	__u64 number;
	__u32 length;
	__u16 small[3];
	__u8 last;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u64);
} t_hash SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct lpm_key);
	__type(value, __u32);
} t_lpm SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} t_percpu SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} t_ring SEC(".maps");

SEC("tc")
int emit(struct __sk_buff *skb)
{
	struct record *record = bpf_ringbuf_reserve(&t_ring, sizeof(*record), 0);
	__u32 zero = 0, *count = bpf_map_lookup_elem(&t_percpu, &zero);

	if (count)
		*count += 1;
	if (!record)
		return 2;
	__builtin_memset(record, 0, sizeof(*record));
	record->number = count ? *count : 0;
	record->length = skb->len;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

SEC("tc")
int mark_it(struct __sk_buff *skb)
{
	skb->mark += 1;
#ifdef BROKEN
	return *(int *)(long)skb->data; /* no bounds check: the verifier must say so */
#endif
	return 7;
}

static long nothing(__u32 index, void *context)
{
	return 0;
}

static long spin(__u32 index, void *context)
{
	bpf_loop(1 << 21, nothing, context, 0);
	return 0;
}

/* One run that takes long: as many spins as the mark says. t_hash tells where it is: 1 has begun, 2 has ended. */
SEC("tc")
int linger(struct __sk_buff *skb)
{
	__u32 begun = 1, ended = 2;
	__u64 yes = 1;

	bpf_map_update_elem(&t_hash, &begun, &yes, BPF_ANY);
	bpf_loop(skb->mark, spin, &yes, 0);
	bpf_map_update_elem(&t_hash, &ended, &yes, BPF_ANY);
	return 0;
}

char _license[] SEC("license") = "GPL";
