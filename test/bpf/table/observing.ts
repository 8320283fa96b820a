/** Observe, stopped, exempt: what passes although something speaks against it, and how it is counted. */
import { rows } from './rows.ts';

export const observing = rows(`
# one policy observes: what is in force decides
from_workload A>R udp 1>53 | allow A>R would-deny | pass observed:POLICY_DENY_RULE
from_workload A>R udp 1>53 | allow A>R would-none | pass observed:POLICY_DENIED
from_workload A>R udp 1>53 | allow A>R would-deny; from_workload A>R udp 1>53 | pass observed:POLICY_DENY_RULE
to_workload R>A udp 53>1 mark=tunnel | allow A>R would-deny; from_workload A>R udp 1>53 | pass observed:POLICY_DENY_RULE
from_workload A>R udp 1>53 | allow A>R would-allow | pass
from_workload A>R udp 1>53 | allow A>R would-auth | pass observed:AUTH_REQUIRED
from_workload A>R udp 1>53 | allow A>R would-auth; proof A-R | pass
from_workload A>R udp 1>53 | allow A>R would-auth; proof A-R ends=-1 | pass observed:AUTH_EXPIRED
from_workload A>R udp 1>53 | allow A>R would-auth; refusal A-R | pass observed:AUTH_REFUSED
from_workload A>R udp 1>53 | allow A>R would-fail | pass observed:AUTH_ALWAYS_FAIL
from_workload A>H udp 1>53 | allow A>H would-auth | pass observed:AUTH_NOT_A_WORKLOAD
from_workload A>R udp 1>53 | deny A>R would-allow | drop POLICY_DENY_RULE
from_workload A>R udp 1>53 | none A>R would-allow | drop POLICY_DENIED
from_workload A>R udp 1>53 | allow A>R auth would-allow | hold
from_workload A>R udp 1>53 | allow A>R auth would-deny; proof A-R | pass observed:POLICY_DENY_RULE
to_workload R>A udp 1>53 mark=tunnel | allow A<R would-deny | pass observed:POLICY_DENY_RULE
from_workload A>R tcp 1>80 SA | allow A>R would-deny | drop STRAY

# the node observes
from_workload A>R udp 1>53 | observe | pass observed:POLICY_DENIED
from_workload A>R udp 1>53 | observe; deny A>R | pass observed:POLICY_DENY_RULE
from_workload A>R udp 1>53 | observe; allow A>R | pass
from_workload A>R udp 1>53 | observe; allow A>*; unclassed R | pass observed:POLICY_UNKNOWN_IDENTITY
from_workload A>R udp 1>53 | observe; allow A>R auth | pass observed:AUTH_REQUIRED
from_workload A>R udp 1>53 | observe; allow A>R fail | pass observed:AUTH_ALWAYS_FAIL
from_workload A>N udp 1>53 | observe | pass observed:NO_VOUCH
from_workload A>R udp 1>53 | observe; lease R -1 | pass observed:LEASE_EXPIRED
to_workload R>A udp 1>53 mark=tunnel | observe | pass observed:POLICY_DENIED
to_workload R>A udp 1>53 | observe; allow A<R | pass observed:UNENCRYPTED
from_workload A>R proto 47 | observe | pass observed:UNKNOWN_L4
from_workload A>R tcp 1>80 SF | observe | pass observed:TCP_FLAGS
from_workload A>R tcp 1>80 SA | observe | pass observed:STRAY
to_workload R>A tcp 80>1 SA mark=tunnel | observe; from_workload A>R tcp 1>80 S | pass observed:POLICY_DENIED
from_workload A>R sctp 1>80 data tag=0 | observe | pass observed:SCTP_CHUNK
from_workload A>R proto 17 frag=32 id=7 | observe | pass observed:FRAGMENT_NO_FIRST
from_workload A>R proto 6 frag=0+ id=7 size=8 | observe | pass observed:FRAGMENT
v4 from_workload A>R proto 6 frag=8 id=7 | observe | pass observed:FRAGMENT_OVERLAP
v4 from_workload A>R udp 1>53 opts=lsrr | observe | pass observed:IP_OPTIONS
v6 from_workload A>R udp 1>53 ext=route0 | observe | pass observed:IP_OPTIONS
v6 from_workload A>R udp 1>53 ext=ah | observe | pass observed:IPV6_EXTENSION
v4 from_workload A>R icmp 13 | observe | pass observed:ICMP_TYPE
to_netdev A>R udp 1>53 mark=stamp:A | observe | pass observed:UNENCRYPTED
from_netdev R>A udp 1>53 | observe | pass mark:underlay observed:UNENCRYPTED

# but not what lies or cannot be read
from_workload B>R udp 1>53 | observe | drop INVALID_SOURCE_IP
from_workload A>R udp 1>53 mac=02:00:00:00:00:0b | observe; mac A 02:00:00:00:00:0a | drop INVALID_SOURCE_MAC
from_workload A>R udp 1>53 | observe; fence A | drop FENCED
from_workload A>R udp 1>53 | observe; remove A | drop NO_ENDPOINT
from_workload A>R udp 1>53 length=1 | observe | drop INVALID_PACKET
from_workload A>R udp 1>53 vlan=5 | observe | drop VLAN
from_workload frame 0x9999 | observe | drop UNKNOWN_L3
from_workload A>H tcp 1>4250 S | observe | drop CONTROL_PLANE
to_workload B>A udp 1>53 | observe | drop NOT_STAMPED
to_workload B>A udp 1>53 mark=stamp:A | observe | drop SPOOFED_STAMP
to_workload R>B udp 1>53 mark=tunnel | observe | drop INVALID_DESTINATION_IP
to_tunnel A>R udp 1>53 | observe | drop NOT_STAMPED
v4 from_workload arp request B>H | observe | drop INVALID_SOURCE_IP
v4 from_workload A>224.0.0.22 proto 2 | observe | drop MEMBERSHIP

# stopped: everything passes, what a known endpoint sends is stamped
from_workload A>R udp 1>53 | stop | pass observed:POLICY_DENIED
from_workload A>R udp 1>53 | stop; allow A>R | pass
from_workload A>R udp 1>53 | stop; allow A>R auth | pass observed:AUTH_REQUIRED
from_workload A>R udp 1>53 | stop; fence A | pass observed:FENCED
from_workload A>R udp 1>53 | stop; remove A | pass mark:0 observed:NO_ENDPOINT
from_workload B>R udp 1>53 | stop | pass observed:INVALID_SOURCE_IP
from_workload A>R udp 1>53 length=1 | stop | pass observed:INVALID_PACKET
from_workload A>R udp 1>53 vlan=5 | stop | pass observed:VLAN
from_workload frame 0x9999 | stop | pass observed:UNKNOWN_L3
from_workload A>H tcp 1>4250 S | stop; allow A>H | pass observed:CONTROL_PLANE
v4 from_workload arp request B>H | stop | pass observed:INVALID_SOURCE_IP
v4 from_workload arp request A>H | stop | pass mark:0
to_workload R>A udp 1>53 | stop | pass observed:UNENCRYPTED
to_workload R>B udp 1>53 mark=tunnel | stop | pass observed:INVALID_DESTINATION_IP
to_tunnel A>R udp 1>53 | stop | pass observed:NOT_STAMPED
to_netdev A>R udp 1>53 mark=stamp:A | stop | pass observed:UNENCRYPTED
from_netdev A>R udp 1>53 | stop | pass mark:0 observed:NOT_STAMPED
from_hold A>R udp 1>53 | stop; allow A>R auth | pass observed:AUTH_REQUIRED

# exempt: DHCP of a client to its link or its own host, and back
v4 from_workload 0.0.0.0>255.255.255.255 udp 68>67 | | drop INVALID_SOURCE_IP
v4 from_workload 0.0.0.0>255.255.255.255 udp 68>67 | exempt dhcp | pass
v4 from_workload A>255.255.255.255 udp 68>67 | exempt dhcp | pass
v4 from_workload A>H udp 68>67 | exempt dhcp | pass
v4 from_workload A>R udp 68>67 | exempt dhcp | drop POLICY_DENIED
v4 from_workload A>W udp 68>67 | exempt dhcp | drop POLICY_DENIED
v4 from_workload A>M udp 68>67 | exempt dhcp | drop POLICY_DENIED
v4 from_workload B>255.255.255.255 udp 68>67 | exempt dhcp | drop INVALID_SOURCE_IP
v4 from_workload A>255.255.255.255 udp 67>68 | exempt dhcp; no-hold | drop POLICY_DENIED
v4 from_workload A>H udp 68>68 | exempt dhcp | drop POLICY_DENIED
v4 from_workload A>H tcp 68>67 S | exempt dhcp | drop POLICY_DENIED
v4 from_workload A>H udp 68>67 frag=0+ size=24 | exempt dhcp | drop POLICY_DENIED
v4 to_workload H>A udp 67>68 | exempt dhcp | pass
v4 to_workload H>255.255.255.255 udp 67>68 | exempt dhcp | pass
v4 to_workload H>A udp 67>68 | | drop POLICY_DENIED
v4 to_workload H>A udp 67>68 mark=stamp:B | exempt dhcp | drop SPOOFED_STAMP
v4 to_workload W>A udp 67>68 | exempt dhcp | drop POLICY_DENIED
v4 to_workload H>B udp 67>68 | exempt dhcp | drop INVALID_DESTINATION_IP
v4 from_workload A>H udp 68>67 | exempt dhcp; fence A | drop FENCED
v6 from_workload fe80::a>ff02::1:2 udp 546>547 | exempt dhcp | pass
v6 from_workload fe80::a>ff02::1:2 udp 546>547 | | drop INVALID_SOURCE_IP
v6 from_workload A>ff02::1:2 udp 546>547 | exempt dhcp | drop POLICY_DENIED
v6 from_workload fe80::a>ff02::1:3 udp 546>547 | exempt dhcp | drop INVALID_SOURCE_IP
v6 to_workload fe80::1>fe80::a udp 547>546 | exempt dhcp | pass
v6 to_workload fe80::1>fe80::a udp 547>546 mark=tunnel | exempt dhcp | drop INVALID_DESTINATION_IP
v6 to_workload H>fe80::a udp 547>546 | exempt dhcp | drop INVALID_DESTINATION_IP

# exempt: what the own host opens to its endpoints
to_workload H>A tcp 1>80 S | exempt probes | pass
to_workload H>A tcp 1>80 S | | drop POLICY_DENIED
to_workload H>A tcp 1>80 S | exempt probes; deny A<H | pass
to_workload M>A tcp 1>80 S | exempt probes | drop POLICY_DENIED
to_workload W>A tcp 1>80 S | exempt probes | drop POLICY_DENIED
to_workload R>A tcp 1>80 S mark=tunnel | exempt probes | drop POLICY_DENIED
to_workload H>A tcp 1>80 S mark=tunnel | exempt probes | drop NOT_STAMPED
to_workload H>A tcp 1>80 SA | exempt probes | drop STRAY
from_workload A>H tcp 80>1 SA | exempt probes; to_workload H>A tcp 1>80 S | pass
from_workload A>H tcp 80>1 S | exempt probes; to_workload H>A tcp 1>80 S | drop POLICY_DENIED
from_workload A>H udp 1>53 | exempt probes | drop POLICY_DENIED
to_workload H>A echo 9 | exempt probes | pass
`);
