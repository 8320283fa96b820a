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

#define CS_QUOTED_TRANSPORT 8 /* that much of the transport header is quoted at least (RFC 792) */

/* The packet that an error quotes, as a flow of the endpoint. */
struct cs_quote {
	struct cs_flow_key key;
	__u32 fragment_id;
	__u32 transport; /* offset from skb->data */
	__u32 end;	 /* of the packet that quotes: behind it lies only the frame's padding */
	__u8 later;	 /* a fragment without ports: fragment_id says of which datagram */
	__u8 out;	 /* the endpoint sent it */
	__u8 pad[6];
};

static __always_inline void quote_put(struct cs_quote *q, __be16 sport, __be16 dport)
{
	q->key.lport = q->out ? sport : dport;
	q->key.rport = q->out ? dport : sport;
}

/* The first 8 bytes of the quoted transport header: ports, or type and identifier of an echo. */
static __always_inline bool quote_ports(const struct __sk_buff *skb, struct cs_quote *q)
{
	__be16 words[4], sport, dport;

	if (bpf_skb_load_bytes(skb, q->transport, words, sizeof(words)))
		return false;
	switch (q->key.proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		sport = words[0];
		dport = words[1];
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (!icmp_echo_ports(*(__u8 *)words, words[2], q->key.proto == IPPROTO_ICMPV6, &sport, &dport))
			return false;
		break;
	default:
		return false;
	}
	quote_put(q, sport, dport);
	return true;
}

static __always_inline bool quote_ipv4(const struct __sk_buff *skb, __u32 off, struct cs_quote *q)
{
	struct cs_ipv4 ip;

	if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) || ip.version_ihl >> 4 != 4 || (ip.version_ihl & 0xf) < 5)
		return false;
	addr_from_ipv4(&q->key.local, q->out ? ip.src : ip.dst);
	addr_from_ipv4(&q->key.remote, q->out ? ip.dst : ip.src);
	q->key.proto = ip.protocol;
	q->later = (ip.fragment & bpf_htons(CS_IPV4_FRAGMENT_OFFSET)) != 0;
	q->fragment_id = ip.id;
	q->transport = off + (ip.version_ihl & 0xf) * 4;
	return true;
}

static __always_inline bool quote_ipv6(struct __sk_buff *skb, __u32 off, struct cs_quote *q)
{
	struct cs_chain chain = { .end = q->end };
	__u8 head[8];

	if (bpf_skb_load_bytes(skb, off, head, sizeof(head)) || head[0] >> 4 != 6 ||
	    bpf_skb_load_bytes(skb, off + 8, q->out ? &q->key.local : &q->key.remote, sizeof(q->key.local)) ||
	    bpf_skb_load_bytes(skb, off + 24, q->out ? &q->key.remote : &q->key.local, sizeof(q->key.local)))
		return false;
	if (addr_is_mapped(&q->key.local) || addr_is_mapped(&q->key.remote))
		return false;
	chain.proto = head[6];
	chain.off = off + sizeof(struct cs_ipv6);
	if (extension_walk(skb, &chain))
		return false;
	q->key.proto = chain.proto;
	q->later = chain.fragment_offset != 0;
	q->fragment_id = chain.fragment_id;
	q->transport = chain.off;
	return true;
}

/* The first fragment of the same datagram passed here, and left its ports. */
__noinline int quote_of_datagram(struct cs_quote *q)
{
	struct cs_fragment_key key;
	const struct cs_fragment *f;

	if (!q)
		return 0;
	fragment_key(&key, q->out ? &q->key.local : &q->key.remote, q->out ? &q->key.remote : &q->key.local,
		     q->fragment_id, q->key.proto, q->key.ifindex, q->out ? CS_EGRESS : CS_INGRESS);
	f = fragment_find(&key, clock_exact());
	if (!f)
		return 0;
	q->key.proto = f->proto;
	quote_put(q, f->sport, f->dport);
	return 1;
}

/* Coming in, an error quotes what the endpoint sent; going out, what it received. */
static __always_inline bool quote_read(struct __sk_buff *skb, const struct cs_packet *p, const struct cs_case *c,
				       struct cs_quote *q)
{
	__u32 off = p->transport + CS_ICMP_HEADER;

	q->key.ifindex = c->key.ifindex;
	q->end = p->end;
	if (off + (p->proto == IPPROTO_ICMP ? sizeof(struct cs_ipv4) : sizeof(struct cs_ipv6)) > p->end)
		return false;
	q->out = c->direction == CS_INGRESS;
	if (!(p->proto == IPPROTO_ICMP ? quote_ipv4(skb, off, q) : quote_ipv6(skb, off, q)))
		return false;
	if (!q->later && q->transport + CS_QUOTED_TRANSPORT > p->end)
		return false;
	return q->later ? quote_of_datagram(q) : quote_ports(skb, q);
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
__noinline int related_refusal(struct __sk_buff *skb, struct cs_packet *p, struct cs_case *c)
{
	const struct cs_config *cfg = config();
	struct cs_quote q = {};
	struct cs_owner sender;
	struct cs_flow *flow;
	bool other_side;

	if (!cfg || !p || !c || !quote_read(skb, p, c, &q))
		return CS_DROP_ICMP_TYPE;
	other_side = addr_equal(&q.key.remote, &c->key.remote);
	if (!addr_equal(&q.key.local, &c->key.local) || (!q.out && !other_side))
		return CS_DROP_ICMP_TYPE;
	flow = flow_find(&q.key, c->now);
	if (!flow || flow->endpoint != c->endpoint || !flow_is_valid(flow, cfg, c->now))
		return CS_DROP_ICMP_TYPE;
	if (!q.out)
		return 0;
	owner_of(&c->key.remote, &sender);
	return error_origin_ok(cfg, c, flow, &sender, other_side) ? 0 : CS_DROP_ICMP_TYPE;
}

#endif
