/** TCP: what opens, what answers, what no stack sends, and how a connection ends. */
import { rows } from './rows.ts';

export const tcp = rows(`
# opening
from_workload A>R tcp 40000>80 S | | drop POLICY_DENIED
from_workload A>R tcp 40000>80 S | allow A>R | pass
from_workload A>R tcp 40000>80 SEC | allow A>R | pass
from_workload A>R tcp 40000>80 SU | allow A>R | pass
from_workload A>R tcp 40000>80 S | allow A>R tcp/80 | pass
from_workload A>R tcp 40000>81 S | allow A>R tcp/80 | drop POLICY_DENIED
from_workload A>R tcp 80>40000 S | allow A>R tcp/80 | drop POLICY_DENIED
to_workload R>A tcp 40000>80 S mark=tunnel | | drop POLICY_DENIED
to_workload R>A tcp 40000>80 S mark=tunnel | allow A<R tcp/80 | pass
to_workload R>A tcp 40000>80 S mark=tunnel | allow A>R | drop POLICY_DENIED
from_workload A>R tcp 0>0 S | allow A>R tcp | pass
from_workload A>R tcp 0>0 S | allow A>R tcp/0 | pass
from_workload A>R tcp 1>65535 S | allow A>R tcp/65535 | pass

# what needs a flow
from_workload A>R tcp 40000>80 SA | allow A>R | drop STRAY
from_workload A>R tcp 40000>80 R | allow A>R | drop STRAY
from_workload A>R tcp 40000>80 RA | allow A>R | drop STRAY
to_workload R>A tcp 80>40000 SA mark=tunnel | allow A>R; allow A<R | drop STRAY
to_workload R>A tcp 80>40000 SA mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | pass
to_workload R>A tcp 80>40000 RA mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | pass
to_workload R>A tcp 81>40000 SA mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | drop STRAY
to_workload R>A tcp 80>40001 SA mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | drop STRAY

# a running connection whose beginning nobody saw is picked up, if policy allows it
from_workload A>R tcp 40000>80 A | allow A>R tcp/80 | pass
from_workload A>R tcp 40000>80 PA | allow A>R tcp/80 | pass
from_workload A>R tcp 40000>80 FA | allow A>R tcp/80 | pass
from_workload A>R tcp 40000>80 A | | drop POLICY_DENIED
to_workload R>A tcp 80>40000 A mark=tunnel | allow A>R tcp/80 | drop POLICY_DENIED
to_workload R>A tcp 80>40000 A mark=tunnel | allow A>R tcp/80; from_workload A>R tcp 40000>80 A | pass

# what no stack sends
from_workload A>R tcp 40000>80 - | allow A>R | drop TCP_FLAGS
from_workload A>R tcp 40000>80 F | allow A>R | drop TCP_FLAGS
from_workload A>R tcp 40000>80 SF | allow A>R | drop TCP_FLAGS
from_workload A>R tcp 40000>80 SR | allow A>R | drop TCP_FLAGS
from_workload A>R tcp 40000>80 SFA | allow A>R | drop TCP_FLAGS
from_workload A>R tcp 40000>80 FR | allow A>R | drop TCP_FLAGS
from_workload A>R tcp 40000>80 FRA | allow A>R | drop TCP_FLAGS
from_workload A>R tcp 40000>80 FPU | allow A>R | drop TCP_FLAGS
from_workload A>R tcp 40000>80 P | allow A>R | drop TCP_FLAGS
from_workload A>R tcp 40000>80 U | allow A>R | drop TCP_FLAGS
from_workload A>R tcp 40000>80 RU | allow A>R | drop TCP_FLAGS
from_workload A>R tcp 40000>80 SAU | allow A>R | drop TCP_FLAGS
from_workload A>R tcp 40000>80 FSRPAUEC | allow A>R | drop TCP_FLAGS
from_workload A>R tcp 40000>80 F | allow A>R; from_workload A>R tcp 40000>80 A | drop TCP_FLAGS
to_workload R>A tcp 80>40000 - mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 A | drop TCP_FLAGS

# data offset
from_workload A>R tcp 40000>80 S doff=4 | allow A>R | drop INVALID_PACKET
from_workload A>R tcp 40000>80 S doff=0 | allow A>R | drop INVALID_PACKET
from_workload A>R tcp 40000>80 S doff=9 size=16 | allow A>R | pass
from_workload A>R tcp 40000>80 S doff=10 size=16 | allow A>R | drop INVALID_PACKET
from_workload A>R tcp 40000>80 S doff=15 size=40 | allow A>R | pass

# replies need no rule of their own, new connections do
from_workload A>R tcp 80>40000 SA | allow A<R tcp/80; to_workload R>A tcp 40000>80 S mark=tunnel | pass
from_workload A>R tcp 80>40000 A | allow A<R tcp/80; to_workload R>A tcp 40000>80 S mark=tunnel; from_workload A>R tcp 80>40000 SA | pass
from_workload A>R tcp 80>40000 S | allow A<R tcp/80; to_workload R>A tcp 40000>80 S mark=tunnel | drop POLICY_DENIED
to_workload R>A tcp 80>40000 S mark=tunnel | allow A>R tcp/80; from_workload A>R tcp 40000>80 S | drop POLICY_DENIED
to_workload R>A tcp 80>40000 A mark=tunnel | allow A>R tcp/80; from_workload A>R udp 40000>80 | drop POLICY_DENIED

# in a connection: what belongs to its state passes, the rest is a stray
from_workload A>R tcp 40000>80 A | allow A>R; from_workload A>R tcp 40000>80 S; to_workload R>A tcp 80>40000 SA mark=tunnel | pass
from_workload A>R tcp 40000>80 A | allow A>R; from_workload A>R tcp 40000>80 S | drop STRAY
from_workload A>R tcp 40000>80 FA | allow A>R; from_workload A>R tcp 40000>80 S | drop STRAY
from_workload A>R tcp 40000>80 SA | allow A>R; from_workload A>R tcp 40000>80 S | drop STRAY
from_workload A>R tcp 40000>80 S | allow A>R; from_workload A>R tcp 40000>80 S | pass
to_workload R>A tcp 80>40000 FA mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | drop STRAY
to_workload R>A tcp 80>40000 A mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | pass
to_workload R>A tcp 80>40000 SA mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S; to_workload R>A tcp 80>40000 SA mark=tunnel x2 | pass

# how it ends
to_workload R>A tcp 80>40000 A mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 A; from_workload A>R tcp 40000>80 FA; wait 110 | pass
to_workload R>A tcp 80>40000 A mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 A; from_workload A>R tcp 40000>80 FA; wait 122 | drop POLICY_DENIED
to_workload R>A tcp 80>40000 A mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 A; from_workload A>R tcp 40000>80 FA; to_workload R>A tcp 80>40000 FA mark=tunnel; wait 28 | pass
to_workload R>A tcp 80>40000 A mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 A; from_workload A>R tcp 40000>80 FA; to_workload R>A tcp 80>40000 FA mark=tunnel; wait 32 | drop POLICY_DENIED
to_workload R>A tcp 80>40000 A mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 A; from_workload A>R tcp 40000>80 RA; wait 8 | pass
to_workload R>A tcp 80>40000 A mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 A; from_workload A>R tcp 40000>80 RA; wait 12 | drop POLICY_DENIED
to_workload R>A tcp 80>40000 SA mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S; wait 118 | pass
to_workload R>A tcp 80>40000 SA mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S; wait 122 | drop STRAY
to_workload R>A tcp 80>40000 A mark=tunnel | lease R 900000; allow A>R; from_workload A>R tcp 40000>80 A; wait 431990 | pass
to_workload R>A tcp 80>40000 A mark=tunnel | lease R 900000; allow A>R; from_workload A>R tcp 40000>80 A; wait 432002 | drop POLICY_DENIED
to_workload R>A tcp 80>40000 SA mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 A; from_workload A>R tcp 40000>80 R; from_workload A>R tcp 40000>80 S | pass
from_workload A>R tcp 40000>80 S | allow A>R; from_workload A>R tcp 40000>80 A; from_workload A>R tcp 40000>80 R; forbid-all; bump | drop POLICY_DENIED
`);
