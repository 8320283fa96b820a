/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP errors: they pass with the flow whose packet they quote (RFC 792, RFC 4443), so that path MTU discovery works,
 * and with nothing else. */
#ifndef CS_RELATED_H
#define CS_RELATED_H

#include "extension.h"
#include "flow.h"
#include "fragment.h"
#include "icmp.h"
#include "identity.h"
#include "origin.h"

struct cs_quote {
	struct cs_addr src, dst;
	__be16 sport, dport;
	__u8 proto;
	__u8 later; /* a fragment without ports: fragment_id says of which datagram */
	__u32 fragment_id;
	__u32 transport; /* offset from skb->data */
} __attribute__((aligned(8)));

/* The first 8 bytes of the quoted transport header: ports, or type and identifier of an echo. */
static __always_inline bool quote_ports(const struct __sk_buff *skb, struct cs_quote *q)
{
	__be16 words[4];

	if (bpf_skb_load_bytes(skb, q->transport, words, sizeof(words)))
		return false;
	switch (q->proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		q->sport = words[0];
		q->dport = words[1];
		return true;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return icmp_echo_ports(*(__u8 *)words, words[2], q->proto == IPPROTO_ICMPV6, &q->sport, &q->dport);
	default:
		return false;
	}
}

static __always_inline bool quote_ipv4(const struct __sk_buff *skb, __u32 off, struct cs_quote *q)
{
	struct cs_ipv4 ip;

	if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) || ip.version_ihl >> 4 != 4 || (ip.version_ihl & 0xf) < 5)
		return false;
	addr_from_ipv4(&q->src, ip.src);
	addr_from_ipv4(&q->dst, ip.dst);
	q->proto = ip.protocol;
	q->later = (ip.fragment & bpf_htons(CS_IPV4_FRAGMENT_OFFSET)) != 0;
	q->fragment_id = ip.id;
	q->transport = off + (ip.version_ihl & 0xf) * 4;
	return true;
}

static __always_inline bool quote_ipv6(struct __sk_buff *skb, __u32 off, struct cs_quote *q)
{
	struct cs_chain chain = { .end = skb->len };
	struct cs_ipv6 ip;

	if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) || ip.version_class >> 4 != 6)
		return false;
	addr_copy(&q->src, &ip.src);
	addr_copy(&q->dst, &ip.dst);
	if (addr_is_mapped(&q->src) || addr_is_mapped(&q->dst))
		return false;
	chain.proto = ip.next_header;
	chain.off = off + sizeof(ip);
	if (extension_walk(skb, &chain))
		return false;
	q->proto = chain.proto;
	q->later = chain.fragment_offset != 0;
	q->fragment_id = chain.fragment_id;
	q->transport = chain.off;
	return true;
}

/* direction: of the packet that is quoted. */
static __always_inline bool quote_of_datagram(struct cs_quote *q, __u32 ifindex, __u32 direction, __u64 now)
{
	struct cs_fragment_key key;
	const struct cs_fragment *f;

	fragment_key(&key, &q->src, &q->dst, q->fragment_id, q->proto, ifindex, direction);
	f = fragment_find(&key, now);
	if (!f)
		return false;
	q->proto = f->proto;
	q->sport = f->sport;
	q->dport = f->dport;
	return true;
}

static __always_inline bool quote_read(struct __sk_buff *skb, const struct cs_packet *p, const struct cs_case *c,
				       struct cs_quote *q)
{
	__u32 off = p->transport + CS_ICMP_HEADER;

	if (!(p->proto == IPPROTO_ICMP ? quote_ipv4(skb, off, q) : quote_ipv6(skb, off, q)))
		return false;
	if (q->later)
		return quote_of_datagram(q, c->key.ifindex, c->direction == CS_EGRESS ? CS_INGRESS : CS_EGRESS, c->now);
	return quote_ports(skb, q);
}

/* The sender of an error to the endpoint: the flow's other side, whose packets carry the flow's origin; this host, which
 * routes; or, for a flow that needed no proof, any router that is not a workload. */
static __always_inline bool error_origin_ok(const struct cs_config *cfg, const struct cs_case *c, const struct cs_flow *flow,
					    const struct cs_owner *sender, bool other_side)
{
	if (other_side)
		return flow->origin == c->mark >> 16;
	if (CS_MARK_KIND(c->mark) != CS_MARK_NONE || owner_is_workload(sender))
		return false;
	return flow->auth_type == CS_AUTH_NONE || sender->identity == CS_ID_HOST;
}

/* An error needs a flow whose verdict holds now; it never makes the flow be judged, held or kept alive. */
static __noinline int related_refusal(struct __sk_buff *skb, const struct cs_packet *p, const struct cs_case *c)
{
	const struct cs_config *cfg = config();
	struct cs_flow_key key = {};
	struct cs_quote q = {};
	struct cs_owner sender;
	struct cs_flow *flow;
	bool out = c->direction == CS_EGRESS;

	if (!cfg || !quote_read(skb, p, c, &q))
		return CS_DROP_ICMP_TYPE;
	/* Coming in, it quotes what the endpoint sent; going out, what the endpoint received. */
	addr_copy(&key.local, out ? &q.dst : &q.src);
	addr_copy(&key.remote, out ? &q.src : &q.dst);
	key.lport = out ? q.dport : q.sport;
	key.rport = out ? q.sport : q.dport;
	key.proto = q.proto;
	key.ifindex = c->key.ifindex;
	if (!addr_equal(&key.local, &c->key.local) || (out && !addr_equal(&key.remote, &c->key.remote)))
		return CS_DROP_ICMP_TYPE;
	flow = flow_find(&key, c->now);
	if (!flow || flow->endpoint != c->endpoint || !flow_is_valid(flow, cfg, c->now))
		return CS_DROP_ICMP_TYPE;
	if (out)
		return 0;
	owner_of(&c->key.remote, &sender);
	return error_origin_ok(cfg, c, flow, &sender, addr_equal(&key.remote, &c->key.remote)) ? 0 : CS_DROP_ICMP_TYPE;
}

#endif
