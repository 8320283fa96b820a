/** Proof: one exact entry, alive, of this epoch. */
import { rows } from './rows.ts';

export const auth = rows(`
# at the sender a miss waits, at the receiver it drops
from_workload A>R udp 1>53 | allow A>R auth | hold
to_workload R>A udp 1>53 mark=tunnel | allow A<R auth | drop AUTH_REQUIRED
from_workload A>R udp 1>53 | allow A>R auth; no-hold | drop AUTH_REQUIRED
from_workload A>R udp 1>53 | allow A>R auth; proof A-R | pass
to_workload R>A udp 1>53 mark=tunnel | allow A<R auth; proof A-R | pass
from_workload A>B udp 1>53 | allow A>B auth; proof A-B | pass
to_workload B>A udp 1>53 mark=stamp:B | allow A<B auth; proof A-B | pass

# of another pair, the other way round, of another node
from_workload A>R udp 1>53 | allow A>R auth; no-hold; proof A-B | drop AUTH_REQUIRED
from_workload A>R udp 1>53 | allow A>R auth; no-hold; proof R-A | drop AUTH_REQUIRED
from_workload A>R udp 1>53 | allow A>R auth; no-hold; proof B-R | drop AUTH_REQUIRED
from_workload A>R udp 1>53 | allow A>R auth; no-hold; proof A-R node=8 | drop AUTH_REQUIRED
from_workload A>R udp 1>53 | allow A>R auth; no-hold; proof A-R node=0 | drop AUTH_REQUIRED
from_workload A>B udp 1>53 | allow A>B auth; no-hold; proof A-B node=7 | drop AUTH_REQUIRED
from_workload A>R udp 1>53 | allow A>R auth; no-hold; proof A-R; owner R node=8 | drop AUTH_REQUIRED

# its end, its epoch
from_workload A>R udp 1>53 | allow A>R auth; no-hold; proof A-R ends=-1 | drop AUTH_EXPIRED
from_workload A>R udp 1>53 | allow A>R auth; no-hold; proof A-R ends=10; wait 12 | drop AUTH_EXPIRED
from_workload A>R udp 1>53 | allow A>R auth; no-hold; proof A-R ends=10; wait 8 | pass
from_workload A>R udp 1>53 | allow A>R auth; no-hold; proof A-R ends=10; from_workload A>R udp 1>53; wait 12 | drop AUTH_EXPIRED
to_workload R>A udp 53>1 mark=tunnel | allow A>R auth; proof A-R ends=10; from_workload A>R udp 1>53; wait 12 | drop AUTH_EXPIRED
from_workload A>R udp 1>53 | allow A>R auth; no-hold; proof A-R epoch=0 | drop AUTH_EPOCH
from_workload A>R udp 1>53 | allow A>R auth; no-hold; proof A-R; epoch 2 | drop AUTH_EPOCH
from_workload A>R udp 1>53 | allow A>R auth; no-hold; proof A-R epoch=2 | pass
from_workload A>R udp 1>53 | allow A>R auth; no-hold; proof A-R epoch=0 ends=-1 | drop AUTH_EPOCH
from_workload A>R udp 1>53 | allow A>R auth; proof A-R; from_workload A>R udp 1>53; epoch 2; bump | hold
from_workload A>R udp 1>53 | allow A>R auth; proof A-R; from_workload A>R udp 1>53; unproven; bump | hold
to_workload R>A udp 53>1 mark=tunnel | allow A>R auth; proof A-R; from_workload A>R udp 1>53; unproven; bump | drop AUTH_REQUIRED

# refused for now
from_workload A>R udp 1>53 | allow A>R auth; refusal A-R | drop AUTH_REFUSED
to_workload R>A udp 1>53 mark=tunnel | allow A<R auth; refusal A-R | drop AUTH_REFUSED
from_workload A>R udp 1>53 | allow A>R auth; refusal A-R ends=-1 | hold
from_workload A>R udp 1>53 | allow A>R auth; refusal A-R ends=-1; no-hold | drop AUTH_REQUIRED
from_workload A>R udp 1>53 | allow A>R auth; refusal A-R epoch=0 | drop AUTH_REFUSED
from_workload A>R udp 1>53 | allow A>R; refusal A-R | pass

# who has no SVID
from_workload A>H udp 1>53 | allow A>H auth | drop AUTH_NOT_A_WORKLOAD
from_workload A>M udp 1>53 | allow A>M auth; proof A-M node=7 | drop AUTH_NOT_A_WORKLOAD
from_workload A>W udp 1>53 | allow A>W auth; proof A-W | drop AUTH_NOT_A_WORKLOAD
from_workload A>W udp 1>53 | prefix W/host identity=C; allow A>C auth | drop AUTH_NOT_A_WORKLOAD
to_workload H>A udp 1>53 | allow A<H auth | drop AUTH_NOT_A_WORKLOAD
from_workload A>R udp 1>53 | allow A>R fail; proof A-R | drop AUTH_ALWAYS_FAIL
from_workload A>H udp 1>53 | allow A>H fail | drop AUTH_NOT_A_WORKLOAD

# the line that decides says what proof it takes
from_workload A>R udp 1>53 | allow A>R auth; allow A>R udp/53 | pass
from_workload A>R udp 1>53 | allow A>R; allow A>R udp/53 auth; no-hold | drop AUTH_REQUIRED
from_workload A>R udp 1>53 | allow A>* auth; allow A>R | pass
from_workload A>R udp 1>53 | deny A>R udp/53; allow A>R auth | drop POLICY_DENY_RULE
`);
