/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Drop reasons, append only. 1-63 parse, 64-95 source, fence, lease, 96-127 policy, 128-159 auth, 160-191 encryption,
 * 192-223 hold. The comment after each is the sentence users read; TypeScript and docs/drop-reasons.md are generated. */
#ifndef CS_DROP_REASONS_H
#define CS_DROP_REASONS_H

enum cs_drop_reason {
	CS_DROP_INVALID_PACKET = 1,	 /* the packet is shorter than its headers say */
	CS_DROP_UNKNOWN_L3 = 2,		 /* neither IPv4, IPv6 nor an ARP or neighbour discovery message of the endpoint's own */
	CS_DROP_UNKNOWN_L4 = 3,		 /* a transport protocol that is not understood */
	CS_DROP_FRAGMENT = 4,		 /* a first fragment without its whole transport header, or one of a message that has no need of them */
	CS_DROP_IPV6_EXTENSION = 5,	 /* an IPv6 extension header that is not understood */
	CS_DROP_ICMP_TYPE = 6,		 /* an ICMP message that belongs to no allowed flow */
	CS_DROP_VLAN = 7,		 /* a VLAN tag on a workload's interface, or more than two on the underlay */
	CS_DROP_IP_OPTIONS = 8,		 /* a source route: an IPv4 option or an IPv6 routing header */
	CS_DROP_TCP_FLAGS = 9,		 /* TCP flags that no stack sends together */
	CS_DROP_FRAGMENT_NO_FIRST = 10,	 /* a fragment whose datagram's first one was not let through before it */
	CS_DROP_FRAGMENT_OVERLAP = 11,	 /* a fragment that would overwrite the headers of its datagram, or a second, different first one */
	CS_DROP_STRAY = 12,		 /* an answer, or an end, to a flow that is not there or not in that state */
	CS_DROP_MEMBERSHIP = 13,	 /* IGMP or MLD: multicast is not forwarded */
	CS_DROP_SCTP_CHUNK = 14,	 /* an SCTP packet that no association sends: its first chunk contradicts its length, tag or place */
	CS_DROP_INVALID_SOURCE_IP = 64,	 /* the source address is not the endpoint's own */
	CS_DROP_INVALID_SOURCE_MAC = 65, /* the source MAC address is not the endpoint's own */
	CS_DROP_NO_ENDPOINT = 66,	 /* the interface carries a program but no endpoint */
	CS_DROP_FENCED = 67,		 /* the endpoint is not open yet, at all or to this node: a peer may still hold a lease on its address */
	CS_DROP_NO_VOUCH = 68,		 /* no node vouches for this workload address */
	CS_DROP_LEASE_EXPIRED = 69,	 /* the vouch for this address has run out */
	CS_DROP_NOT_STAMPED = 70,	 /* not judged at its origin: no live endpoint sent it */
	CS_DROP_SPOOFED_STAMP = 71,	 /* the sender's stamp and its address name different endpoints */
	CS_DROP_INVALID_DESTINATION_IP = 72, /* the destination address is not the endpoint's own */
	CS_DROP_POLICY_DENIED = 96,	 /* no rule of the policies allows it */
	CS_DROP_POLICY_DENY_RULE = 97,	 /* a deny rule forbids it */
	CS_DROP_CONTROL_PLANE = 98,	 /* workloads may not reach the peer channel's port */
	CS_DROP_POLICY_UNKNOWN_IDENTITY = 99, /* the policy in force does not know this identity yet */
	CS_DROP_AUTH_REQUIRED = 128,	 /* policy requires mutual authentication and there is no proof */
	CS_DROP_AUTH_EXPIRED = 129,	 /* the proof has expired */
	CS_DROP_AUTH_EPOCH = 130,	 /* the proof is of an epoch that was revoked */
	CS_DROP_AUTH_ALWAYS_FAIL = 131,	 /* authentication.mode is test-always-fail */
	CS_DROP_AUTH_NOT_A_WORKLOAD = 132, /* policy requires mutual authentication with something that is not a workload */
	CS_DROP_AUTH_REFUSED = 133,	 /* the last authentication failed or was revoked; the next try waits */
	CS_DROP_UNENCRYPTED = 160,	 /* workload traffic on the underlay in clear */
	CS_DROP_HOLD_FULL = 192,	 /* too many packets already wait for an authentication */
	CS_DROP_HOLD_FAILED = 193,	 /* the packet could not be put into the hold queue */
	CS_DROP_HOLD_REFUSED = 194,	 /* the authentication it waited for failed */
	CS_DROP_HOLD_DEADLINE = 195,	 /* the authentication it waited for did not end in time */
	CS_DROP_HOLD_LOST = 196,	 /* it was lost with the hold device: the agent ended while it waited, or the device was full */
	CS_DROP_HOLD_STALE = 197,	 /* it waited for an earlier owner of the address it was sent to */
};

#endif
