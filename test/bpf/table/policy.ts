/** Policy: which line decides. */
import { rows } from './rows.ts';

export const policy = rows(`
# default deny, each direction for itself
from_workload A>R udp 1>53 | allow A<R | drop POLICY_DENIED
to_workload R>A udp 1>53 mark=tunnel | allow A>R | drop POLICY_DENIED
from_workload A>B udp 1>53 | allow A>R | drop POLICY_DENIED
from_workload A>R udp 1>53 | allow B>R | drop POLICY_DENIED

# entities
from_workload A>B udp 1>53 | allow A>B | pass
from_workload A>H udp 1>53 | allow A>H | pass
from_workload A>M udp 1>53 | allow A>M | pass
from_workload A>W udp 1>53 | allow A>W | pass
from_workload A>R udp 1>53 | allow A>W | drop POLICY_DENIED
from_workload A>H udp 1>53 | allow A>M | drop POLICY_DENIED
from_workload A>M udp 1>53 | allow A>H | drop POLICY_DENIED
from_workload A>W udp 1>53 | allow A>H; allow A>M; allow A>R | drop POLICY_DENIED
to_workload B>A udp 1>53 mark=stamp:B | allow A<B | pass
to_workload H>A udp 1>53 | allow A<H | pass
to_workload M>A udp 1>53 | allow A<M | pass
to_workload M>A udp 1>53 mark=tunnel | allow A<M | pass
to_workload W>A udp 1>53 | allow A<W | pass
to_workload H>A udp 1>53 | allow A<W | drop POLICY_DENIED

# any: the other side, the protocol, the port
from_workload A>R udp 1>53 | allow A>* | pass
from_workload A>R udp 1>53 | allow A>* udp | pass
from_workload A>R udp 1>53 | allow A>* udp/53 | pass
from_workload A>R udp 1>53 | allow A>R udp | pass
from_workload A>R udp 1>53 | allow A>* tcp | drop POLICY_DENIED
from_workload A>R udp 1>53 | allow A>* udp/54 | drop POLICY_DENIED

# the other side before the port, the port before the protocol
from_workload A>R udp 1>53 | deny A>R udp/53; allow A>R udp; allow A>R; allow A>* udp/53; allow A>* | drop POLICY_DENY_RULE
from_workload A>R udp 1>53 | allow A>R udp/53; deny A>R udp; deny A>R; deny A>* udp/53; deny A>* | pass
from_workload A>R udp 1>53 | deny A>R udp; allow A>R; allow A>* udp/53; allow A>* udp; allow A>* | drop POLICY_DENY_RULE
from_workload A>R udp 1>53 | allow A>R udp; deny A>R; deny A>* udp/53; deny A>* udp; deny A>* | pass
from_workload A>R udp 1>53 | deny A>R; allow A>* udp/53; allow A>* udp; allow A>* | drop POLICY_DENY_RULE
from_workload A>R udp 1>53 | allow A>R; deny A>* udp/53; deny A>* udp; deny A>* | pass
from_workload A>R udp 1>53 | deny A>* udp/53; allow A>* udp; allow A>* | drop POLICY_DENY_RULE
from_workload A>R udp 1>53 | allow A>* udp/53; deny A>* udp; deny A>* | pass
from_workload A>R udp 1>53 | deny A>* udp; allow A>* | drop POLICY_DENY_RULE
from_workload A>R udp 1>53 | allow A>* udp; deny A>* | pass
from_workload A>R udp 1>53 | deny A>* | drop POLICY_DENY_RULE
from_workload A>R udp 1>53 | deny A>R tcp/53; allow A>R | pass

# no rule allows it, and a rule denies it
from_workload A>R udp 1>53 | none A>R; allow A>* | drop POLICY_DENIED
from_workload A>R udp 1>53 | none A>* | drop POLICY_DENIED
to_workload R>A udp 1>53 mark=tunnel | deny A<R udp/53; allow A<* | drop POLICY_DENY_RULE
to_workload R>A udp 1>53 mark=tunnel | none A<R udp/53; allow A<* | drop POLICY_DENIED

# port prefixes: the longest that covers it
from_workload A>R tcp 1>8080 S | allow A>R tcp/8080/12 | pass
from_workload A>R tcp 1>8095 S | allow A>R tcp/8080/12 | pass
from_workload A>R tcp 1>8096 S | allow A>R tcp/8080/12 | drop POLICY_DENIED
from_workload A>R tcp 1>8079 S | allow A>R tcp/8080/12 | drop POLICY_DENIED
from_workload A>R tcp 1>8064 S | allow A>R tcp/8080/11 | pass
from_workload A>R tcp 1>8063 S | allow A>R tcp/8080/11 | drop POLICY_DENIED
from_workload A>R tcp 1>32768 S | allow A>R tcp/32768/1 | pass
from_workload A>R tcp 1>65535 S | allow A>R tcp/32768/1 | pass
from_workload A>R tcp 1>32767 S | allow A>R tcp/32768/1 | drop POLICY_DENIED
from_workload A>R tcp 1>0 S | allow A>R tcp/0/1 | pass
from_workload A>R tcp 1>1 S | allow A>R tcp/0/15 | pass
from_workload A>R tcp 1>2 S | allow A>R tcp/0/15 | drop POLICY_DENIED
from_workload A>R tcp 1>8081 S | allow A>R tcp/8080/15 | pass
from_workload A>R tcp 1>8081 S | deny A>R tcp/8080/15; allow A>R tcp/8080/12 | drop POLICY_DENY_RULE
from_workload A>R tcp 1>8082 S | deny A>R tcp/8080/15; allow A>R tcp/8080/12 | pass
from_workload A>R tcp 1>8080 S | allow A>R tcp/8080; deny A>R tcp/8080/15; allow A>R tcp/8080/12; deny A>R tcp | pass
from_workload A>R tcp 1>8081 S | allow A>R tcp/8080; deny A>R tcp/8080/15; allow A>R tcp/8080/12; deny A>R tcp | drop POLICY_DENY_RULE
from_workload A>R tcp 1>8088 S | allow A>R tcp/8080; deny A>R tcp/8080/15; allow A>R tcp/8080/12; deny A>R tcp | pass
from_workload A>R tcp 1>9000 S | allow A>R tcp/8080; deny A>R tcp/8080/15; allow A>R tcp/8080/12; deny A>R tcp | drop POLICY_DENY_RULE
from_workload A>R tcp 1>8080 S | deny A>* tcp/8080; allow A>R tcp/8080/4 | pass
from_workload A>R udp 1>8080 | allow A>R tcp/8080/12 | drop POLICY_DENIED
to_workload R>A sctp 1>8081 init mark=tunnel | allow A<R sctp/8080/15 | pass
to_workload R>A sctp 1>8082 init mark=tunnel | allow A<R sctp/8080/15 | drop POLICY_DENIED

# CIDR identities: the narrowest prefix
from_workload A>W udp 1>53 | prefix W/host identity=C; allow A>C | pass
from_workload A>W udp 1>53 | prefix W/host identity=C; allow A>W | drop POLICY_DENIED
v4 from_workload A>W udp 1>53 | prefix W/24 identity=C; allow A>C | pass
v4 from_workload A>W udp 1>53 | prefix W/24 identity=C; prefix W/host identity=D; allow A>C | drop POLICY_DENIED
v4 from_workload A>W udp 1>53 | prefix W/24 identity=C; prefix W/host identity=D; allow A>D | pass
v4 from_workload A>W udp 1>53 | prefix W/24 identity=C; prefix W/32 ; allow A>W | pass
v4 from_workload A>W udp 1>53 | prefix 0.0.0.0/0 identity=C; allow A>C | pass
v6 from_workload A>W udp 1>53 | prefix ::/0 identity=C; allow A>C | pass
v6 from_workload A>W udp 1>53 | prefix W/64 identity=C; prefix W/127 identity=D; allow A>D | pass
v4 from_workload A>W udp 1>53 | prefix ::/0 identity=C; prefix 0.0.0.0/0 identity=D; allow A>D | pass
to_workload W>A udp 1>53 | prefix W/host identity=C; allow A<C | pass
to_workload W>A udp 1>53 | prefix W/host identity=C; deny A<C; allow A<* | drop POLICY_DENY_RULE
from_workload A>R udp 1>53 | prefix R/host identity=C; allow A>C; deny A>R | drop POLICY_DENY_RULE
from_workload A>H udp 1>53 | prefix H/host identity=C; allow A>C | drop POLICY_DENIED
from_workload A>N udp 1>53 | prefix N/host cluster; no-hold; allow A>* | drop NO_VOUCH

# who has no class is dropped, whatever is allowed to any
from_workload A>R udp 1>53 | allow A>*; unclassed R | drop POLICY_UNKNOWN_IDENTITY
from_workload A>R udp 1>53 | allow A>*; unclassed A | drop POLICY_UNKNOWN_IDENTITY
to_workload R>A udp 1>53 mark=tunnel | allow A<*; unclassed R | drop POLICY_UNKNOWN_IDENTITY
from_workload A>W udp 1>53 | allow A>*; prefix W/host identity=99999 | drop POLICY_UNKNOWN_IDENTITY
from_workload A>R udp 1>53 | allow A>*; owner R identity=77777 | drop POLICY_UNKNOWN_IDENTITY

# a change is in force with the next packet once the revision is raised, replies included
from_workload A>R udp 1>53 | allow A>R; from_workload A>R udp 1>53; forbid-all | pass
from_workload A>R udp 1>53 | allow A>R; from_workload A>R udp 1>53; forbid-all; bump | drop POLICY_DENIED
to_workload R>A udp 53>1 mark=tunnel | allow A>R; from_workload A>R udp 1>53; forbid-all; bump | drop POLICY_DENIED
to_workload R>A udp 53>1 mark=tunnel | allow A>R; from_workload A>R udp 1>53; bump | pass
to_workload R>A udp 53>1 mark=tunnel | allow A>R; from_workload A>R udp 1>53; deny A<R; bump | pass
to_workload R>A udp 53>1 mark=tunnel | allow A>R; from_workload A>R udp 1>53; deny A>R udp/53; bump | drop POLICY_DENY_RULE
to_workload R>A udp 53>1 mark=tunnel | allow A>R; stateless; from_workload A>R udp 1>53 | drop POLICY_DENIED
to_workload R>A udp 53>1 mark=tunnel | allow A>R; from_workload A>R udp 1>53; lost flows | drop POLICY_DENIED

# the agents' port
from_workload A>H tcp 1>4250 S | allow A>H | drop CONTROL_PLANE
from_workload A>M tcp 1>4250 S | allow A>M | drop CONTROL_PLANE
from_workload A>H tcp 1>4251 S | allow A>H | pass
from_workload A>H udp 1>4250 | allow A>H | pass
from_workload A>R tcp 1>4250 S | allow A>R | pass
from_workload A>W tcp 1>4250 S | allow A>W | pass
from_workload A>H tcp 1>4250 S | unclassed H | drop CONTROL_PLANE
to_workload H>A tcp 1>4250 S | allow A<H | pass
`);
