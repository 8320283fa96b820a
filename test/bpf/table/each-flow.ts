/** Authentication with scope connection: a proof for each flow, which no other flow may use. */
import { rows } from './rows.ts';

export const eachFlow = rows(`
# the flow's own proof, and no other
from_workload A>R udp 1>53 | allow A>R each | hold
from_workload A>R udp 1>53 | allow A>R each; no-hold | drop AUTH_REQUIRED
to_workload R>A udp 1>53 mark=tunnel | allow A<R each | drop AUTH_REQUIRED
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53 | pass
from_workload A>R tcp 1>80 S | allow A>R each; flow-proof A-R tcp 1>80 | pass
from_workload A>R sctp 1>80 init | allow A>R each; flow-proof A-R sctp 1>80 | pass
v4 from_workload A>R echo 9 | allow A>R each; flow-proof A-R icmp 9>8 | pass
v6 from_workload A>R echo 9 | allow A>R each; flow-proof A-R icmp 9>128 | pass
to_workload R>A udp 1>53 mark=tunnel | allow A<R each; flow-proof A-R udp 53>1 | pass
from_workload A>B udp 1>53 | allow A>B each; flow-proof A-B udp 1>53 | pass
from_workload A>R udp 1>53 | allow A>R each; proof A-R | hold
from_workload A>R udp 1>53 | allow A>R auth; flow-proof A-R udp 1>53 | hold
from_workload A>R udp 2>53 | allow A>R each; flow-proof A-R udp 1>53 | hold
from_workload A>R udp 1>54 | allow A>R each; flow-proof A-R udp 1>53 | hold
from_workload A>R udp 53>1 | allow A>R each; flow-proof A-R udp 1>53 | hold
from_workload A>R tcp 1>53 S | allow A>R each; flow-proof A-R udp 1>53 | hold
from_workload A>B udp 1>53 | allow A>B each; flow-proof A-R udp 1>53 | hold

# made for whoever had the addresses then
from_workload A>R udp 1>53 | allow A>*; allow A>B each; owner R identity=B; flow-proof A-R udp 1>53 | hold
from_workload A>R udp 1>53 | allow A>R each; owner R node=8; flow-proof A-R udp 1>53 | hold
from_workload A>R udp 1>53 | allow A>R each; allow B>R each; flow-proof A-R udp 1>53; becomes A 5 B | hold
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53; becomes A 9; owner A endpoint=9 | hold

# once
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53; from_workload A>R udp 1>53 | pass
to_workload R>A udp 53>1 mark=tunnel | allow A>R each; flow-proof A-R udp 1>53; from_workload A>R udp 1>53 | pass
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53; from_workload A>R udp 1>53; bump | pass
to_workload R>A udp 53>1 mark=tunnel | allow A>R each; flow-proof A-R udp 1>53; from_workload A>R udp 1>53; bump | pass
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53; from_workload A>R udp 1>53; lost flows | hold
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53; from_workload A>R udp 1>53; wait 33 | hold
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53; from_workload A>R udp 1>53; lost flows; flow-proof A-R udp 1>53 | pass
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53; from_workload A>R udp 1>53; flow-proof A-R udp 1>53; bump; from_workload A>R udp 1>53; lost flows | hold
from_workload A>R tcp 1>80 S | allow A>R each; flow-proof A-R tcp 1>80; from_workload A>R tcp 1>80 S | pass
from_workload A>R tcp 1>80 S | allow A>R each; flow-proof A-R tcp 1>80; from_workload A>R tcp 1>80 S; from_workload A>R tcp 1>80 R | hold
to_workload R>A tcp 1>80 S mark=tunnel | allow A<R each; flow-proof A-R tcp 80>1; to_workload R>A tcp 1>80 S mark=tunnel; to_workload R>A tcp 1>80 R mark=tunnel | drop AUTH_REQUIRED
from_workload A>R udp 1>53 | stateless; allow A>R each; flow-proof A-R udp 1>53; from_workload A>R udp 1>53 | pass

# its end
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53 ends=-1 | hold
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53 ends=-1; no-hold | drop AUTH_EXPIRED
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53 ends=20; no-hold; from_workload A>R udp 1>53; wait 22 | drop AUTH_EXPIRED
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53 ends=20; from_workload A>R udp 1>53; wait 22; flow-proof A-R udp 1>53 | pass
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53; epoch 2; no-hold | drop AUTH_EPOCH
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53; from_workload A>R udp 1>53; unproven; bump | hold
to_workload R>A udp 53>1 mark=tunnel | allow A>R each; flow-proof A-R udp 1>53; from_workload A>R udp 1>53; unproven; bump | drop AUTH_REQUIRED

# refused for now
from_workload A>R udp 1>53 | allow A>R each; flow-refusal A-R udp 1>53 | drop AUTH_REFUSED
from_workload A>R udp 2>53 | allow A>R each; flow-refusal A-R udp 1>53 | hold
from_workload A>R udp 1>53 | allow A>R each; flow-refusal A-R udp 1>53 ends=-1 | hold

# what comes back from the hold queue
from_hold A>R udp 1>53 | allow A>R each; from_workload A>R udp 1>53; flow-proof A-R udp 1>53 | pass
from_hold A>R udp 2>53 | allow A>R each; from_workload A>R udp 1>53; from_workload A>R udp 2>53; flow-proof A-R udp 1>53 | drop AUTH_REQUIRED
from_workload A>R udp 1>53 | allow A>R each; from_workload A>R udp 1>53 x2; flow-proof A-R udp 1>53 | hold
from_hold A>R udp 1>53 | allow A>R each; from_workload A>R udp 1>53 x2; flow-proof A-R udp 1>53; from_hold A>R udp 1>53 | pass
from_workload A>R udp 2>53 | allow A>R each; from_workload A>R udp 1>53; flow-proof A-R udp 2>53 | pass

# a flow that other policies let through has not taken one
from_workload A>R udp 1>53 | allow A>R; flow-proof A-R udp 1>53; from_workload A>R udp 1>53; allow A>R each; bump | pass
from_workload A>R udp 1>53 | allow A>R; from_workload A>R udp 1>53; allow A>R each; bump | hold
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53; from_workload A>R udp 1>53; lost flows; allow A>R; from_workload A>R udp 1>53; allow A>R each; bump | hold
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53; from_workload A>R udp 1>53; allow A>R; bump; from_workload A>R udp 1>53; allow A>R each; bump | pass

# who has no SVID
from_workload A>H udp 1>53 | allow A>H each | drop AUTH_NOT_A_WORKLOAD
from_workload A>W udp 1>53 | allow A>W each; flow-proof A-W udp 1>53 | drop AUTH_NOT_A_WORKLOAD

# observed
from_workload A>R udp 1>53 | allow A>R would-each | pass observed:AUTH_REQUIRED
from_workload A>R udp 1>53 | allow A>R would-each; flow-proof A-R udp 1>53 | pass
from_workload A>R udp 1>53 | allow A>R auth would-each; proof A-R | pass observed:AUTH_REQUIRED
from_workload A>R udp 1>53 | allow A>R auth would-each; proof A-R; flow-proof A-R udp 1>53 | pass
from_workload A>R udp 1>53 | allow A>R each would-auth; flow-proof A-R udp 1>53 | pass observed:AUTH_REQUIRED
from_workload A>R udp 1>53 | allow A>R each would-auth; flow-proof A-R udp 1>53; proof A-R | pass
from_workload A>R udp 1>53 | allow A>R each would-deny; flow-proof A-R udp 1>53; from_workload A>R udp 1>53 | pass observed:POLICY_DENY_RULE
from_workload A>R udp 1>53 | observe; allow A>R each | pass observed:AUTH_REQUIRED
from_workload A>R udp 1>53 | observe; allow A>R each; from_workload A>R udp 1>53; flow-proof A-R udp 1>53 | pass
from_workload A>R udp 1>53 | allow A>R each; flow-proof A-R udp 1>53; from_workload A>R udp 1>53; lost flows; observe; from_workload A>R udp 1>53 | pass observed:AUTH_REQUIRED
`);
