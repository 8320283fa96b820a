/** Fragments: the first one has the ports, the later ones go by it, and none goes without it. */
import { rows } from './rows.ts';

export const fragments = rows(`
# the first
from_workload A>R udp 1>53 frag=0+ id=7 size=24 | | drop POLICY_DENIED
from_workload A>R udp 1>53 frag=0+ id=7 size=24 | allow A>R udp/53 | pass
from_workload A>R udp 1>54 frag=0+ id=7 size=24 | allow A>R udp/53 | drop POLICY_DENIED
from_workload A>R udp 1>53 frag=0+ id=7 size=24 udplen=4000 | allow A>R udp/53 | pass
from_workload A>R udp 1>53 frag=0+ id=7 size=24 udplen=7 | allow A>R udp/53 | drop INVALID_PACKET
from_workload A>R tcp 40000>80 S frag=0+ id=7 size=12 | allow A>R tcp/80 | pass
from_workload A>R proto 6 frag=0+ id=7 size=8 | allow A>R | drop FRAGMENT
from_workload A>R proto 6 frag=0+ id=7 size=16 | allow A>R | drop FRAGMENT
from_workload A>R tcp 40000>80 S frag=0+ id=7 doff=9 size=12 | allow A>R | drop FRAGMENT
from_workload A>R sctp 5000>80 init frag=0+ id=7 size=16 chunklen=400 | allow A>R | pass
from_workload A>R proto 132 frag=0+ id=7 size=8 | allow A>R | drop FRAGMENT
from_workload A>R echo 9 frag=0+ id=7 size=16 | allow A>R icmp/echo | pass
from_workload A>R toobig [R>A udp 1>2] frag=0+ id=7 size=56 | allow A>R; allow A<R; to_workload R>A udp 1>2 mark=tunnel | drop FRAGMENT
v6 from_workload A>H ns H frag=0+ id=7 | allow A>* | drop FRAGMENT
from_workload A>R udp 1>53 frag=0+ id=7 size=25 | allow A>R | drop INVALID_PACKET
from_workload A>R tcp 40000>80 - frag=0+ id=7 size=12 | allow A>R | drop TCP_FLAGS
from_workload A>R tcp 40000>80 SA frag=0+ id=7 size=12 | allow A>R | drop STRAY
from_workload A>R proto 47 frag=0+ id=7 size=32 | allow A>R | drop UNKNOWN_L4

# the later ones
from_workload A>R proto 17 frag=32 id=7 | allow A>R | drop FRAGMENT_NO_FIRST
from_workload A>R proto 17 frag=32+ id=7 | allow A>R | drop FRAGMENT_NO_FIRST
from_workload A>R proto 17 frag=32 id=7 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | pass
from_workload A>R proto 17 frag=32+ id=7 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | pass
from_workload A>R proto 17 frag=64 id=7 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24; from_workload A>R proto 17 frag=32+ id=7 | pass
from_workload A>R proto 17 frag=32 id=8 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | drop FRAGMENT_NO_FIRST
v4 from_workload A>R proto 6 frag=32 id=7 | allow A>R; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | drop FRAGMENT_NO_FIRST
from_workload A>W proto 17 frag=32 id=7 | allow A>*; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | drop FRAGMENT_NO_FIRST
from_workload A>R proto 17 frag=32 id=7 | from_workload A>R udp 1>53 frag=0+ id=7 size=24; allow A>R udp/53; bump | drop FRAGMENT_NO_FIRST
from_workload A>R proto 17 frag=32 id=7 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24; wait 28 | pass
from_workload A>R proto 17 frag=32 id=7 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24; wait 32 | drop FRAGMENT_NO_FIRST
from_workload A>R proto 17 frag=32 id=7 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24; lost fragments | drop FRAGMENT_NO_FIRST
from_workload A>R proto 17 frag=32 id=7 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24; lost flows | pass
from_workload A>R proto 17 frag=32 id=7 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24; forbid-all; bump | drop POLICY_DENIED
from_workload A>R proto 17 frag=32 id=7 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24; fence A; bump | drop FENCED
v4 from_workload A>R proto 17 frag=32+ id=7 size=9 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | drop INVALID_PACKET
from_workload A>R proto 17 frag=65528 id=7 size=8 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | drop INVALID_PACKET
from_workload A>R proto 17 frag=65520 id=7 size=8 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | pass
from_workload A>R proto 132 frag=32 id=7 | allow A>R; from_workload A>R sctp 5000>80 data frag=0+ id=7 size=16 chunklen=400 | pass
from_workload A>R proto 6 frag=32 id=7 | allow A>R; from_workload A>R tcp 40000>80 A frag=0+ id=7 size=12 | pass
v4 from_workload A>R proto 1 frag=24 id=7 | allow A>R icmp/echo; from_workload A>R echo 9 frag=0+ id=7 size=16 | pass
v6 from_workload A>R proto 58 frag=24 id=7 | allow A>R icmp/echo; from_workload A>R echo 9 frag=0+ id=7 size=16 | pass


# of a running flow, the first as well
from_workload A>R udp 1>53 frag=0+ id=7 size=24 mac=02:00:00:00:00:0b | allow A>R; mac A 02:00:00:00:00:0a; from_workload A>R udp 1>53 | pass
from_workload A>R proto 17 frag=32 id=7 | allow A>R; from_workload A>R udp 1>53; from_workload A>R udp 1>53 frag=0+ id=7 size=24; forbid-all | pass
from_workload A>R proto 17 frag=32 id=7 | allow A>R; from_workload A>R udp 1>53; from_workload A>R udp 1>53 frag=0+ id=7 size=24; forbid-all; bump | drop POLICY_DENIED

# overlaps
from_workload A>R proto 17 frag=8 id=7 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | pass
from_workload A>R proto 6 frag=16 id=7 | allow A>R; from_workload A>R tcp 40000>80 A frag=0+ id=7 size=12 | drop FRAGMENT_OVERLAP
from_workload A>R proto 6 frag=24 id=7 | allow A>R; from_workload A>R tcp 40000>80 A frag=0+ id=7 doff=8 size=28 | drop FRAGMENT_OVERLAP
from_workload A>R proto 6 frag=32 id=7 | allow A>R; from_workload A>R tcp 40000>80 A frag=0+ id=7 doff=8 size=28 | pass
v4 from_workload A>R proto 6 frag=8 id=7 | allow A>R | drop FRAGMENT_OVERLAP
v6 from_workload A>R proto 6 frag=8 id=7 | allow A>R | drop FRAGMENT_NO_FIRST
v4 from_workload A>R proto 132 frag=8 id=7 | allow A>R | drop FRAGMENT_OVERLAP
from_workload A>R udp 1>53 frag=0+ id=7 size=24 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | pass
from_workload A>R udp 1>54 frag=0+ id=7 size=24 | allow A>R; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | drop FRAGMENT_OVERLAP
from_workload A>R udp 2>53 frag=0+ id=7 size=24 | allow A>R; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | drop FRAGMENT_OVERLAP
from_workload A>R tcp 1>80 A frag=0+ id=7 doff=6 size=20 | allow A>R; from_workload A>R tcp 1>80 A frag=0+ id=7 size=12 | drop FRAGMENT_OVERLAP
v6 from_workload A>R udp 1>53 frag=0+ id=7 ext2=dst size=24 | allow A>R; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | drop FRAGMENT_OVERLAP
v4 from_workload A>R tcp 1>53 S frag=0+ id=7 size=12 | allow A>R; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | pass
v6 from_workload A>R tcp 1>53 S frag=0+ id=7 size=12 | allow A>R; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | drop FRAGMENT_OVERLAP
from_workload A>R udp 1>54 frag=0+ id=7 size=24 | allow A>R; from_workload A>R udp 1>53 frag=0+ id=7 size=24; from_workload A>R proto 17 frag=32 id=7 | pass
from_workload A>R udp 1>54 frag=0+ id=7 size=24 | allow A>R; from_workload A>R udp 1>53 frag=0+ id=7 size=24; wait 32 | pass
v6 from_workload A>R proto 17 frag=8 id=7 | allow A>R; from_workload A>R udp 1>53 frag=0+ id=7 ext2=dst size=24 | drop FRAGMENT_OVERLAP
v6 from_workload A>R proto 60 frag=16 id=7 | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 ext2=dst size=24 | pass

# coming in
to_workload R>A proto 17 frag=32 id=7 mark=tunnel | allow A<R udp/53; to_workload R>A udp 1>53 frag=0+ id=7 size=24 mark=tunnel | pass
to_workload R>A proto 17 frag=32 id=7 mark=tunnel | allow A<R | drop FRAGMENT_NO_FIRST
to_workload R>A proto 17 frag=32 id=7 | allow A<R udp/53; to_workload R>A udp 1>53 frag=0+ id=7 size=24 mark=tunnel | drop UNENCRYPTED
from_workload A>R proto 17 frag=32 id=7 | allow A<R; allow A>R; to_workload R>A udp 1>53 frag=0+ id=7 size=24 mark=tunnel | drop FRAGMENT_NO_FIRST
to_workload R>A udp 53>1 frag=0+ id=9 size=24 mark=tunnel | allow A>R udp/53; from_workload A>R udp 1>53 | pass
to_workload R>A proto 17 frag=32 id=9 mark=tunnel | allow A>R udp/53; from_workload A>R udp 1>53; to_workload R>A udp 53>1 frag=0+ id=9 size=24 mark=tunnel | pass
to_workload R>A toobig [A>R proto 17 frag=32 id=7 size=64] mark=tunnel | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | pass
to_workload R>A toobig [A>R proto 17 frag=32 id=8 size=64] mark=tunnel | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | drop ICMP_TYPE
to_workload R>A toobig [A>R udp 1>53 frag=0+ id=7 size=24] mark=tunnel | allow A>R udp/53; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | pass

# held: the later ones wait behind the first
from_workload A>R udp 1>53 frag=0+ id=7 size=24 | allow A>R udp/53 auth | hold
from_workload A>R proto 17 frag=32 id=7 | allow A>R udp/53 auth; from_workload A>R udp 1>53 frag=0+ id=7 size=24 | hold
from_workload A>R proto 17 frag=32 id=7 | allow A>R udp/53 auth; from_workload A>R udp 1>53 frag=0+ id=7 size=24; proof A-R | hold
from_hold A>R proto 17 frag=32 id=7 | allow A>R udp/53 auth; from_workload A>R udp 1>53 frag=0+ id=7 size=24; from_workload A>R proto 17 frag=32 id=7; proof A-R; from_hold A>R udp 1>53 frag=0+ id=7 size=24 | pass
from_hold A>R proto 17 frag=32 id=8 | allow A>R udp/53 | drop FRAGMENT_NO_FIRST
from_workload A>R proto 17 frag=32 id=7 | allow A>R udp/53 auth; limit 0; from_workload A>R udp 1>53 frag=0+ id=7 size=24; proof A-R | drop FRAGMENT_NO_FIRST

# between nodes nothing is put together
to_tunnel A>R proto 17 frag=32 id=7 mark=stamp:A | | pass
to_netdev A>W proto 17 frag=32 id=7 mark=stamp:A | | pass
to_netdev A>R proto 17 frag=32 id=7 mark=stamp:A | | drop UNENCRYPTED
from_netdev R>A proto 17 frag=32 id=7 | | drop UNENCRYPTED
from_netdev M>H proto 17 frag=32 id=7 | | pass mark:0
`);
