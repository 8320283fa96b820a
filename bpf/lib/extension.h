/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where does the transport header of an IPv6 packet begin, behind its extension headers (RFC 8200, section 4)? */
#ifndef CS_EXTENSION_H
#define CS_EXTENSION_H

#include "packet.h"

#define CS_EXTENSIONS_MAX 8

#define CS_PROTO_HIP 139   /* RFC 7401 */
#define CS_PROTO_SHIM6 140 /* RFC 5533 */

/* The header chain, from the first header behind IPv6's own. */
struct cs_chain {
	__u32 off; /* of the header `proto`, from skb->data */
	__u32 end; /* of the packet, as its length field says */
	__u32 fragment_id;
	__u32 fragment_start; /* where the fragment's data begin; 0: not a fragment */
	__u16 fragment_offset;
	__u8 more; /* fragments follow */
	__u8 proto;
};

static __always_inline bool is_extension(__u8 proto)
{
	switch (proto) {
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_FRAGMENT:
	case IPPROTO_AH:
	case IPPROTO_DSTOPTS:
	case IPPROTO_MH:
	case CS_PROTO_HIP:
	case CS_PROTO_SHIM6:
		return true;
	default:
		return false;
	}
}

/* Walks to the transport header, or to the data of a fragment that is not the first. Returns a drop reason, or 0.
 * Verified once by itself: few packets have extension headers, and the walk is long. */
__noinline int extension_walk(struct __sk_buff *skb, struct cs_chain *chain)
{
	__u8 header[8];
	bool fragment_seen = false;

	if (!chain)
		return CS_DROP_INVALID_PACKET;
	for (int i = 0; i < CS_EXTENSIONS_MAX; i++) {
		__u32 size;

		if (!is_extension(chain->proto))
			return 0;
		if (chain->off > 0xffff || chain->off + sizeof(header) > chain->end ||
		    bpf_skb_load_bytes(skb, chain->off, header, sizeof(header)))
			return CS_DROP_INVALID_PACKET;
		size = (header[1] + 1) * 8;
		switch (chain->proto) {
		case IPPROTO_HOPOPTS:
			if (i) /* section 4.1: directly behind the IPv6 header or not at all */
				return CS_DROP_IPV6_EXTENSION;
			break;
		case IPPROTO_DSTOPTS:
			break;
		case IPPROTO_ROUTING: /* type 0: RFC 5095. Any other that still has somewhere to go is a source route too. */
			if (header[2] == 0 || header[3])
				return CS_DROP_IP_OPTIONS;
			break;
		case IPPROTO_FRAGMENT:
			if (fragment_seen)
				return CS_DROP_IPV6_EXTENSION;
			fragment_seen = true;
			size = sizeof(header);
			chain->more = header[3] & 1;
			chain->fragment_offset = bpf_ntohs(*(__be16 *)(header + 2)) & ~7;
			/* Neither offset nor more: an atomic fragment, which is none (RFC 6946). */
			if (!chain->more && !chain->fragment_offset)
				break;
			chain->fragment_id = *(__be32 *)(header + 4);
			chain->fragment_start = chain->off + size;
			break;
		default:
			return CS_DROP_IPV6_EXTENSION;
		}
		chain->off += size;
		if (chain->off > chain->end)
			return CS_DROP_INVALID_PACKET;
		chain->proto = header[0];
		if (chain->fragment_offset)
			return 0;
	}
	return is_extension(chain->proto) ? CS_DROP_IPV6_EXTENSION : 0;
}

#endif
