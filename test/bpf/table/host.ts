/** The node's own traffic: nobody's business until a policy selects the node, then judged in the directions it speaks of. */
import { rows } from './rows.ts';

export const host = rows(`
# no policy selects the node
from_netdev W>H tcp 40000>22 S | | pass mark:0
from_netdev W>H tcp 40000>22 SA | | pass mark:0
from_netdev W>H proto 50 | | pass mark:0
to_netdev H>W tcp 40000>443 S | deny H>W | pass
from_netdev W>H udp 1>161 | deny H<W | pass mark:0
from_netdev W>H udp 53>4000 | to_netdev H>W udp 4000>53; host in | drop POLICY_DENIED
from_workload A>H tcp 40000>22 S | allow A>H; deny H<A | pass

# coming in
from_netdev W>H tcp 40000>22 S | host in | drop POLICY_DENIED
from_netdev W>H tcp 40000>22 S | host in; allow H<* tcp/22 | pass mark:0
from_netdev W>H tcp 40000>23 S | host in; allow H<* tcp/22 | drop POLICY_DENIED
from_netdev W>H tcp 40000>22 S | host in; allow H<*; deny H<W tcp/22 | drop POLICY_DENY_RULE
from_netdev M>H tcp 40000>22 S | host in; allow H<M tcp/22 | pass mark:0
from_netdev W>H tcp 40000>22 S | host in; allow H<M tcp/22 | drop POLICY_DENIED
from_netdev W>H tcp 40000>22 S vlan=100 | host in | drop POLICY_DENIED
from_netdev W>H tcp 40000>22 S vlan=100 | host in; allow H<* tcp/22 | pass mark:0
v6 from_netdev W>H tcp 40000>22 S ext=dst | host in | drop POLICY_DENIED
v6 from_netdev W>H tcp 40000>22 S ext=dst | host in; allow H<* tcp/22 | pass mark:0
from_netdev W>H tcp 40000>22 S | host in; unclassed W | drop POLICY_UNKNOWN_IDENTITY
from_netdev W>H tcp 40000>22 S | host in; unclassed H | drop POLICY_UNKNOWN_IDENTITY
from_netdev W>H tcp 40000>22 S | host in; allow A<* | drop POLICY_DENIED
from_netdev W>H tcp 40000>22 S | host in; prefix W/host identity=C; allow H<C | pass mark:0
from_netdev W>H echo 7 | host in | drop POLICY_DENIED
from_netdev W>H echo 7 | host in; allow H<* icmp/echo | pass mark:0
from_netdev W>H sctp 5000>80 init | host in; allow H<* sctp/80 | pass mark:0
from_netdev W>H proto 50 | host in; allow H<* | drop UNKNOWN_L4
from_netdev W>H tcp 40000>22 - | host in; allow H<* | drop TCP_FLAGS

# answers, in the direction that no policy speaks of too
to_netdev H>W tcp 22>40000 SA | host in; allow H<* tcp/22; from_netdev W>H tcp 40000>22 S | pass
to_netdev H>W tcp 22>40000 SA | host both; allow H<* tcp/22; from_netdev W>H tcp 40000>22 S | pass
to_netdev H>W tcp 22>40001 SA | host both; allow H<* tcp/22; from_netdev W>H tcp 40000>22 S | drop STRAY
from_netdev W>H tcp 443>40000 SA | host in; to_netdev H>W tcp 40000>443 S | pass mark:0
from_netdev W>H tcp 443>40000 SA | host in | drop STRAY
from_netdev W>H udp 53>4000 | host in; to_netdev H>W udp 4000>53 | pass mark:0
from_netdev W>H udp 53>4001 | host in; to_netdev H>W udp 4000>53 | drop POLICY_DENIED
from_netdev W>H udp 53>4000 | host in; to_netdev H>W udp 4000>53; wait 60 | drop POLICY_DENIED
from_netdev W>H tcp 443>40000 S | host in; to_netdev H>W tcp 40000>443 S | drop POLICY_DENIED
from_netdev W>H echo-reply 7 | host in; to_netdev H>W echo 7 | pass mark:0
from_netdev W>H udp 53>4000 | host both; allow H>*; to_netdev H>W udp 4000>53; forbid-all; bump | drop POLICY_DENIED

# going out
to_netdev H>W tcp 40000>443 S | host out | drop POLICY_DENIED
to_netdev H>W tcp 40000>443 S | host out; allow H>* tcp/443 | pass
to_netdev H>W tcp 40000>80 S | host out; allow H>* tcp/443 | drop POLICY_DENIED
from_netdev W>H tcp 40000>22 S | host out | pass mark:0
from_netdev W>H proto 50 | host out | pass mark:0
to_netdev H>W proto 50 | host out | drop UNKNOWN_L4
to_netdev H>W proto 50 | host in | pass
to_netdev H>W tcp 22>40000 SA | host out; from_netdev W>H tcp 40000>22 S | pass
to_netdev H>R udp 1>53 | host out; allow H>* | drop UNENCRYPTED

# connections that are older than the policy
from_netdev W>H tcp 40000>22 A | host both; allow H<* tcp/22 | pass mark:0
to_netdev H>W tcp 22>40000 A | host both; allow H<* tcp/22; from_netdev W>H tcp 40000>22 A | pass
to_netdev H>W tcp 22>40000 A | host both; allow H<* tcp/22 | drop POLICY_DENIED

# what no policy cuts off: the peers' port, the tunnel, the identity server, the link
from_netdev W>H tcp 40000>4250 S | host both | pass mark:0
to_netdev H>W tcp 4250>40000 SA | host both; from_netdev W>H tcp 40000>4250 S | pass
to_netdev H>M tcp 40000>4250 S | host both | pass
from_netdev M>H tcp 4250>40000 A | host both | pass mark:0
from_netdev M>H tcp 4250>40000 S | host both | drop POLICY_DENIED
from_netdev W>H tcp 4250>40000 A | host both | drop POLICY_DENIED
to_netdev H>W tcp 40000>4250 S | host both | drop POLICY_DENIED
from_netdev M>H udp 40000>4250 | host both | drop POLICY_DENIED
to_netdev H>M udp 51871>51871 | host both | pass
from_netdev W>H udp 7>51871 | host both | pass mark:0
from_netdev W>H udp 51871>7 | host both | drop POLICY_DENIED
to_netdev H>W udp 7>51871 | host both | drop POLICY_DENIED
to_netdev H>W tcp 40000>8443 S | host both; server W 8443 | pass
from_netdev W>H tcp 8443>40000 A | host both; server W 8443 | pass mark:0
from_netdev W>H tcp 8443>22 S | host both; server W 8443 | drop POLICY_DENIED
to_netdev H>W tcp 40000>8444 S | host both; server W 8443 | drop POLICY_DENIED
to_netdev H>M tcp 40000>8443 S | host both; server W 8443 | drop POLICY_DENIED
from_netdev W>H tcp 40000>8443 S | host both; server H 8443 | pass mark:0
from_netdev W>H tcp 40000>8443 S | host both; server W 8443 | drop POLICY_DENIED
v4 to_netdev arp request H>M | host both | pass
v4 from_netdev arp request M>H | host both | pass
v6 to_netdev fe80::1>ff02::1:ff00:7 ns M ttl=255 | host both | pass
v6 from_netdev M>H na M ttl=255 | host both | pass
v6 from_netdev M>H na M ttl=254 | host both | drop ICMP_TYPE
v4 to_netdev H>224.0.0.22 proto 2 ttl=1 | host both | pass
v4 to_netdev H>W proto 2 ttl=64 | host both | drop MEMBERSHIP
v4 to_netdev 0.0.0.0>255.255.255.255 udp 68>67 | host both | drop POLICY_DENIED
v4 to_netdev 0.0.0.0>255.255.255.255 udp 68>67 | host both; exempt dhcp | pass
v4 from_netdev W>255.255.255.255 udp 67>68 | host both; exempt dhcp | pass mark:0

# addresses that nobody told the kernel of are the node's as well
v6 from_netdev fe80::9>fe80::1 tcp 40000>22 S | host in | drop POLICY_DENIED
v6 from_netdev fe80::9>fe80::1 tcp 40000>22 S | host in; allow H<W tcp/22 | pass mark:0
from_netdev M>W tcp 40000>22 S | host in | drop POLICY_DENIED
v4 from_netdev W>224.0.0.251 udp 5353>5353 | host in | drop POLICY_DENIED
from_netdev W>A tcp 40000>22 S | host in | pass mark:0
from_netdev W>N tcp 40000>22 S | host in | drop POLICY_DENIED

# errors
from_netdev W>H toobig [H>W udp 4000>53] | host in; to_netdev H>W udp 4000>53 | pass mark:0
from_netdev W>H toobig [H>W udp 4000>54] | host in; to_netdev H>W udp 4000>53 | drop ICMP_TYPE
from_netdev W>H toobig [H>W udp 4000>53] | host in | drop ICMP_TYPE
from_netdev M>H toobig [H>W udp 4000>53] | host in; to_netdev H>W udp 4000>53 | pass mark:0
to_netdev H>W toobig [W>A udp 1>2] | host both | pass

# fragments
from_netdev W>H proto 17 frag=32 id=7 | host in; allow H<* | drop FRAGMENT_NO_FIRST
from_netdev W>H proto 17 frag=32 id=7 | host in; allow H<* udp/53; from_netdev W>H udp 1>53 frag=0+ id=7 size=24 | pass mark:0
from_netdev W>H proto 17 frag=32 id=7 | host in; from_netdev W>H udp 1>53 frag=0+ id=7 size=24 | drop FRAGMENT_NO_FIRST
from_netdev W>H proto 17 frag=32 id=7 | host in; from_netdev W>H udp 1>51871 frag=0+ id=7 size=24 | pass mark:0

# out of the tunnel
from_tunnel R>H tcp 40000>22 S | host in | drop POLICY_DENIED
from_tunnel R>H tcp 40000>22 S | host in; allow H<R tcp/22 | pass mark:tunnel
from_tunnel R>H tcp 40000>22 S | host out | pass mark:tunnel
from_tunnel W>H tcp 40000>22 S | host in; allow H<* | drop NOT_STAMPED
from_tunnel R>A tcp 40000>22 S | host both | pass mark:tunnel
from_tunnel R>H tcp 40000>22 S | host in; allow H<R auth | drop AUTH_NOT_A_WORKLOAD

# a workload behind the node's address: its own policy has judged it
to_netdev H>W tcp 40000>443 S mark=stamp:A | host both | pass
from_netdev W>H tcp 443>40000 SA | host both; to_netdev H>W tcp 40000>443 S mark=stamp:A | pass mark:0
from_netdev W>H tcp 443>40000 S | host both; to_netdev H>W tcp 40000>443 S mark=stamp:A | drop POLICY_DENIED
from_netdev W>H udp 53>4000 | host both; to_netdev H>W udp 4000>53 mark=stamp:A; bump | pass mark:0
to_netdev H>W udp 4000>53 | host both; to_netdev H>W udp 4000>53 mark=stamp:A | pass

# nobody here has an SVID
from_netdev W>H tcp 40000>22 S | host in; allow H<* auth | drop AUTH_NOT_A_WORKLOAD
from_netdev R>H tcp 40000>22 S | host in; unbound; allow H<R auth; proof H-R | drop AUTH_NOT_A_WORKLOAD
from_netdev R>H tcp 40000>22 S | host in; unbound; allow H<R | pass mark:underlay
from_netdev R>H tcp 40000>22 S | host in; unbound; allow H<R; lease R -1 | drop LEASE_EXPIRED

# with an endpoint of its own: both sides' policies
from_workload A>H tcp 40000>22 S | host in; allow A>H | drop POLICY_DENIED
from_workload A>H tcp 40000>22 S | host in; allow A>H; allow H<A tcp/22 | pass
from_workload A>H tcp 40000>22 S | host in; allow H<A tcp/22 | drop POLICY_DENIED
from_workload A>H tcp 40000>23 S | host in; allow A>H; allow H<A tcp/22 | drop POLICY_DENIED
from_workload A>H tcp 40000>22 S | host in; allow A>H; deny H<A | drop POLICY_DENY_RULE
from_workload A>H tcp 40000>22 S | host out; allow A>H | pass
from_workload A>H tcp 40000>22 S | host in; allow A>H; allow H<B | drop POLICY_DENIED
from_workload A>H tcp 40000>22 S | host in; allow A>H; allow H<A auth | drop AUTH_NOT_A_WORKLOAD
to_workload H>A tcp 22>40000 SA | host in; allow A>H; allow H<A tcp/22; from_workload A>H tcp 40000>22 S | pass
to_workload H>A tcp 40000>80 S | host out; allow A<H | drop POLICY_DENIED
to_workload H>A tcp 40000>80 S | host out; allow A<H; allow H>A tcp/80 | pass
to_workload H>A tcp 40000>80 S | host out; allow H>A tcp/80 | drop POLICY_DENIED
to_workload H>A tcp 40000>80 S | host in; allow A<H | pass
to_workload H>A tcp 40000>80 S | host out; exempt host-probes | pass
from_workload A>W tcp 40000>22 S | host both; allow A>W | pass
v6 from_workload A>fe80::1 tcp 40000>22 S | host in; allow A>W | drop POLICY_DENIED
v6 from_workload A>fe80::1 tcp 40000>22 S | host in; allow A>W; allow H<A tcp/22 | pass
v4 from_workload A>224.0.0.251 udp 5353>5353 | host in; allow A>W | drop POLICY_DENIED
from_workload A>H udp 4000>53 | host in; allow A>H; allow H<A; from_workload A>H udp 4000>53; deny H<A; bump | drop POLICY_DENY_RULE

# observed
from_netdev W>H tcp 40000>22 S | host in; observe | pass mark:0 observed:POLICY_DENIED
from_netdev W>H tcp 40000>22 S | host in; stop | pass mark:0 observed:POLICY_DENIED
to_netdev H>W tcp 22>40000 SA | host both; observe; from_netdev W>H tcp 40000>22 S | pass observed:POLICY_DENIED
from_netdev W>H proto 50 | host in; stop | pass mark:0 observed:UNKNOWN_L4
from_netdev W>H tcp 40000>22 S | host in; allow H<* would-none | pass mark:0 observed:POLICY_DENIED
from_netdev W>H tcp 40000>22 S | host in; allow H<* would-auth | pass mark:0 observed:AUTH_NOT_A_WORKLOAD
from_workload A>H tcp 40000>22 S | host in; allow A>H; allow H<A would-deny | pass observed:POLICY_DENY_RULE
from_workload A>H tcp 40000>22 S | host in; observe; allow A>H | pass observed:POLICY_DENIED
`);
