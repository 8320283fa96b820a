/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What every part needs: types, helpers, the contract with the agent. */
#ifndef CS_BASE_H
#define CS_BASE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "../abi/abi.h"
#include "../abi/drop_reasons.h"

/* The next program on the hook has its say; alone, the packet passes. */
#define CS_PASS TC_ACT_UNSPEC
#define CS_SHOT TC_ACT_SHOT

static __always_inline void addr_copy(struct cs_addr *to, const struct cs_addr *from)
{
	/* Both lie in structs that are aligned to 4 or more. */
	__u32 *t = (__u32 *)to->b;
	const __u32 *f = (const __u32 *)from->b;

	t[0] = f[0];
	t[1] = f[1];
	t[2] = f[2];
	t[3] = f[3];
}

static __always_inline void addr_from_ipv4(struct cs_addr *to, __be32 from)
{
	__u32 *t = (__u32 *)to->b;

	t[0] = 0;
	t[1] = 0;
	t[2] = bpf_htonl(0xffff);
	t[3] = from;
}

static __always_inline bool addr_equal(const struct cs_addr *a, const struct cs_addr *b)
{
	const __u32 *x = (const __u32 *)a->b, *y = (const __u32 *)b->b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3];
}

static __always_inline bool addr_is_mapped(const struct cs_addr *a)
{
	const __u32 *x = (const __u32 *)a->b;

	return x[0] == 0 && x[1] == 0 && x[2] == bpf_htonl(0xffff);
}

static __always_inline bool addr_is_unspecified(const struct cs_addr *a)
{
	const __u32 *x = (const __u32 *)a->b;

	return !(x[0] | x[1] | x[2] | x[3]);
}

/* fe80::/10 */
static __always_inline bool addr_is_link_local(const struct cs_addr *a)
{
	return a->b[0] == 0xfe && (a->b[1] & 0xc0) == 0x80;
}

/* ff00::/8 or 224.0.0.0/4 */
static __always_inline bool addr_is_multicast(const struct cs_addr *a)
{
	return addr_is_mapped(a) ? (a->b[12] & 0xf0) == 224 : a->b[0] == 0xff;
}

/* ff02::/16 or 224.0.0.0/24: never leaves the link */
static __always_inline bool addr_is_link_local_multicast(const struct cs_addr *a)
{
	if (addr_is_mapped(a))
		return a->b[12] == 224 && a->b[13] == 0 && a->b[14] == 0;
	return a->b[0] == 0xff && a->b[1] == 0x02;
}

#endif
