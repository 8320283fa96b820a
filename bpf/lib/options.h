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

struct cs_options {
	__u8 bytes[64]; /* a power of two: an index is masked, not checked */
	__u32 length;	/* of all options */
	__u32 next;	/* where the next one begins */
	__u32 reason;
};

/* One option. 1: no more are to be read. */
static long option_read(__u32 i, struct cs_options *o)
{
	__u32 at = o->next;
	__u8 type = o->bytes[at & 63], size = o->bytes[(at + 1) & 63];

	if (at >= o->length || type == CS_OPTION_END)
		return 1;
	if (type == CS_OPTION_NOP) {
		o->next = at + 1;
		return 0;
	}
	if (size < 2 || at + size > o->length) {
		o->reason = CS_DROP_INVALID_PACKET;
		return 1;
	}
	if (type == CS_OPTION_LSRR || type == CS_OPTION_SSRR) {
		o->reason = CS_DROP_IP_OPTIONS;
		return 1;
	}
	o->next = at + size;
	return 0;
}

/* off: of the first option. length: of all. */
__noinline int options_refusal(struct __sk_buff *skb, __u32 off, __u32 length)
{
	struct cs_options o = {};

	if (length < 4 || length > CS_OPTIONS_MAX || bpf_skb_load_bytes(skb, off, o.bytes, length))
		return CS_DROP_INVALID_PACKET;
	o.length = length;
	bpf_loop(CS_OPTIONS_MAX, option_read, &o, 0);
	return o.reason;
}

#endif
