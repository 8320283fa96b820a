/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every map. What lies in them says abi.h; the loader pins them. */
#ifndef CS_MAPS_H
#define CS_MAPS_H

#include "base.h"

#define CS_MAX_ENDPOINTS 4096 /* the stamp has 12 bits for the endpoint id */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cs_config);
} cs_config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CS_MAX_ENDPOINTS);
	__type(key, __u32);
	__type(value, struct cs_endpoint);
} cs_endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cs_host_exempt_key);
	__type(value, __u8);
} cs_host_exempt SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CS_MAX_ENDPOINTS);
	__type(key, __u32);
	__type(value, __u32);
} cs_endpoints_by_id SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 524288);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cs_fence_key);
	__type(value, __u8);
} cs_fences SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u64);
} cs_uses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cs_addr);
	__type(value, struct cs_ipcache);
} cs_ipcache SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cs_prefix_key);
	__type(value, struct cs_prefix);
} cs_prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cs_class_key);
	__type(value, struct cs_class);
} cs_classes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 524288);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cs_policy_key);
	__type(value, struct cs_policy);
} cs_policy SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 524288);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cs_auth_key);
	__type(value, struct cs_auth);
} cs_auth SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct cs_flow_auth_key);
	__type(value, struct cs_flow_auth);
} cs_flow_auth SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 262144);
	__type(key, struct cs_flow_key);
	__type(value, struct cs_flow);
} cs_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct cs_fragment_key);
	__type(value, struct cs_fragment);
} cs_fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct cs_flow_key);
	__type(value, struct cs_waiting);
} cs_waiting SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} cs_last_held SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cs_clock);
} cs_clock SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 512);
	__type(key, __u32);
	__type(value, struct cs_counter);
} cs_drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 512);
	__type(key, __u32);
	__type(value, struct cs_counter);
} cs_observed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct cs_pair_key);
	__type(value, struct cs_counter);
} cs_pair_drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u64);
} cs_hold_taken SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u64);
} cs_hold_returned SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} cs_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct cs_signal_key);
	__type(value, struct cs_signal);
} cs_signals SEC(".maps");

/* Never NULL, but the verifier wants the check: callers drop. */
static __always_inline const struct cs_config *config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&cs_config, &zero);
}

static __always_inline const struct cs_endpoint *endpoint_of_interface(__u32 ifindex)
{
	return bpf_map_lookup_elem(&cs_endpoints, &ifindex);
}

/* So that a stamp or a held packet's source leads back to the endpoint. One truth stays in cs_endpoints. */
static __always_inline void endpoint_remember(const struct cs_endpoint *ep, __u32 ifindex)
{
	__u32 id = ep->endpoint;
	__u32 *known = bpf_map_lookup_elem(&cs_endpoints_by_id, &id);

	if (known && *known != ifindex)
		*known = ifindex;
}

/* The endpoint with this id if it is still there; ids are not used again while a packet may carry them. */
static __always_inline const struct cs_endpoint *endpoint_by_id(__u32 id, __u32 *ifindex)
{
	const __u32 *known = bpf_map_lookup_elem(&cs_endpoints_by_id, &id);
	const struct cs_endpoint *ep;

	if (!known)
		return NULL;
	*ifindex = *known;
	ep = endpoint_of_interface(*ifindex);
	return ep && ep->endpoint == id ? ep : NULL;
}

#endif
