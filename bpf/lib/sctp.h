/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What does an SCTP packet say (RFC 9260)? Its first chunk decides: those that begin or end an association come first or alone. */
#ifndef CS_SCTP_H
#define CS_SCTP_H

#include "packet.h"

/* Section 3.2, and RFC 8260 for I-DATA */
enum cs_sctp_chunk {
	CS_SCTP_DATA = 0,
	CS_SCTP_INIT = 1,
	CS_SCTP_INIT_ACK = 2,
	CS_SCTP_SACK = 3,
	CS_SCTP_HEARTBEAT = 4,
	CS_SCTP_HEARTBEAT_ACK = 5,
	CS_SCTP_ABORT = 6,
	CS_SCTP_SHUTDOWN = 7,
	CS_SCTP_SHUTDOWN_ACK = 8,
	CS_SCTP_COOKIE_ECHO = 10,
	CS_SCTP_COOKIE_ACK = 11,
	CS_SCTP_SHUTDOWN_COMPLETE = 14,
	CS_SCTP_I_DATA = 64,
};

static __always_inline __u8 sctp_step(__u8 chunk)
{
	switch (chunk) {
	case CS_SCTP_DATA:
	case CS_SCTP_SACK:
	case CS_SCTP_I_DATA:
		return CS_STEP_SCTP_DATA;
	case CS_SCTP_INIT:
		return CS_STEP_SCTP_INIT;
	case CS_SCTP_INIT_ACK:
		return CS_STEP_SCTP_INIT_ACK;
	case CS_SCTP_HEARTBEAT:
		return CS_STEP_SCTP_HEARTBEAT;
	case CS_SCTP_HEARTBEAT_ACK:
		return CS_STEP_SCTP_HEARTBEAT_ACK;
	case CS_SCTP_ABORT:
		return CS_STEP_SCTP_ABORT;
	case CS_SCTP_SHUTDOWN:
		return CS_STEP_SCTP_SHUTDOWN;
	case CS_SCTP_SHUTDOWN_ACK:
		return CS_STEP_SCTP_SHUTDOWN_ACK;
	case CS_SCTP_COOKIE_ECHO:
		return CS_STEP_SCTP_COOKIE_ECHO;
	case CS_SCTP_COOKIE_ACK:
		return CS_STEP_SCTP_COOKIE_ACK;
	case CS_SCTP_SHUTDOWN_COMPLETE:
		return CS_STEP_SCTP_SHUTDOWN_COMPLETE;
	default:
		return CS_STEP_SCTP_OTHER;
	}
}

/* header: of CS_SCTP_HEADER bytes. length: of the SCTP packet; of a first fragment its part. Returns a drop reason, or 0. */
static __always_inline __u8 sctp_read(struct cs_packet *p, const __u8 *header, __u32 length)
{
	__u32 tag = *(const __be32 *)(header + 4);
	__u32 size = bpf_ntohs(*(const __be16 *)(header + 14));
	bool whole = !(p->kind & CS_PKT_FIRST);

	p->step = sctp_step(header[12]);
	if (size < 4 || (whole && 12 + size > length))
		return CS_DROP_SCTP_CHUNK;
	/* Section 8.5.1 (A): the tag is 0 with INIT, and only then. */
	if ((p->step == CS_STEP_SCTP_INIT) != (tag == 0))
		return CS_DROP_SCTP_CHUNK;
	switch (p->step) {
	case CS_STEP_SCTP_INIT: /* section 6.10: never bundled. None of these fills more than a packet either. */
		p->kind |= CS_PKT_OPENS;
		break;
	case CS_STEP_SCTP_INIT_ACK:
	case CS_STEP_SCTP_SHUTDOWN_COMPLETE:
		break;
	default:
		return 0;
	}
	return whole && 12 + ((size + 3) & ~3u) < length ? CS_DROP_SCTP_CHUNK : 0;
}

#endif
