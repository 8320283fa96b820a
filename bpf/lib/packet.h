/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What parsing says about a packet, and the headers it reads. */
#ifndef CS_PACKET_H
#define CS_PACKET_H

#include "base.h"

enum cs_packet_kind {
	CS_PKT_OPENS = 1 << 0,	    /* TCP SYN, SCTP INIT, ICMP echo request: begins a flow, is never a reply */
	CS_PKT_ERROR = 1 << 1,	    /* an ICMP error, which belongs to the flow it quotes */
	CS_PKT_NEIGHBOUR = 1 << 2,  /* RFC 4861 */
	CS_PKT_MEMBERSHIP = 1 << 3, /* IGMP, MLD */
	CS_PKT_FIRST = 1 << 4,	    /* the first fragment of several */
	CS_PKT_LATER = 1 << 5,	    /* one after it: what follows the IP header is the first one's to say */
	CS_PKT_LAST = 1 << 6,	    /* of the later ones */
};
#define CS_PKT_FRAGMENT (CS_PKT_FIRST | CS_PKT_LATER)

/* What the packet says to the state of its flow (state.h). */
enum cs_step {
	CS_STEP_TCP_SYN,
	CS_STEP_TCP_SYN_ACK,
	CS_STEP_TCP_ACK, /* neither SYN nor FIN nor RST */
	CS_STEP_TCP_FIN,
	CS_STEP_TCP_RST,
	CS_STEP_UDP,
	CS_STEP_ECHO,
	CS_STEP_ECHO_REPLY,
	CS_STEP_SCTP_INIT,
	CS_STEP_SCTP_INIT_ACK,
	CS_STEP_SCTP_COOKIE_ECHO,
	CS_STEP_SCTP_COOKIE_ACK,
	CS_STEP_SCTP_DATA, /* DATA, SACK, I-DATA */
	CS_STEP_SCTP_HEARTBEAT,
	CS_STEP_SCTP_HEARTBEAT_ACK,
	CS_STEP_SCTP_SHUTDOWN,
	CS_STEP_SCTP_SHUTDOWN_ACK,
	CS_STEP_SCTP_SHUTDOWN_COMPLETE,
	CS_STEP_SCTP_ABORT,
	CS_STEP_SCTP_OTHER, /* any other chunk: says nothing, belongs to an association */
};

struct cs_packet {
	struct cs_addr src;
	struct cs_addr dst;
	__be16 sport; /* ICMP echo: the identifier on the asking side, the request's type on the other */
	__be16 dport;
	__u16 transport; /* offset of the transport header from skb->data */
	__u8 proto;
	__u8 kind;   /* enum cs_packet_kind, or-ed */
	__u8 reason; /* the addresses are good, the rest is not: why */
	__u8 step;   /* enum cs_step */
	__u8 hop_limit;
	__u8 icmp_type;
	__u32 end;   /* of the packet as its length field says, from skb->data: what follows is the frame's padding */
	/* Of fragments only: */
	__u32 fragment_id;
	__u16 fragment_offset; /* of its data, in bytes */
	__u16 fragment_head;   /* first fragment: how much of its data are headers */
} __attribute__((aligned(8)));

/* RFC 791, section 3.1 */
struct cs_ipv4 {
	__u8 version_ihl, tos;
	__be16 total_length, id, fragment;
	__u8 ttl, protocol;
	__sum16 checksum;
	__be32 src, dst;
};

#define CS_IPV4_MORE_FRAGMENTS 0x2000
#define CS_IPV4_FRAGMENT_OFFSET 0x1fff /* in units of 8 bytes */

/* RFC 8200, section 3 */
struct cs_ipv6 {
	__u8 version_class, class_flow;
	__be16 flow;
	__be16 payload_length;
	__u8 next_header, hop_limit;
	struct cs_addr src, dst;
};

#define CS_TCP_HEADER 20
#define CS_UDP_HEADER 8
#define CS_ICMP_HEADER 8
#define CS_SCTP_HEADER 16 /* the common header and the first chunk's */

static __always_inline void *packet_start(const struct __sk_buff *skb)
{
	return (void *)(long)skb->data;
}

static __always_inline void *packet_end(const struct __sk_buff *skb)
{
	return (void *)(long)skb->data_end;
}

/* Headers may lie in page fragments; direct access sees only the linear part. Pulling more than is read would be dear: what
 * a socket sends has its headers in the linear part and its data in fragments, and a clone is copied before it is changed. */
static __always_inline void packet_linearise(struct __sk_buff *skb, __u32 want)
{
	if (want > skb->len)
		want = skb->len;
	if (skb->data_end - skb->data < want)
		bpf_skb_pull_data(skb, want);
}

#endif
