/** ICMP and ICMPv6: echo is a flow, errors belong to one, all else is nobody's. */
import { rows } from './rows.ts';

export const icmp = rows(`
# echo
from_workload A>R echo 9 | | drop POLICY_DENIED
from_workload A>R echo 9 | allow A>R | pass
from_workload A>R echo 9 | allow A>R icmp | pass
from_workload A>R echo 9 | allow A>R icmp/echo | pass
from_workload A>R echo 9 | allow A>R icmp/3 | drop POLICY_DENIED
from_workload A>R echo 9 | allow A>R tcp | drop POLICY_DENIED
from_workload A>R echo 9 | deny A>R icmp/echo; allow A>R icmp | drop POLICY_DENY_RULE
from_workload A>R echo-reply 9 | allow A>R | drop STRAY
to_workload R>A echo-reply 9 mark=tunnel | allow A>R; allow A<R | drop STRAY
to_workload R>A echo-reply 9 mark=tunnel | allow A>R icmp/echo; from_workload A>R echo 9 | pass
to_workload R>A echo-reply 10 mark=tunnel | allow A>R; from_workload A>R echo 9 | drop STRAY
to_workload R>A echo-reply 9 mark=tunnel | allow A>R; from_workload A>R echo 9; wait 28 | pass
to_workload R>A echo-reply 9 mark=tunnel | allow A>R; from_workload A>R echo 9; wait 32 | drop STRAY
to_workload R>A echo-reply 9 mark=tunnel | allow A>R icmp/echo; from_workload A>R echo 9; bump | pass
to_workload R>A echo-reply 9 mark=tunnel | allow A>R; from_workload A>R echo 9; forbid-all; bump | drop POLICY_DENIED
to_workload R>A echo 9 mark=tunnel | allow A>R; from_workload A>R echo 9 | drop POLICY_DENIED
from_workload A>R echo-reply 9 | allow A>R; from_workload A>R echo 9 | drop STRAY
from_workload A>R echo-reply 9 | allow A<R; to_workload R>A echo 9 mark=tunnel | pass
from_workload A>R echo-reply 9 | allow A<R; allow A>R; to_workload R>A echo 9 mark=tunnel; from_workload A>R echo 9 | pass

# types
v4 from_workload A>R icmp 5 | allow A>R | drop ICMP_TYPE
v4 from_workload A>R icmp 13 | allow A>R | drop ICMP_TYPE
v4 from_workload A>R icmp 255 | allow A>R | drop ICMP_TYPE
v4 from_workload A>R icmp 9 | allow A>R | drop ICMP_TYPE
v4 from_workload A>R icmp 17 | allow A>R | drop ICMP_TYPE
v6 from_workload A>R icmp 137 | allow A>R | drop ICMP_TYPE
v6 from_workload A>R icmp 139 | allow A>R | drop ICMP_TYPE
v6 from_workload A>R icmp 0 | allow A>R | drop ICMP_TYPE
v6 from_workload A>R icmp 5 | allow A>R | drop ICMP_TYPE
v6 from_workload A>R icmp 8 | allow A>R | drop ICMP_TYPE
v4 from_workload A>R icmp 128 | allow A>R | drop ICMP_TYPE
v6 from_workload A>R proto 1 | allow A>R | drop UNKNOWN_L4
v4 from_workload A>R proto 58 | allow A>R | drop UNKNOWN_L4

# membership reports
v6 from_workload A>R icmp 130 | allow A>R | drop MEMBERSHIP
v6 from_workload A>ff02::16 icmp 143 ttl=1 | allow A>* | drop MEMBERSHIP
v6 from_workload fe80::1>ff02::16 icmp 131 ttl=1 | allow A>* | drop MEMBERSHIP
v6 from_workload fe80::1>ff02::2 icmp 132 ttl=1 | allow A>* | drop MEMBERSHIP
v4 from_workload A>224.0.0.22 proto 2 ttl=1 | allow A>* | drop MEMBERSHIP
v6 from_workload A>R proto 2 | allow A>* | drop UNKNOWN_L4
v6 to_workload fe80::1>ff02::1 icmp 130 ttl=1 | allow A<* | drop MEMBERSHIP

# errors come in with the flow they quote
to_workload R>A toobig [A>R tcp 40000>80 S] mark=tunnel | allow A>R; allow A<R | drop ICMP_TYPE
to_workload R>A toobig [A>R tcp 40000>80 S] mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | pass
to_workload R>A unreachable [A>R tcp 40000>80 S] mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | pass
to_workload R>A time-exceeded [A>R udp 40000>53] mark=tunnel | allow A>R; from_workload A>R udp 40000>53 | pass
to_workload R>A unreachable [A>R udp 40000>53] mark=tunnel | allow A>R; from_workload A>R udp 40000>53 | pass
to_workload R>A unreachable [A>R sctp 5000>80 init] mark=tunnel | allow A>R; from_workload A>R sctp 5000>80 init | pass
to_workload R>A unreachable [A>R echo 9] mark=tunnel | allow A>R; from_workload A>R echo 9 | pass
to_workload R>A unreachable [A>R echo-reply 9] mark=tunnel | allow A<R; to_workload R>A echo 9 mark=tunnel | pass
to_workload R>A unreachable [A>R echo-reply 9] mark=tunnel | allow A>R; from_workload A>R echo 9 | drop ICMP_TYPE
to_workload R>A toobig [A>R tcp 40001>80 S] mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
to_workload R>A toobig [A>R udp 40000>80] mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
to_workload R>A toobig [R>A tcp 80>40000 A] mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
to_workload R>A toobig [B>R tcp 40000>80 S] mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
to_workload R>A toobig [A>R proto 47] mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
to_workload R>A toobig [A>R tcp 40000>80 S] mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S; bump | drop ICMP_TYPE
to_workload R>A toobig [A>R tcp 40000>80 S] mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S; wait 122 | drop ICMP_TYPE
to_workload R>A toobig [A>R toobig [R>A tcp 80>40000 A]] mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE

# from where
to_workload R>A toobig [A>R tcp 40000>80 S] | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
to_workload R>A toobig [A>R tcp 40000>80 S] mark=underlay | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
to_workload H>A toobig [A>R tcp 40000>80 S] | allow A>R; from_workload A>R tcp 40000>80 S | pass
to_workload W>A toobig [A>R tcp 40000>80 S] | allow A>R; from_workload A>R tcp 40000>80 S | pass
to_workload B>A toobig [A>R tcp 40000>80 S] mark=stamp:B | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
to_workload N>A toobig [A>R tcp 40000>80 S] | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
to_workload W>A toobig [A>R tcp 40000>80 S] | allow A>R auth; proof A-R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
to_workload H>A toobig [A>R tcp 40000>80 S] | allow A>R auth; proof A-R; from_workload A>R tcp 40000>80 S | pass
to_workload R>A toobig [A>R tcp 40000>80 S] mark=tunnel | allow A>R auth; proof A-R; from_workload A>R tcp 40000>80 S | pass

# errors go out about what came in
from_workload A>R unreachable [R>A udp 40000>53] | allow A<R; to_workload R>A udp 40000>53 mark=tunnel | pass
from_workload A>R toobig [R>A tcp 80>40000 A] | allow A>R; from_workload A>R tcp 40000>80 S | pass
from_workload A>R unreachable [R>A udp 40000>53] | allow A>R; allow A<R | drop ICMP_TYPE
from_workload A>W unreachable [R>A udp 40000>53] | allow A<R; to_workload R>A udp 40000>53 mark=tunnel | drop ICMP_TYPE
from_workload A>R unreachable [A>R udp 53>40000] | allow A<R; to_workload R>A udp 40000>53 mark=tunnel | drop ICMP_TYPE
from_workload B>R unreachable [R>A udp 40000>53] | allow A<R; to_workload R>A udp 40000>53 mark=tunnel | drop INVALID_SOURCE_IP

# what they quote is read no further than it goes
to_workload R>A toobig [A>R tcp 40000>80 S] mark=tunnel size=0 pad=60 | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
v4 to_workload R>A toobig [A>R tcp 40000>80 S] mark=tunnel size=27 | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
v4 to_workload R>A toobig [A>R tcp 40000>80 S] mark=tunnel size=28 | allow A>R; from_workload A>R tcp 40000>80 S | pass
v6 to_workload R>A toobig [A>R tcp 40000>80 S] mark=tunnel size=47 | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
v6 to_workload R>A toobig [A>R tcp 40000>80 S] mark=tunnel size=48 | allow A>R; from_workload A>R tcp 40000>80 S | pass
v4 to_workload R>A toobig [A>R tcp 40000>80 S opts=nop] mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | pass
v4 to_workload R>A toobig [A>R tcp 40000>80 S version=6] mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
v4 to_workload R>A toobig [A>R tcp 40000>80 S ihl=4] mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
v4 to_workload R>A toobig [A>R tcp 40000>80 S] mark=tunnel length=28 | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
v4 to_workload R>A toobig [A>R tcp 40000>80 S] mark=tunnel length=55 | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
v6 to_workload R>A toobig [A>R tcp 40000>80 S] mark=tunnel length=8 | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
v6 to_workload R>A toobig [A>R tcp 40000>80 S] mark=tunnel length=55 | allow A>R; from_workload A>R tcp 40000>80 S | drop ICMP_TYPE
v6 to_workload R>A toobig [A>R tcp 40000>80 S ext=hop,dst] mark=tunnel | allow A>R; from_workload A>R tcp 40000>80 S | pass
`);
