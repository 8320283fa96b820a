/** IPv6: its length, and the headers between it and the transport. */
import { rows } from './rows.ts';

export const ipv6 = rows(`
# lengths
v6 from_workload A>R udp 1>2 length=-1 | allow A>R | drop INVALID_PACKET
v6 from_workload A>R udp 1>2 length=+1 | allow A>R | drop INVALID_PACKET
v6 from_workload A>R udp 1>2 length=0 | allow A>R | drop INVALID_PACKET
v6 from_workload A>R udp 1>2 length=65535 | allow A>R | drop INVALID_PACKET
v6 from_workload A>R udp 1>2 size=0 length=8 pad=40 | allow A>R | pass
v6 from_workload A>R udp 1>2 size=0 length=7 pad=40 | allow A>R | drop INVALID_PACKET
v6 from_workload A>R udp 1>2 version=4 | allow A>R | drop INVALID_PACKET
v6 from_workload A>R udp 1>2 type=0x0800 | allow A>R | drop INVALID_PACKET
v6 from_workload A>R udp 1>2 cut=60 | allow A>R | drop INVALID_PACKET

# extension headers that are walked
v6 from_workload A>R udp 1>53 ext=hop | allow A>R udp/53 | pass
v6 from_workload A>R udp 1>53 ext=dst | allow A>R udp/53 | pass
v6 from_workload A>R udp 1>53 ext=route | allow A>R udp/53 | pass
v6 from_workload A>R tcp 40000>80 S ext=hop,dst,route,dst | allow A>R tcp/80 | pass
v6 from_workload A>R tcp 40000>80 S ext=hoplong | allow A>R tcp/80 | pass
v6 from_workload A>R sctp 5000>80 init ext=dst | allow A>R sctp/80 | pass
v6 from_workload A>R echo 9 ext=hop | allow A>R icmp/echo | pass
v6 from_workload A>R udp 1>54 ext=hop | allow A>R udp/53 | drop POLICY_DENIED
v6 from_workload A>R udp 1>53 ext=hop,dst,dst,dst,dst,dst,dst,dst | allow A>R udp/53 | pass
v6 from_workload A>R udp 1>53 ext=fragment | allow A>R udp/53 | pass
v6 to_workload R>A udp 53>40000 ext=dst mark=tunnel | allow A>R; from_workload A>R udp 40000>53 | pass

# and those that are not
v6 from_workload A>R udp 1>53 ext=hop,dst,dst,dst,dst,dst,dst,dst,dst | allow A>R | drop IPV6_EXTENSION
v6 from_workload A>R udp 1>53 ext=dst,hop | allow A>R | drop IPV6_EXTENSION
v6 from_workload A>R udp 1>53 ext=hop,hop | allow A>R | drop IPV6_EXTENSION
v6 from_workload A>R udp 1>53 ext=route0 | allow A>R | drop IP_OPTIONS
v6 from_workload A>R udp 1>53 ext=routeleft | allow A>R | drop IP_OPTIONS
v6 from_workload A>R udp 1>53 ext=hop,dst,routeleft | allow A>R | drop IP_OPTIONS
v6 from_workload A>R udp 1>53 ext=ah | allow A>R | drop IPV6_EXTENSION
v6 from_workload A>R udp 1>53 ext=mobility | allow A>R | drop IPV6_EXTENSION
v6 from_workload A>R udp 1>53 ext=hip | allow A>R | drop IPV6_EXTENSION
v6 from_workload A>R udp 1>53 ext=hoppast | allow A>R | drop INVALID_PACKET
v6 from_workload A>R udp 1>53 ext=hop length=4 | allow A>R | drop INVALID_PACKET
v6 from_workload A>R udp 1>53 ext=fragment,fragment | allow A>R | drop IPV6_EXTENSION
v6 from_workload A>R udp 1>53 ext=fragment frag=0+ size=24 | allow A>R | drop IPV6_EXTENSION
v6 from_workload A>R proto 50 | allow A>R | drop UNKNOWN_L4
v6 from_workload A>R proto 59 | allow A>R | drop UNKNOWN_L4
v6 from_workload A>R proto 47 | allow A>R | drop UNKNOWN_L4
v6 from_workload A>R proto 4 ext=dst | allow A>R | drop UNKNOWN_L4
v6 from_workload A>R proto 255 | allow A>R | drop UNKNOWN_L4
v6 from_hold A>R udp 1>53 ext=routeleft | allow A>R | drop IP_OPTIONS

# an IPv4 address in an IPv6 header is nobody's
v6 from_workload A>R udp 1>2 set=8:0,9:0,10:0,11:0,12:0,13:0,14:0,15:0,16:0,17:0,18:255,19:255,20:8,21:0,22:1,23:10 | allow A>* | drop UNKNOWN_L3
v6 from_workload A>R udp 1>2 set=24:0,25:0,26:0,27:0,28:0,29:0,30:0,31:0,32:0,33:0,34:255,35:255,36:8,37:0,38:2,39:30 | allow A>* | drop UNKNOWN_L3
`);
