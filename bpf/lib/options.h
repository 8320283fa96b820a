/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Do the options of an IPv4 header (RFC 791, section 3.1) make the packet go where its destination address does not say? */
#ifndef CS_OPTIONS_H
#define CS_OPTIONS_H

#include "packet.h"

#define CS_OPTIONS_MAX 40
#define CS_OPTION_END 0
#define CS_OPTION_NOP 1
#define CS_OPTION_LSRR 131 /* loose and strict source route; RFC 7126, section 4.3, says to drop both */
#define CS_OPTION_SSRR 137

/* off: of the first option. length: of all. Verified once by itself: few packets have options, and the walk is long. */
__noinline int options_refusal(struct __sk_buff *skb, __u32 off, __u32 length)
{
	__u8 options[CS_OPTIONS_MAX + 1] = {};
	__u32 next = 0;

	if (length < 4 || length > CS_OPTIONS_MAX || bpf_skb_load_bytes(skb, off, options, length))
		return CS_DROP_INVALID_PACKET;
	/* Byte by byte, so that the verifier knows each index. */
	for (__u32 i = 0; i < CS_OPTIONS_MAX; i++) {
		__u8 type = options[i], size = options[i + 1];

		if (i >= length || (i == next && type == CS_OPTION_END))
			return 0;
		if (i != next)
			continue;
		if (type == CS_OPTION_NOP) {
			next = i + 1;
			continue;
		}
		if (size < 2 || i + size > length)
			return CS_DROP_INVALID_PACKET;
		if (type == CS_OPTION_LSRR || type == CS_OPTION_SSRR)
			return CS_DROP_IP_OPTIONS;
		next = i + size;
	}
	return 0;
}

#endif
