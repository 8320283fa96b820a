/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What does an ICMP message say (RFC 792, RFC 4443, RFC 4861, RFC 2710, RFC 3810)? */
#ifndef CS_ICMP_H
#define CS_ICMP_H

#include "packet.h"

#define CS_ICMP_ECHO_REPLY 0
#define CS_ICMP_UNREACHABLE 3
#define CS_ICMP_ECHO 8
#define CS_ICMP_TIME_EXCEEDED 11
#define CS_ICMP_PARAMETER_PROBLEM 12
#define CS_ICMPV6_ERROR_FIRST 1
#define CS_ICMPV6_ERROR_LAST 4
#define CS_ICMPV6_ECHO 128
#define CS_ICMPV6_ECHO_REPLY 129
#define CS_MLD_QUERY 130
#define CS_MLD_REPORT 131
#define CS_MLD_DONE 132
#define CS_ND_ROUTER_SOLICITATION 133
#define CS_ND_ROUTER_ADVERTISEMENT 134
#define CS_ND_NEIGHBOUR_SOLICITATION 135
#define CS_ND_NEIGHBOUR_ADVERTISEMENT 136
#define CS_MLD_REPORT_V2 143

/* The identifier stands for the asking side's port; the request's type for the other's, as policy names ICMP by type. */
static __always_inline bool icmp_echo_ports(__u8 type, __be16 id, bool v6, __be16 *sport, __be16 *dport)
{
	__u8 request = v6 ? CS_ICMPV6_ECHO : CS_ICMP_ECHO;

	if (type == request) {
		*sport = id;
		*dport = bpf_htons(request);
		return true;
	}
	*sport = bpf_htons(request);
	*dport = id;
	return type == (v6 ? CS_ICMPV6_ECHO_REPLY : CS_ICMP_ECHO_REPLY);
}

static __always_inline bool icmp_is_error(__u8 type, bool v6)
{
	if (v6)
		return type >= CS_ICMPV6_ERROR_FIRST && type <= CS_ICMPV6_ERROR_LAST;
	return type == CS_ICMP_UNREACHABLE || type == CS_ICMP_TIME_EXCEEDED || type == CS_ICMP_PARAMETER_PROBLEM;
}

/* header: of CS_ICMP_HEADER bytes. Returns a drop reason, or 0. */
static __always_inline __u8 icmp_read(struct cs_packet *p, const __u8 *header, bool v6)
{
	__u8 type = header[0], kind;

	p->icmp_type = type;
	if (icmp_echo_ports(type, *(const __be16 *)(header + 4), v6, &p->sport, &p->dport)) {
		p->step = type == (v6 ? CS_ICMPV6_ECHO : CS_ICMP_ECHO) ? CS_STEP_ECHO : CS_STEP_ECHO_REPLY;
		if (p->step == CS_STEP_ECHO)
			p->kind |= CS_PKT_OPENS;
		return 0;
	}
	p->sport = 0;
	p->dport = 0;
	if (v6 && ((type >= CS_MLD_QUERY && type <= CS_MLD_DONE) || type == CS_MLD_REPORT_V2)) {
		p->kind |= CS_PKT_MEMBERSHIP;
		return CS_DROP_MEMBERSHIP;
	}
	if (icmp_is_error(type, v6))
		kind = CS_PKT_ERROR;
	else if (v6 && type >= CS_ND_ROUTER_SOLICITATION && type <= CS_ND_NEIGHBOUR_ADVERTISEMENT)
		kind = CS_PKT_NEIGHBOUR;
	else
		return CS_DROP_ICMP_TYPE;
	/* Neither has a reason to be longer than a packet may be everywhere (RFC 6980 for neighbour discovery). */
	if (p->kind & CS_PKT_FIRST)
		return CS_DROP_FRAGMENT;
	p->kind |= kind;
	return 0;
}

#endif
