/** The hold queue: bounded, in order, judged again. */
import { rows } from './rows.ts';

export const holding = rows(`
# what waits, and what does not
from_workload A>R udp 2>53 | allow A>R auth | hold
from_workload A>R tcp 1>80 S | allow A>R auth | hold
from_workload A>R sctp 1>80 init | allow A>R auth | hold
from_workload A>R echo 9 | allow A>R auth | hold
from_workload A>R udp 1>53 | | drop POLICY_DENIED
from_workload A>R proto 47 | allow A>R auth | drop UNKNOWN_L4
from_workload A>R tcp 1>80 SA | allow A>R auth | drop STRAY
from_workload A>R udp 1>53 | allow A>R auth; observe | pass observed:AUTH_REQUIRED

# bounds
from_workload A>R udp 4>53 | allow A>R auth; limit 3; from_workload A>R udp 1>53 x3 | drop HOLD_FULL
from_workload A>R udp 4>53 | allow A>R auth; limit 3; from_workload A>R udp 1>53 x2 | hold
from_workload A>R udp 4>53 | allow A>R auth; total 2; from_workload A>R udp 1>53 x2 | drop HOLD_FULL
from_workload A>R udp 4>53 | allow A>R auth; limit 0 | drop HOLD_FULL
from_workload A>R udp 4>53 | allow A>R auth; total 0 | drop HOLD_FULL
from_workload A>R udp 4>53 | allow A>R auth; limit 3; from_workload A>R udp 1>53 x3; returned 1 | hold
from_workload A>R udp 4>53 | allow A>R auth; limit 3; from_workload A>R udp 1>53 x4; returned 1; from_workload A>R udp 1>53 | drop HOLD_FULL

# what comes back
from_hold A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53; proof A-R | pass
from_hold A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53 | drop AUTH_REQUIRED
from_hold A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53; proof A-R; forbid-all | drop POLICY_DENIED
from_hold A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53; proof A-R; fence A | drop FENCED
from_hold A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53; proof A-R; remove A | drop INVALID_SOURCE_IP
from_hold A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53; proof A-R; becomes A 9 | drop INVALID_SOURCE_IP
from_hold A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53; proof A-R; lease R -1 | drop LEASE_EXPIRED
from_hold A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53; refusal A-R | drop AUTH_REFUSED
from_hold A>N udp 1>53 | allow A>*; from_workload A>N udp 1>53 | drop NO_VOUCH
from_hold R>A udp 1>53 | allow A>* | drop INVALID_SOURCE_IP
from_hold H>R udp 1>53 | allow A>* | drop INVALID_SOURCE_IP
from_hold W>R udp 1>53 | allow A>* | drop INVALID_SOURCE_IP
from_hold N>R udp 1>53 | allow A>* | drop INVALID_SOURCE_IP
from_hold A>R tcp 80>1 SA | allow A<R auth; proof A-R; to_workload R>A tcp 1>80 S mark=tunnel | pass
from_hold A>R tcp 1>80 SA | allow A>R | drop STRAY
from_hold A>R udp 1>53 udplen=7 | allow A>R | drop INVALID_PACKET
from_hold A>R udp 1>53 length=1 | allow A>R | drop INVALID_PACKET

# in order: nothing overtakes
from_workload A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53 x2; proof A-R | hold
from_workload A>R udp 2>53 | allow A>R auth; from_workload A>R udp 1>53 x2; proof A-R | pass
from_workload A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53 x2; proof A-R; from_hold A>R udp 1>53 | hold
from_workload A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53 x2; proof A-R; from_hold A>R udp 1>53 x2 | pass
from_workload A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53 x2; proof A-R; returned 2 | pass
from_workload A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53 x2; proof A-R; wait 2 | pass
from_workload A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53 x2; proof A-R; no-hold | pass
`);
