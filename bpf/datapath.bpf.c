/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The kernel's part of a packet's story: every program, and where it is attached. */
#include "lib/path.h"
#include "lib/workload.h"

/* tc ingress of the host side of a workload's veth: what the workload sends */
SEC("tc")
int from_workload(struct __sk_buff *skb)
{
	return leave_workload(skb);
}

/* tc egress of the host side: what the workload is to receive */
SEC("tc")
int to_workload(struct __sk_buff *skb)
{
	return enter_workload(skb);
}

/* tc ingress of the hold TUN: what the agent gives back (bare IP) */
SEC("tc")
int from_hold(struct __sk_buff *skb)
{
	return leave_hold(skb);
}

/* tc egress and ingress of the tunnel device (bare IP) */
SEC("tc")
int to_tunnel(struct __sk_buff *skb)
{
	return enter_tunnel(skb);
}

SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	return leave_tunnel(skb);
}

/* tc egress and ingress of the underlay's devices */
SEC("tc")
int to_netdev(struct __sk_buff *skb)
{
	return enter_underlay(skb);
}

SEC("tc")
int from_netdev(struct __sk_buff *skb)
{
	return leave_underlay(skb);
}

/* Attached nowhere: what reading a packet costs, the floor that benchmarks compare with */
SEC("tc")
int parse_only(struct __sk_buff *skb)
{
	struct cs_packet p = {};

	return parse(skb, ETH_HLEN, &p) || p.reason ? CS_SHOT : CS_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
