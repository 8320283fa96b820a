/** Frames: tags, EtherTypes, MAC addresses. */
import { rows } from './rows.ts';

export const frames = rows(`
# tags
from_workload A>R udp 1>2 vlan=100 | allow A>R | drop VLAN
from_workload A>R udp 1>2 vlan=0 | allow A>R | drop VLAN
from_workload A>R udp 1>2 vlan=s100 | allow A>R | drop VLAN
from_workload A>R udp 1>2 vlan=s100,200 | allow A>R | drop VLAN
v4 from_workload arp request A>H vlan=100 | | drop VLAN
to_workload R>A udp 1>2 vlan=100 mark=tunnel | allow A<R | drop VLAN
from_netdev R>A udp 1>2 vlan=100 | | drop UNENCRYPTED
from_netdev R>A udp 1>2 vlan=s100,200 | | drop UNENCRYPTED
from_netdev A>R udp 1>2 vlan=100 | | drop NOT_STAMPED
from_netdev W>A udp 1>2 vlan=100 | | pass mark:0
from_netdev W>A udp 1>2 vlan=s1,2,3 | | drop VLAN
to_netdev A>R udp 1>2 vlan=100 mark=stamp:A | | drop UNENCRYPTED
to_netdev A>R udp 1>2 vlan=s1,2 mark=stamp:A | | drop UNENCRYPTED
to_netdev A>W udp 1>2 vlan=100 mark=stamp:A | | pass
to_netdev A>W udp 1>2 vlan=100 | | drop NOT_STAMPED
to_netdev H>W udp 1>2 vlan=s1,2,3 | | drop VLAN

# EtherTypes
from_workload frame 0x88cc | allow A>* | drop UNKNOWN_L3
from_workload frame 0x8847 | allow A>* | drop UNKNOWN_L3
from_workload frame 0x9999 | allow A>* | drop UNKNOWN_L3
from_workload frame 0x0040 | allow A>* | drop UNKNOWN_L3
to_workload frame 0x88cc | allow A<* | drop UNKNOWN_L3
from_netdev frame 0x88cc | | pass
to_netdev frame 0x88cc | | pass
from_netdev frame 0x8847 | | drop UNKNOWN_L3
to_netdev frame 0x8864 | | drop UNKNOWN_L3
v4 from_netdev arp request M>H | | pass
v4 to_netdev arp request H>M | | pass
v6 from_netdev fe80::1>ff02::1:ff00:7 ns M | | pass
v6 to_netdev fe80::1>ff02::1:ff00:7 ns M | | pass

# MAC addresses
from_workload A>R udp 1>2 mac=02:00:00:00:00:0b | allow A>R | pass
from_workload A>R udp 1>2 | allow A>R; mac A 02:00:00:00:00:0a | pass
from_workload A>R udp 1>2 mac=02:00:00:00:00:0b | allow A>R; mac A 02:00:00:00:00:0a | drop INVALID_SOURCE_MAC
from_workload A>R udp 1>2 mac=03:00:00:00:00:0a | allow A>R; mac A 02:00:00:00:00:0a | drop INVALID_SOURCE_MAC
to_workload R>A udp 1>2 mac=02:00:00:00:00:0b mark=tunnel | allow A<R; mac A 02:00:00:00:00:0a | pass
`);
