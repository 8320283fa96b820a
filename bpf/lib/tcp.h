/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What does a TCP segment say (RFC 9293, section 3.1)? */
#ifndef CS_TCP_H
#define CS_TCP_H

#include "packet.h"

#define CS_TCP_FIN 0x01
#define CS_TCP_SYN 0x02
#define CS_TCP_RST 0x04
#define CS_TCP_ACK 0x10
#define CS_TCP_URG 0x20

#define CS_TCP_MAY(flags) (1ull << (flags))
/* What a stack sends, with PSH and the bits of congestion control (ECE, CWR) left out. Anything else is a probe. */
#define CS_TCP_VALID                                                                                                   \
	(CS_TCP_MAY(CS_TCP_SYN) | CS_TCP_MAY(CS_TCP_SYN | CS_TCP_URG) | CS_TCP_MAY(CS_TCP_SYN | CS_TCP_ACK) |          \
	 CS_TCP_MAY(CS_TCP_RST) | CS_TCP_MAY(CS_TCP_RST | CS_TCP_ACK) | CS_TCP_MAY(CS_TCP_FIN | CS_TCP_ACK) |          \
	 CS_TCP_MAY(CS_TCP_FIN | CS_TCP_ACK | CS_TCP_URG) | CS_TCP_MAY(CS_TCP_ACK) |                                   \
	 CS_TCP_MAY(CS_TCP_ACK | CS_TCP_URG))

/* flags: the header's byte 13. Returns a drop reason, or 0. */
static __always_inline __u8 tcp_read(struct cs_packet *p, __u8 flags)
{
	flags &= CS_TCP_FIN | CS_TCP_SYN | CS_TCP_RST | CS_TCP_ACK | CS_TCP_URG;
	if (!(CS_TCP_VALID >> flags & 1))
		return CS_DROP_TCP_FLAGS;
	if (!(flags & (CS_TCP_FIN | CS_TCP_SYN | CS_TCP_RST))) {
		p->step = CS_STEP_TCP_ACK;
	} else if (flags & CS_TCP_RST) {
		p->step = CS_STEP_TCP_RST;
	} else if (flags & CS_TCP_FIN) {
		p->step = CS_STEP_TCP_FIN;
	} else if (flags & CS_TCP_ACK) {
		p->step = CS_STEP_TCP_SYN_ACK;
	} else {
		p->step = CS_STEP_TCP_SYN;
		p->kind |= CS_PKT_OPENS;
	}
	return 0;
}

#endif
