/** Stamps, the tunnel and the underlay: which place may speak for which address. */
import { rows } from './rows.ts';

export const paths = rows(`
# a workload's stamp replaces whatever was there, but for the lower half
from_workload A>R udp 1>53 mark=0xffffffff | allow A>R | pass mark:0x1005ffff
from_workload A>R udp 1>53 mark=stamp:B | allow A>R | pass
from_workload A>R udp 1>53 mark=0x00001234 | allow A>R; from_workload A>R udp 1>53 | pass mark:0x10051234
from_hold A>R udp 1>53 mark=stamp:B | allow A>R | pass

# into the workload: the sender's stamp
to_workload B>A udp 7>53 mark=stamp:B | allow A<B | pass
to_workload B>A udp 1>53 | allow A<B | drop NOT_STAMPED
to_workload B>A udp 1>53 mark=tunnel | allow A<B | drop NOT_STAMPED
to_workload B>A udp 1>53 mark=underlay | allow A<B; unbound | drop NOT_STAMPED
to_workload B>A udp 1>53 mark=stamp:A | allow A<B | drop SPOOFED_STAMP
to_workload B>A udp 1>53 mark=stamp:77 | allow A<B | drop SPOOFED_STAMP
to_workload R>A udp 1>53 mark=stamp:B | allow A<R | drop SPOOFED_STAMP
to_workload H>A udp 1>53 mark=stamp:B | allow A<H | drop SPOOFED_STAMP
to_workload W>A udp 1>53 mark=stamp:B | allow A<W | drop SPOOFED_STAMP
to_workload B>A udp 1>53 mark=stamp:B | allow A<B; fence B | drop NOT_STAMPED
to_workload B>A udp 1>53 mark=stamp:B | allow A<B; remove B | drop NOT_STAMPED
to_workload A>A udp 1>53 mark=stamp:A | allow A<A | pass
to_workload B>A udp 1>53 mark=0x40060000 | allow A<B | drop NOT_STAMPED
to_workload H>A udp 1>53 mark=0xf0000000 | allow A<H | drop NOT_STAMPED

# the tunnel
to_workload R>A udp 2>53 mark=tunnel | allow A<R | pass
to_workload R>A udp 1>53 | allow A<R | drop UNENCRYPTED
to_workload R>A udp 1>53 mark=underlay | allow A<R | drop UNENCRYPTED
to_workload R>A udp 1>53 mark=underlay | allow A<R; unbound | pass
to_workload W>A udp 1>53 mark=tunnel | allow A<W | drop NOT_STAMPED
to_workload H>A udp 1>53 mark=tunnel | allow A<H | drop NOT_STAMPED
to_workload W>A udp 1>53 mark=underlay | allow A<W; unbound | drop NOT_STAMPED
to_workload N>A udp 1>53 | allow A<* | drop UNENCRYPTED

# a running flow comes by the way it came
to_workload R>A udp 53>1 mark=tunnel | allow A>R; from_workload A>R udp 1>53 | pass
to_workload R>A udp 53>1 | allow A>R; from_workload A>R udp 1>53 | drop UNENCRYPTED
to_workload R>A udp 53>1 mark=stamp:B | allow A>R; from_workload A>R udp 1>53 | drop SPOOFED_STAMP
to_workload B>A udp 53>1 mark=stamp:B | allow A>B; from_workload A>B udp 1>53 | pass
to_workload B>A udp 53>1 mark=stamp:A | allow A>B; from_workload A>B udp 1>53 | drop SPOOFED_STAMP
to_workload W>A udp 53>1 | allow A>W; from_workload A>W udp 1>53 | pass
to_workload W>A udp 53>1 mark=tunnel | allow A>W; from_workload A>W udp 1>53 | drop NOT_STAMPED
to_workload M>A udp 53>1 mark=tunnel | allow A>M; from_workload A>M udp 1>53 | pass

# into the tunnel
to_tunnel A>R udp 1>53 mark=stamp:A | | pass
to_tunnel A>R udp 1>53 | | drop NOT_STAMPED
to_tunnel A>R udp 1>53 mark=tunnel | | drop NOT_STAMPED
to_tunnel A>R udp 1>53 mark=underlay | unbound | drop NOT_STAMPED
to_tunnel A>R udp 1>53 mark=stamp:B | | drop SPOOFED_STAMP
to_tunnel A>R udp 1>53 mark=stamp:77 | | drop SPOOFED_STAMP
to_tunnel H>R udp 1>53 mark=stamp:A | | drop SPOOFED_STAMP
to_tunnel A>R udp 1>53 mark=stamp:A | fence A | drop NOT_STAMPED
to_tunnel A>R udp 1>53 mark=stamp:A | remove A | drop NOT_STAMPED
to_tunnel A>R udp 1>53 mark=stamp:A | becomes A 9 | drop NOT_STAMPED
v4 to_tunnel A>R udp 1>53 mark=stamp:A length=1 | | drop INVALID_PACKET

# out of the tunnel
from_tunnel R>A udp 1>53 | | pass mark:tunnel
from_tunnel R>A udp 1>53 mark=stamp:A | | pass mark:tunnel
from_tunnel W>A udp 1>53 mark=0xffff0042 | | pass mark:0x20000042

# onto the underlay
to_netdev A>R udp 1>53 mark=stamp:A | | drop UNENCRYPTED
to_netdev A>N udp 1>53 mark=stamp:A | | drop UNENCRYPTED
to_netdev A>B udp 1>53 mark=stamp:A | | drop UNENCRYPTED
to_netdev H>R udp 1>53 | | drop UNENCRYPTED
to_netdev A>W udp 1>53 mark=stamp:A | | pass
to_netdev A>W udp 1>53 | | drop NOT_STAMPED
to_netdev A>W udp 1>53 mark=stamp:B | | drop SPOOFED_STAMP
to_netdev R>W udp 1>53 mark=tunnel | | drop NOT_STAMPED
to_netdev N>W udp 1>53 | | drop NOT_STAMPED
to_netdev A>R udp 1>53 mark=stamp:A | unbound | pass
to_netdev A>R udp 1>53 | unbound | drop NOT_STAMPED
to_netdev A>W udp 1>53 mark=stamp:A | fence A | drop NOT_STAMPED
to_netdev H>M udp 51871>51871 | | pass
to_netdev H>W tcp 1>443 S | | pass
to_netdev A>W proto 47 mark=stamp:A | | drop UNENCRYPTED
to_netdev A>W proto 4 mark=stamp:A | | drop UNENCRYPTED
to_netdev A>W proto 47 mark=stamp:A | unbound | pass
to_netdev H>W proto 47 | | pass
v4 to_netdev H>W udp 1>2 length=1 | | drop INVALID_PACKET

# off the underlay
from_netdev R>A udp 1>53 | | drop UNENCRYPTED
from_netdev N>A udp 1>53 | | drop UNENCRYPTED
from_netdev R>H udp 1>53 | | drop UNENCRYPTED
from_netdev R>A udp 1>53 mark=stamp:A | unbound | pass mark:underlay
from_netdev A>R udp 1>53 | unbound | drop NOT_STAMPED
from_netdev B>A udp 1>53 | | drop NOT_STAMPED
from_netdev H>A udp 1>53 | | drop NOT_STAMPED
from_netdev W>A udp 1>53 mark=stamp:B | | pass mark:0
from_netdev M>H udp 51871>51871 mark=0xffff0007 | | pass mark:7
from_netdev M>H tcp 1>4250 S | | pass mark:0
v4 from_netdev W>H udp 1>2 length=1 | | drop INVALID_PACKET
v6 from_netdev W>H udp 1>2 length=500 | | drop INVALID_PACKET
v6 to_netdev H>W udp 1>2 length=500 | | drop INVALID_PACKET
v6 to_tunnel A>R udp 1>53 mark=stamp:A length=500 | | drop INVALID_PACKET
v6 from_netdev W>H udp 1>2 set=8:0,9:0,10:0,11:0,12:0,13:0,14:0,15:0,16:0,17:0,18:255,19:255,20:8,21:0,22:2,23:30 | | drop UNKNOWN_L3

# what is to be encrypted goes by the tunnel or not at all
to_netdev A>W udp 1>53 mark=stamp:A | prefix W/host encrypt | drop UNENCRYPTED
to_netdev H>W udp 1>53 | prefix W/host encrypt | drop UNENCRYPTED
to_netdev W>H udp 1>53 | prefix W/host encrypt | drop UNENCRYPTED
to_netdev A>R udp 1>53 mark=stamp:A | unbound; owner R encrypt | drop UNENCRYPTED
to_netdev H>M udp 1>53 | owner M encrypt | drop UNENCRYPTED
from_netdev R>A udp 1>53 | unbound; owner R encrypt | drop UNENCRYPTED
from_netdev W>A udp 1>53 | prefix W/host encrypt | drop UNENCRYPTED
from_netdev W>A udp 1>53 | unbound; prefix W/host encrypt | drop UNENCRYPTED
to_workload R>A udp 1>53 mark=underlay | allow A<R; unbound; owner R encrypt | drop UNENCRYPTED
to_workload R>A udp 1>53 mark=tunnel | allow A<R; unbound; owner R encrypt | pass
to_workload W>A udp 1>53 | allow A<W; prefix W/host encrypt | drop UNENCRYPTED
to_workload W>A udp 1>53 mark=tunnel | allow A<W; prefix W/host encrypt | pass
to_workload W>A udp 53>1 | allow A>W; prefix W/host encrypt; from_workload A>W udp 1>53 | drop UNENCRYPTED
to_workload W>A udp 53>1 mark=tunnel | allow A>W; prefix W/host encrypt; from_workload A>W udp 1>53 | pass
`);
