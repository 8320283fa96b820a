/** IPv4: its lengths and its options. */
import { rows } from './rows.ts';

export const ipv4 = rows(`
# lengths
v4 from_workload A>R udp 1>2 length=-1 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 length=+1 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 length=19 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 length=20 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 length=0 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 length=65535 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 ihl=4 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 ihl=0 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R tcp 40000>80 S size=0 length=40 pad=6 | allow A>R | pass
v4 from_workload A>R tcp 40000>80 S size=0 length=39 pad=6 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 size=0 length=28 pad=18 | allow A>R | pass
v4 from_workload A>R udp 1>2 size=0 length=27 pad=18 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 version=6 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 version=0 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 type=0x86dd | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 cut=40 | allow A>R | drop INVALID_PACKET

# options pass, source routes do not
v4 from_workload A>R udp 1>2 opts=nop | allow A>R | pass
v4 from_workload A>R udp 1>2 opts=rr | allow A>R | pass
v4 from_workload A>R udp 1>2 opts=94040000 | allow A>R | pass
v4 from_workload A>R udp 1>2 opts=lsrr | allow A>R | drop IP_OPTIONS
v4 from_workload A>R udp 1>2 opts=ssrr | allow A>R | drop IP_OPTIONS
v4 from_workload A>R udp 1>2 opts=late | allow A>R | drop IP_OPTIONS
v4 from_workload A>R udp 1>2 opts=00000000830704 | allow A>R | pass
v4 from_workload A>R udp 1>2 opts=07000000 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 opts=07010000 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 opts=07050000 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 opts=01010107 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R udp 1>2 opts=01010183 | allow A>R | drop INVALID_PACKET
v4 from_workload A>R tcp 40000>80 S opts=07280400000000000000000000000000000000000000000000000000000000000000000000000000 | allow A>R tcp/80 | pass
v4 to_workload R>A udp 1>2 opts=lsrr mark=tunnel | allow A<R | drop IP_OPTIONS
v4 to_workload R>A udp 53>40000 opts=ssrr mark=tunnel | allow A>R; from_workload A>R udp 40000>53 | drop IP_OPTIONS
v4 from_hold A>R udp 1>2 opts=lsrr | allow A>R | drop IP_OPTIONS

# what carries no ports
v4 from_workload A>R proto 47 | allow A>R | drop UNKNOWN_L4
v4 from_workload A>R proto 4 | allow A>R | drop UNKNOWN_L4
v4 from_workload A>R proto 41 | allow A>R | drop UNKNOWN_L4
v4 from_workload A>R proto 50 | allow A>R | drop UNKNOWN_L4
v4 from_workload A>R proto 51 | allow A>R | drop UNKNOWN_L4
v4 from_workload A>R proto 0 | allow A>R | drop UNKNOWN_L4
v4 from_workload A>R proto 255 | allow A>R | drop UNKNOWN_L4
v4 from_workload A>R proto 136 | allow A>R | drop UNKNOWN_L4
`);
