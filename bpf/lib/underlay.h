/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which addresses does a frame on the underlay carry? Nothing more is asked of the node's own traffic, which may have fragments
 * and headers that no workload's may. A VLAN tag hides no address, whether the card took it off or not. */
#ifndef CS_UNDERLAY_H
#define CS_UNDERLAY_H

#include "parse.h"

#define CS_TAGS_MAX 2 /* IEEE 802.1Q, and 802.1ad around it */
#define CS_TAG_LENGTH 4

static __always_inline bool is_tag(__be16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD);
}

/* The EtherType behind the tags, and in *off where what it names begins. A tag again: there are too many. */
static __always_inline __be16 behind_tags(struct __sk_buff *skb, __u32 *off)
{
	__be16 tag[2] = { 0, skb->protocol };
	int tags = skb->vlan_present ? 1 : 0;

	for (int i = 0; i < CS_TAGS_MAX && is_tag(tag[1]) && tags < CS_TAGS_MAX; i++, tags++) {
		if (bpf_skb_load_bytes(skb, *off, tag, sizeof(tag)))
			return 0;
		*off += CS_TAG_LENGTH;
	}
	return tag[1];
}

/* Not IP, and may carry it: a workload's packets are not looked for in there. */
static __always_inline bool is_carrier(__be16 type)
{
	switch (bpf_ntohs(type)) {
	case 0x8847: /* MPLS, RFC 3032 and RFC 5332 */
	case 0x8848:
	case 0x8864: /* PPPoE, RFC 2516 */
	case 0x6558: /* a frame in a frame */
	case 0x88e7: /* IEEE 802.1ah */
	case 0x22f3: /* TRILL, RFC 6325 */
	case 0x894f: /* NSH, RFC 8300 */
	case 0x4305: /* B.A.T.M.A.N. */
	case 0x9100: /* tags as they were before 802.1ad */
	case 0x9200:
	case 0x9300:
		return true;
	default:
		return false;
	}
}

/* type: what the kernel or a tag says it is. Returns a drop reason if not even the addresses are known. */
static __always_inline __u8 parse_addresses(struct __sk_buff *skb, __be16 type, __u32 off, struct cs_packet *p)
{
	__u32 length;

	packet_linearise(skb, off + (type == bpf_htons(ETH_P_IP) ? sizeof(struct cs_ipv4) : sizeof(struct cs_ipv6)));
	if (type == bpf_htons(ETH_P_IP))
		return parse_ipv4(skb, off, p, &length);
	if (type == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(skb, off, p, &length);
	return CS_DROP_UNKNOWN_L3;
}

enum cs_frame {
	CS_FRAME_OTHER, /* not IP: none of ours */
	CS_FRAME_IP,	/* p->src and p->dst are known */
	CS_FRAME_BAD,	/* *reason says why */
};

static __always_inline enum cs_frame parse_frame(struct __sk_buff *skb, struct cs_packet *p, __u8 *reason)
{
	__u32 off = ETH_HLEN;
	__be16 type = behind_tags(skb, &off);

	if (type == bpf_htons(ETH_P_IP) || type == bpf_htons(ETH_P_IPV6))
		*reason = parse_addresses(skb, type, off, p);
	else if (is_tag(type))
		*reason = CS_DROP_VLAN;
	else if (is_carrier(type))
		*reason = CS_DROP_UNKNOWN_L3;
	else
		return CS_FRAME_OTHER;
	return *reason ? CS_FRAME_BAD : CS_FRAME_IP;
}

#endif
