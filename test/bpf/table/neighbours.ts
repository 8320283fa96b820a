/** ARP and neighbour discovery: in the endpoint's own name only. */
import { rows } from './rows.ts';

export const neighbours = rows(`
# ARP out
v4 from_workload arp request A>H | | pass mark:0
v4 from_workload arp request A>R | | pass mark:0
v4 from_workload arp reply A>H | | pass mark:0
v4 from_workload arp request 0.0.0.0>A | | pass mark:0
v4 from_workload arp request B>H | | drop INVALID_SOURCE_IP
v4 from_workload arp reply B>H | | drop INVALID_SOURCE_IP
v4 from_workload arp reply 0.0.0.0>H | | drop INVALID_SOURCE_IP
v4 from_workload arp request R>H | | drop INVALID_SOURCE_IP
v4 from_workload arp request H>A | | drop INVALID_SOURCE_IP
v4 from_workload arp 3 A>H | | drop UNKNOWN_L3
v4 from_workload arp request A>H set=1:6 | | drop UNKNOWN_L3
v4 from_workload arp request A>H set=2:134,3:221 | | drop UNKNOWN_L3
v4 from_workload arp request A>H set=4:8 | | drop UNKNOWN_L3
v4 from_workload arp request A>H set=5:16 | | drop UNKNOWN_L3
v4 from_workload arp request A>H cut=41 | | drop INVALID_PACKET
v4 from_workload arp request A>H mark=stamp:B | | pass mark:0
v4 from_workload arp request A>H | fence A | drop FENCED
v4 from_workload arp request A>H | remove A | drop NO_ENDPOINT
v4 from_workload arp request A>H | mac A 02:00:00:00:00:0a | pass mark:0
v4 from_workload arp request A>H mac=02:00:00:00:00:0b | mac A 02:00:00:00:00:0a | drop INVALID_SOURCE_MAC
v4 from_workload arp request A>H set=13:11 | mac A 02:00:00:00:00:0a | drop INVALID_SOURCE_MAC

# ARP in
v4 to_workload arp request H>A | | pass
v4 to_workload arp reply H>A | | pass
v4 to_workload arp request H>A mark=stamp:B | | drop NOT_STAMPED
v4 to_workload arp request H>A mark=tunnel | | drop NOT_STAMPED
v4 to_workload arp request H>A | fence A | drop FENCED

# neighbour discovery out
v6 from_workload A>H ns H | | pass mark:0
v6 from_workload A>ff02::1:ff00:1 ns H | | pass mark:0
v6 from_workload fe80::1>ff02::1:ff00:1 ns H | | pass mark:0
v6 from_workload ::>ff02::1:ff00:a ns A | | pass mark:0
v6 from_workload A>H na A | | pass mark:0
v6 from_workload A>fe80::1 na A | | pass mark:0
v6 from_workload fe80::1>ff02::2 rs | | pass mark:0
v6 from_workload ::>ff02::2 rs | | pass mark:0
v6 from_workload A>H na B | | drop INVALID_SOURCE_IP
v6 from_workload A>H na R | | drop INVALID_SOURCE_IP
v6 from_workload A>H na H | | drop INVALID_SOURCE_IP
v6 from_workload A>H na fe80::1 | | pass mark:0
v6 from_workload B>H ns H | | drop INVALID_SOURCE_IP
v6 from_workload B>H na A | | drop INVALID_SOURCE_IP
v6 from_workload ::>ff02::1 na A | | drop INVALID_SOURCE_IP
v6 from_workload A>H ra | | drop ICMP_TYPE
v6 from_workload fe80::1>ff02::1 ra | | drop ICMP_TYPE
v6 from_workload A>R ns R | | drop ICMP_TYPE
v6 from_workload A>B na A | | drop ICMP_TYPE
v6 from_workload A>W ns W | | drop ICMP_TYPE
v6 from_workload A>H ns H ttl=254 | | drop ICMP_TYPE
v6 from_workload A>H na A code=1 | | drop ICMP_TYPE
v6 from_workload A>H na A length=20 | | drop ICMP_TYPE
v6 from_workload A>H na A length=20 cut=74 | | drop ICMP_TYPE
v6 from_workload A>H na A | fence A | drop FENCED

# neighbour discovery in
v6 to_workload fe80::1>A ns A | | pass
v6 to_workload H>A na H | | pass
v6 to_workload fe80::1>ff02::1 ra | | pass
v6 to_workload fe80::1>A rs | | drop ICMP_TYPE
v6 to_workload fe80::1>A ns A ttl=64 | | drop ICMP_TYPE
v6 to_workload H>A na H mark=stamp:B | | drop NOT_STAMPED
v6 to_workload R>A na R mark=tunnel | | drop NOT_STAMPED
v6 to_workload fe80::1>A ns A code=1 | | drop ICMP_TYPE
`);
