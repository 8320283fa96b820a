/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The binary contract between the kernel programs and the agent: every map's key and value.
 * src/datapath/layout.ts mirrors it; a test compares both through BTF. A change of layout raises CS_ABI_VERSION,
 * which is part of the pin path, so that old maps are never reinterpreted. */
#ifndef CS_ABI_H
#define CS_ABI_H

#define CS_ABI_VERSION 3

/* An IPv6 address, or an IPv4 address in IPv4-mapped form (RFC 4291, section 2.5.5.2). Network byte order. */
struct cs_addr {
	__u8 b[16];
};

enum cs_direction { CS_EGRESS = 0, CS_INGRESS = 1 }; /* as seen by the local endpoint */

/* ---- cs_config: array of one. User space writes whole values; each field is naturally aligned. ---- */
#define CS_REVISION_STATELESS (~0ull) /* as revision: no flow is made or believed, each packet is judged in full */
#define CS_CFG_ALLOW_UNBOUND (1u << 0) /* authentication.allowUnboundPath: pod traffic may cross the underlay in clear */
#define CS_CFG_OBSERVE (1u << 1)       /* enforcement: observe. Drops become events, packets pass */
#define CS_CFG_STOPPED (1u << 2)       /* break-glass: everything passes, what would drop is counted as observed; marks go on */
/* A policy selects the node in that direction: its own traffic is judged there, by host identity 1. In the other it is only followed,
 * so that answers are known. Neither: the node's own traffic is not looked at. Written with the policy_slot they are about. */
#define CS_CFG_HOST_EGRESS (1u << 3)
#define CS_CFG_HOST_INGRESS (1u << 4)
#define CS_CFG_HOST(direction) (CS_CFG_HOST_EGRESS << (direction))
#define CS_CFG_HOST_ANY (CS_CFG_HOST_EGRESS | CS_CFG_HOST_INGRESS)

/* What passes without a policy. Off unless the configuration says otherwise. */
#define CS_EXEMPT_DHCP (1u << 0)	/* a workload's DHCP and DHCPv6 client and its own host */
#define CS_EXEMPT_HOST_PROBES (1u << 1) /* what the own host opens to its endpoints */

/* A change takes two writes: first what changes (maps, or policy_slot, epoch, flags here), then, in a second update of this
 * entry, a higher revision. The kernel reads the revision first and the rest after it, so a flow that carries the new
 * revision was judged by the new state. In one write the kernel could see the new revision beside the old slot. */
struct cs_config {
	__u64 revision;	   /* raised after every change that can take a verdict away; an older flow is judged anew */
	__u64 signal_interval_ns;
	__u32 epoch;	   /* an auth entry of an older epoch is a miss */
	__u32 policy_slot; /* 0 or 1: which half of cs_policy is in force */
	__u32 hold_ifindex; /* the hold TUN; 0: nothing is held, a miss drops */
	__u32 hold_limit_identity; /* packets in the hold queue per local identity */
	__u32 hold_limit_total;
	__u32 flags;
	__u32 exempt;	   /* CS_EXEMPT_* */
	__u32 verdict_sample; /* one of so many allowed verdicts that were reached in full becomes an event; 0: none */
	__u16 peer_port;   /* host order; workloads may not reach it on any node address */
	__u16 pad[3];
};

/* ---- cs_endpoints: hash, key u32 ifindex of the host side of the veth ---- */
#define CS_EP_OPEN (1u << 0)   /* not set: fenced, nothing passes in either direction */
#define CS_EP_FENCES (1u << 1) /* cs_fences may have entries of this endpoint; not set: it need not be asked */

struct cs_endpoint {
	__u64 generation;
	__u32 endpoint; /* 1..4095, unique on this node, not reused while a flow may name it */
	__u32 identity; /* security identity */
	__u32 flags;
	__u8 mac[6];	/* of the workload's end of the veth; all zero: not checked */
	__u16 pad;
};

/* ---- cs_host_exempt: hash, value u8 that says nothing. What no policy of the node's own cuts off, besides peer_port: TCP to this
 * address and port; UDP of the node's own port, whatever the address (all zero then). The agent writes it before it begins. ---- */
struct cs_host_exempt_key {
	struct cs_addr addr;
	__u16 port; /* host order */
	__u8 proto; /* IPPROTO_TCP, IPPROTO_UDP */
	__u8 pad;
};

/* ---- cs_endpoints_by_id: array, key u32 endpoint id, value u32 ifindex. Written by from_workload, read where only the stamp
 * or the source address names the sender; what it says counts only if cs_endpoints agrees. The agent never writes it. ---- */

/* ---- cs_fences: hash, not preallocated, value u8 that says nothing. While there is an entry, nothing passes between the endpoint
 * and the node (its workloads, its own addresses), in either direction: it may still believe that others have the endpoint's
 * addresses. ---- */
struct cs_fence_key {
	__u32 endpoint;
	__u32 node; /* never 0: what is on this node has no lease on its addresses */
};

/* ---- cs_uses: LRU hash, key u32 node id, value u64 CLOCK_BOOTTIME: when a flow with it was last made or kept alive, to a second.
 * Written by the programs; losing an entry is forgetting a use. ---- */

/* ---- cs_ipcache: hash, key struct cs_addr. Who has this address, for how long that may be believed. ---- */
#define CS_IP_LOCAL (1u << 0)	 /* an endpoint of this node; `endpoint` says which */
#define CS_IP_RESERVED (1u << 1) /* host, remote-node: no vouch, never satisfies `required` */
#define CS_IP_ENCRYPT (1u << 2)	 /* only through the tunnel, whatever CS_CFG_ALLOW_UNBOUND says */

struct cs_ipcache {
	__u64 incarnation; /* of the vouching node */
	__u64 generation;
	__u64 lease_ns; /* CLOCK_BOOTTIME; the vouch is dead from here on. ~0: no end (local, reserved) */
	__u32 identity;
	__u32 node; /* node id of the vouching node; 0: this node */
	__u32 endpoint;
	__u32 flags;
};

/* ---- cs_prefixes: LPM trie, key struct cs_prefix_key ---- */
#define CS_PREFIX_CLUSTER (1u << 0) /* workload addresses: without a live vouch they are nobody's, never `world` */
#define CS_PREFIX_ENCRYPT (1u << 1) /* as CS_IP_ENCRYPT, for what has no entry of its own */

struct cs_prefix_key {
	__u32 prefixlen; /* 0..128; an IPv4 prefix of length n is 96 + n */
	struct cs_addr addr;
};

struct cs_prefix {
	__u32 identity;
	__u32 flags;
};

/* ---- cs_classes: hash, not preallocated. Policy is kept by classes of identities: those that no rule, subject or named port
 * tells apart share one. An identity without a row is dropped: a deny rule might have named it. ---- */
struct cs_class_key {
	__u32 identity;
	__u8 slot; /* as cs_config.policy_slot */
	__u8 pad[3];
};

/* By direction; numbers of different directions and roles have nothing to do with one another. From 1. */
struct cs_class {
	__u32 local[2];	    /* as the endpoint that policy selects; 0: not on this node */
	__u32 remote[2];    /* as whom it speaks to */
	__u32 port_bits[2]; /* bit n is set if some entry of this local class has port_bits n; CS_CLASS_ASKS */
};
/* Some entry of this local class asks for a proof. A hint: the proof is looked for early, so that the memory it lies in is on its
 * way while the classes are. What is decided does not depend on it. */
#define CS_CLASS_ASKS (1u << 31)

/* ---- cs_policy: hash, not preallocated. For the remote class, then for any: the longest port prefix first, then any protocol.
 * The first entry found decides; the compiler has already resolved deny over allow and what lies inside what. ---- */
enum cs_policy_verdict { CS_POLICY_ALLOW = 1, CS_POLICY_DENY = 2 };
enum cs_auth_type {
	CS_AUTH_NONE = 0,
	CS_AUTH_SPIFFE = 1,
	CS_AUTH_ALWAYS_FAIL = 2,
	CS_AUTH_CONNECTION = 3, /* for each flow a proof of its own, in cs_flow_auth */
};
#define CS_PORT_BITS 16

struct cs_policy_key {
	__u32 local;  /* class of the endpoint the policy selects */
	__u32 remote; /* class; 0: any */
	__u16 dport;  /* host order, the first port_bits bits, the rest 0; ICMP: the message's type */
	__u8 proto;   /* IPPROTO_*; 0: any, then port_bits is 0 */
	__u8 port_bits; /* 0: every port; 16: this one */
	__u8 direction;
	__u8 slot;
	__u8 pad[2];
};

/* What is in force, and what would be if the policies that only observe were too. */
struct cs_policy {
	__u8 verdict;
	__u8 auth_type;
	__u8 observed_verdict; /* 0: the same as in force */
	__u8 observed_auth_type;
	__u32 rule; /* index into the agent's rule table, for explain and events. Deny and 0: no rule allows it */
	__u32 observed_rule;
};

/* ---- cs_auth: hash, not preallocated ---- */
struct cs_auth_key {
	__u32 local;
	__u32 remote;
	__u32 remote_node; /* 0: the pair is on this node */
	__u8 auth_type;
	__u8 pad[3];
};

#define CS_AUTH_REFUSED (1u << 0) /* no proof but its opposite: until it expires, packets drop at once and none is held */

struct cs_auth {
	__u64 expires_ns; /* CLOCK_BOOTTIME */
	__u32 epoch;	  /* the global epoch read when verification began */
	__u32 flags;
};

/* ---- cs_flow_auth: LRU hash. Proofs for one flow each. What it loses is proven again. ---- */
struct cs_flow_auth_key {
	struct cs_addr local;
	struct cs_addr remote;
	__u16 lport; /* as in struct cs_flow_key */
	__u16 rport;
	__u32 endpoint;
	__u8 proto;
	__u8 pad[3];
};

#define CS_AUTH_TAKEN (1u << 1) /* set by the programs: a flow was let through, and no later one of the same ports will be */

struct cs_flow_auth {
	__u64 expires_ns; /* CLOCK_BOOTTIME */
	__u32 epoch;	  /* as in struct cs_auth */
	__u32 flags;	  /* CS_AUTH_REFUSED, CS_AUTH_TAKEN */
	__u32 local;	  /* who proved themselves: the addresses may have other owners by now */
	__u32 remote;
	__u32 remote_node;
	__u32 pad;
};

/* ---- cs_flows: LRU hash. One entry per flow and endpoint, keyed as the endpoint sees it. An established flow is looked up
 * before the endpoint: closing or removing one is a change that takes verdicts away, so it raises the revision too. ---- */
struct cs_flow_key {
	struct cs_addr local;
	struct cs_addr remote;
	__u16 lport; /* network order; ICMP echo: the identifier on the asking side, the request's type on the other */
	__u16 rport;
	__u32 ifindex; /* of the host side of the endpoint's veth; CS_HOST_IFINDEX: the node's own flows, whatever interface they take */
	__u8 proto;
	__u8 pad[3];
};
#define CS_HOST_IFINDEX (~0u)

/* As Linux's connection tracking names them. */
enum cs_flow_state {
	CS_FLOW_NONE = 0,
	CS_FLOW_SYN_SENT = 1, /* TCP */
	CS_FLOW_SYN_RECV = 2,
	CS_FLOW_ESTABLISHED = 3,
	CS_FLOW_FIN_WAIT = 4,
	CS_FLOW_CLOSE_WAIT = 5,
	CS_FLOW_LAST_ACK = 6,
	CS_FLOW_TIME_WAIT = 7,
	CS_FLOW_CLOSE = 8,
	CS_FLOW_UDP_UNREPLIED = 9,
	CS_FLOW_UDP_REPLIED = 10,
	CS_FLOW_ECHO = 11, /* ICMP, ICMPv6 */
	CS_FLOW_SCTP_CLOSED = 12,
	CS_FLOW_SCTP_COOKIE_WAIT = 13,
	CS_FLOW_SCTP_COOKIE_ECHOED = 14,
	CS_FLOW_SCTP_ESTABLISHED = 15,
	CS_FLOW_SCTP_SHUTDOWN_SENT = 16,
	CS_FLOW_SCTP_SHUTDOWN_RECD = 17,
	CS_FLOW_SCTP_SHUTDOWN_ACK_SENT = 18,
	CS_FLOW_SCTP_HEARTBEAT_SENT = 19,
};

#define CS_FLOW_OBSERVED (1u << 0) /* flags: only observed to be refused. Each packet is judged in full, and counted */
#define CS_FLOW_PROVEN (1u << 1)   /* flags: it took a proof of its own (cs_flow_auth), which therefore is still its own */

struct cs_flow {
	__u64 revision;	  /* of cs_config when the verdict was begun */
	__u64 valid_until_ns; /* least of auth expiry and lease: then the flow is judged anew */
	__u64 last_ns;	  /* last packet; idle flows end */
	__u32 remote_identity;
	__u32 remote_node;
	__u8 direction;	  /* in which the flow was begun */
	__u8 auth_type;
	__u8 state;	  /* enum cs_flow_state */
	__u8 flags;	  /* CS_FLOW_OBSERVED, CS_FLOW_PROVEN */
	__u16 origin;	  /* mark >> 16 that packets from the remote side carry; any other is judged anew */
	__u16 endpoint;	  /* whose flow it is: the stamp of what it sends */
};

/* ---- cs_fragments: LRU hash. Datagrams whose first fragment was let through or is held: the later ones have no ports of
 * their own. The programs' own. ---- */
struct cs_fragment_key {
	struct cs_addr src;
	struct cs_addr dst;
	__u32 id; /* as on the wire */
	__u32 ifindex; /* of the host side of the endpoint's veth */
	__u8 proto; /* IPv6: 0, its receivers do not ask */
	__u8 direction;
	__u16 pad;
};

struct cs_fragment {
	__u64 first_ns;
	__u16 sport; /* as struct cs_flow_key has them */
	__u16 dport;
	__u16 head; /* no later fragment may begin before it: it would overwrite headers */
	__u8 proto; /* of the transport */
	__u8 step;  /* what the first fragment said to its flow */
	__u8 opens; /* and whether it may begin one */
	__u8 complete; /* the last fragment was seen */
	__u8 pad[6];
};

/* ---- cs_clock: per-CPU array of one. The programs' own: the boot clock, read once per CPU and tick. ---- */
struct cs_clock {
	__u64 jiffies;
	__u64 boot_ns;
	__u64 sum; /* of both: a record that was half written does not add up */
};

/* ---- cs_waiting: LRU hash, key struct cs_flow_key. Flows with packets in the hold queue: later ones queue behind them.
 * cs_last_held: array of one, u64 time of the last packet held for a miss; long ago: no flow waits.
 * The programs' own; the agent neither reads nor writes them. ---- */
struct cs_waiting {
	__u64 held_ns; /* when a packet of the flow last met a miss */
	__u32 packets; /* held and not yet seen again by from_hold */
	__u32 pad;
};

/* ---- cs_drops, cs_observed: per-CPU arrays, index = reason * 2 + direction. What was dropped; what would have been and
 * passed, because a policy, the node or the operator says so (observe, stopped). ---- */
struct cs_counter {
	__u64 packets;
	__u64 bytes;
};

/* ---- cs_pair_drops: LRU hash of struct cs_counter, added to atomically. Drops again, by pair of identities. ---- */
struct cs_pair_key {
	__u32 local;
	__u32 remote; /* 0: not known */
	__u8 reason;
	__u8 direction;
	__u16 pad;
};

/* ---- cs_hold_taken (written by the kernel), cs_hold_returned (written by the agent): hash,
 * key u32 local identity, key 0 the total; value u64. In the queue: taken - returned. One writer each, so no update is lost.
 * A packet that the TUN's own full queue drops was taken and never comes: the agent returns it once nothing is left to read. ---- */

/* ---- cs_events: ring buffer of struct cs_event ---- */
enum cs_event_kind {
	CS_EVENT_VOUCH_MISS = 1, /* nobody has vouched for the remote address, or the lease is over */
	CS_EVENT_AUTH_MISS = 2,	 /* policy requires a proof that is not there */
	CS_EVENT_DROP = 3,
	CS_EVENT_VERDICT = 4,  /* allowed, one of cs_config.verdict_sample */
	CS_EVENT_OBSERVED = 5, /* passed; `reason` says why it would have been dropped */
};

struct cs_event {
	__u64 time_ns; /* CLOCK_BOOTTIME */
	__u64 suppressed; /* events of the same key not sent since the last one */
	struct cs_addr local;
	struct cs_addr remote;
	__u32 local_identity;
	__u32 remote_identity; /* 0: not known */
	__u32 remote_node;
	__u32 endpoint;
	__u32 rule; /* of the policy entry that decided; 0: none */
	__u16 lport; /* host order */
	__u16 rport;
	__u8 kind;
	__u8 reason; /* enum cs_drop_reason, 0 if nothing speaks against the packet or it is held */
	__u8 direction;
	__u8 proto;
	__u8 auth_type;
	__u8 held; /* 1: the packet waits in the hold queue */
	__u16 length;
};

struct cs_signal_key {
	struct cs_addr remote;
	__u32 endpoint;
	__u16 lport; /* of misses that each flow has by itself; else 0 */
	__u16 rport;
	__u8 kind;
	__u8 reason;
	__u8 direction;
	__u8 proto;
};

struct cs_signal {
	__u64 last_ns;
	__u64 suppressed;
};

/* ---- skb->mark. Bits 28-31: what vouches for the packet; bits 16-27: endpoint id of the sender (stamp). ---- */
#define CS_MARK_MASK 0xffff0000u
#define CS_MARK_KIND(m) ((m) >> 28)
#define CS_MARK_ENDPOINT(m) (((m) >> 16) & 0xfffu)
enum cs_mark_kind {
	CS_MARK_NONE = 0,
	CS_MARK_STAMPED = 1,  /* from_workload or from_hold judged it: sent by a live local endpoint */
	CS_MARK_TUNNEL = 2,   /* came in through the tunnel device */
	CS_MARK_UNDERLAY = 3, /* came in clear, and allowUnboundPath says that this may be */
};

/* reserved security identities, numbered as in Cilium */
enum cs_reserved_identity {
	CS_ID_UNKNOWN = 0,
	CS_ID_HOST = 1,
	CS_ID_WORLD = 2,
	CS_ID_REMOTE_NODE = 6,
};

#endif
