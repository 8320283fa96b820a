/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What passes although no policy was asked: a short list, off unless the configuration turns it on. */
#ifndef CS_EXEMPT_H
#define CS_EXEMPT_H

#include "case.h"
#include "identity.h"
#include "origin.h"

#define CS_DHCP_SERVER bpf_htons(67) /* RFC 2131, section 4.1 */
#define CS_DHCP_CLIENT bpf_htons(68)
#define CS_DHCPV6_CLIENT bpf_htons(546) /* RFC 8415, section 7.2 */
#define CS_DHCPV6_SERVER bpf_htons(547)

static __always_inline bool addr_is_limited_broadcast(const struct cs_addr *a)
{
	return addr_is_mapped(a) && ((const __u32 *)a->b)[3] == 0xffffffff;
}

/* 0.0.0.0 */
static __always_inline bool addr_is_unspecified_ipv4(const struct cs_addr *a)
{
	return addr_is_mapped(a) && ((const __u32 *)a->b)[3] == 0;
}

/* ff02::1:2, All_DHCP_Relay_Agents_and_Servers: never leaves the link */
static __always_inline bool addr_is_dhcpv6_servers(const struct cs_addr *a)
{
	const __u32 *x = (const __u32 *)a->b;

	return x[0] == bpf_htonl(0xff020000) && !x[1] && !x[2] && x[3] == bpf_htonl(0x00010002);
}

static __always_inline bool addr_is_own_host(const struct cs_addr *addr)
{
	struct cs_owner o;

	owner_of(addr, &o);
	return owner_is_own_host(&o);
}

/* A whole UDP datagram between these ports, as the endpoint sees them. */
static __always_inline bool is_dhcp(const struct cs_packet *p, const struct cs_case *c, __be16 client, __be16 server)
{
	return !p->reason && !(p->kind & CS_PKT_FRAGMENT) && p->proto == IPPROTO_UDP && c->key.lport == client &&
	       c->key.rport == server;
}

/* To the link, which no router passes on, or to this host: that is the only server it may reach. Verified once by itself. */
__noinline int dhcp_leaves(struct cs_packet *p, struct cs_case *c)
{
	struct cs_owner own;

	if (!p || !c)
		return 0;
	if (is_dhcp(p, c, CS_DHCPV6_CLIENT, CS_DHCPV6_SERVER))
		return addr_is_link_local(&p->src) && addr_is_dhcpv6_servers(&p->dst);
	if (!is_dhcp(p, c, CS_DHCP_CLIENT, CS_DHCP_SERVER) || !addr_is_mapped(&p->src))
		return 0;
	if (!addr_is_unspecified_ipv4(&p->src)) {
		owner_of(&p->src, &own);
		if (!owner_is_endpoint(&own, c->endpoint))
			return 0;
	}
	return addr_is_limited_broadcast(&p->dst) || addr_is_own_host(&p->dst);
}

/* Only what this host made itself has no mark: another endpoint's packets carry a stamp, and nothing of this kind is routed. */
__noinline int dhcp_enters(struct cs_packet *p, struct cs_case *c)
{
	struct cs_owner own;

	if (!p || !c || CS_MARK_KIND(c->mark) != CS_MARK_NONE)
		return 0;
	if (is_dhcp(p, c, CS_DHCPV6_CLIENT, CS_DHCPV6_SERVER))
		return addr_is_link_local(&p->src) && addr_is_link_local(&p->dst);
	if (!is_dhcp(p, c, CS_DHCP_CLIENT, CS_DHCP_SERVER) || !addr_is_mapped(&p->src) || !addr_is_own_host(&p->src))
		return 0;
	owner_of(&p->dst, &own);
	return addr_is_limited_broadcast(&p->dst) || owner_is_endpoint(&own, c->endpoint);
}

static __always_inline bool dhcp_may_leave(const struct cs_config *cfg, struct cs_packet *p, struct cs_case *c)
{
	return (cfg->exempt & CS_EXEMPT_DHCP) && dhcp_leaves(p, c);
}

static __always_inline bool dhcp_may_enter(const struct cs_config *cfg, struct cs_packet *p, struct cs_case *c)
{
	return (cfg->exempt & CS_EXEMPT_DHCP) && dhcp_enters(p, c);
}

/* A flow that this host opened to one of its endpoints, as a kubelet probes: judged in that direction, answers are part of it. */
static __always_inline bool is_host_probe(const struct cs_config *cfg, const struct cs_case *c, const struct cs_owner *remote)
{
	return (cfg->exempt & CS_EXEMPT_HOST_PROBES) && c->begun == CS_INGRESS && owner_is_own_host(remote);
}

#endif
