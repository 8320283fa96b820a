/** Vouch, lease, fence, own address: who may speak for an address now. */
import { rows } from './rows.ts';

export const leases = rows(`
# endpoints
from_workload A>R udp 1>53 | allow A>R; remove A | drop NO_ENDPOINT
to_workload R>A udp 1>53 mark=tunnel | allow A<R; remove A | drop NO_ENDPOINT
from_workload A>R udp 1>53 | allow A>R; fence A | drop FENCED
to_workload R>A udp 1>53 mark=tunnel | allow A<R; fence A | drop FENCED
from_workload A>R udp 1>53 | allow A>R; from_workload A>R udp 1>53; fence A; bump | drop FENCED
to_workload R>A udp 53>1 mark=tunnel | allow A>R; from_workload A>R udp 1>53; fence A; bump | drop FENCED
from_workload A>R udp 1>53 length=1 | allow A>R; fence A | drop FENCED

# a fence towards one node: FenceSend, FenceReceive
from_workload A>R udp 1>53 | allow A>R; fence A node=7 | drop FENCED
to_workload R>A udp 1>53 mark=tunnel | allow A<R; fence A node=7 | drop FENCED
from_workload A>R udp 1>53 | allow A>R auth; proof A-R; fence A node=7 | drop FENCED
from_workload A>R udp 1>53 | allow A>R auth; fence A node=7 | drop FENCED
from_workload A>R udp 1>53 | fence A node=7 | drop FENCED
from_workload A>R udp 1>53 | allow A>R; lease R -1; fence A node=7 | drop FENCED
from_workload A>R echo 9 | allow A>R; fence A node=7 | drop FENCED
to_workload R>A udp 1>53 mark=underlay | allow A<R; unbound; fence A node=7 | drop FENCED
to_workload R>A udp 1>53 | allow A<R; fence A node=7 | drop UNENCRYPTED
from_workload A>M udp 1>53 | allow A>M; fence A node=7 | drop FENCED
to_workload M>A udp 1>53 mark=tunnel | allow A<M; fence A node=7 | drop FENCED
from_workload A>R udp 1>53 | allow A>R; fence A node=8 | pass
to_workload R>A udp 1>53 mark=tunnel | allow A<R; fence A node=8 | pass
from_workload A>R udp 1>53 | allow A>R; fence B node=7 | pass
from_workload A>B udp 1>53 | allow A>B; fence A node=7 | pass
to_workload B>A udp 1>53 mark=stamp:B | allow A<B; fence A node=7 | pass
from_workload A>H udp 1>53 | allow A>H; fence A node=7 | pass
from_workload A>W udp 1>53 | allow A>W; fence A node=7 | pass
from_workload A>N udp 1>53 | allow A>*; fence A node=7 | hold
from_workload A>R udp 1>53 | allow A>R; owner R node=8; fence A node=7 | pass
from_workload A>R udp 1>53 | allow A>R; owner R node=8; fence A node=8 | drop FENCED
from_workload A>R udp 1>53 | allow A>R; fence A node=7; from_workload A>R udp 1>53; open A | pass
to_workload R>A udp 1>53 mark=tunnel | allow A<R; fence A node=7; to_workload R>A udp 1>53 mark=tunnel; open A | pass
to_workload R>A udp 53>1 mark=tunnel | allow A>R; fence A node=7; from_workload A>R udp 1>53; open A | drop POLICY_DENIED
from_hold A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53; proof A-R; fence A node=7 | drop FENCED
from_hold A>R udp 1>53 | allow A>R auth; from_workload A>R udp 1>53; proof A-R; fence A node=8 | pass
to_workload R>A udp 53>1 mark=tunnel | allow A>R; from_workload A>R udp 1>53; fence A node=7; bump | drop FENCED
from_workload A>R udp 1>53 | allow A>R; from_workload A>R udp 1>53; fence A node=7; bump | drop FENCED
to_workload R>A unreachable [A>R udp 1>53] mark=tunnel | allow A>R; from_workload A>R udp 1>53; fence A node=7; bump | drop ICMP_TYPE
from_workload A>R udp 1>53 | allow A>R; observe; fence A node=7 | drop FENCED
from_workload A>R udp 1>53 | allow A>R; stop; fence A node=7 | pass observed:FENCED

# own address
from_workload B>R udp 1>53 | allow A>* | drop INVALID_SOURCE_IP
from_workload R>A udp 1>53 | allow A>* | drop INVALID_SOURCE_IP
from_workload N>R udp 1>53 | allow A>* | drop INVALID_SOURCE_IP
from_workload H>R udp 1>53 | allow A>* | drop INVALID_SOURCE_IP
from_workload M>R udp 1>53 | allow A>* | drop INVALID_SOURCE_IP
from_workload W>R udp 1>53 | allow A>* | drop INVALID_SOURCE_IP
from_workload B>R proto 47 | allow A>* | drop INVALID_SOURCE_IP
v6 from_workload fe80::1>R udp 1>53 | allow A>* | drop INVALID_SOURCE_IP
v4 from_workload 0.0.0.0>R udp 1>53 | allow A>* | drop INVALID_SOURCE_IP
v4 from_workload 127.0.0.1>R udp 1>53 | allow A>* | drop INVALID_SOURCE_IP
from_workload A>R udp 1>53 | allow A>R; forget A | drop INVALID_SOURCE_IP
from_workload A>R udp 1>53 | allow A>R; becomes A 9 | drop INVALID_SOURCE_IP
from_workload A>R udp 1>53 | allow A>R; becomes A 9; owner A endpoint=9 | pass mark:stamp:9
from_workload A>R udp 1>53 | allow A>R; owner A kind=node | drop INVALID_SOURCE_IP
from_workload A>R udp 1>53 | allow A>R; owner A kind=reserved | drop INVALID_SOURCE_IP
to_workload R>B udp 1>53 mark=tunnel | allow A<* | drop INVALID_DESTINATION_IP
to_workload R>N udp 1>53 mark=tunnel | allow A<* | drop INVALID_DESTINATION_IP
to_workload R>W udp 1>53 mark=tunnel | allow A<* | drop INVALID_DESTINATION_IP
v4 to_workload R>255.255.255.255 udp 1>53 mark=tunnel | allow A<* | drop INVALID_DESTINATION_IP
v4 to_workload R>224.0.0.1 udp 1>53 mark=tunnel | allow A<* | drop INVALID_DESTINATION_IP
v6 to_workload R>ff02::1 udp 1>53 mark=tunnel | allow A<* | drop INVALID_DESTINATION_IP

# another endpoint on the interface inherits nothing
to_workload R>A udp 53>1 mark=tunnel | allow A>R; from_workload A>R udp 1>53; becomes A 9; owner A endpoint=9; bump | drop POLICY_DENIED
to_workload R>A tcp 80>1 SA mark=tunnel | allow A>R; allow A<R; from_workload A>R tcp 1>80 S; becomes A 9; owner A endpoint=9; bump | drop STRAY
from_workload A>R udp 1>53 | allow A>R; becomes A 5 B | drop POLICY_DENIED

# vouch and lease
from_workload A>N udp 1>53 | allow A>* | hold
from_workload A>N udp 1>53 | allow A>*; no-hold | drop NO_VOUCH
to_workload N>A udp 1>53 mark=tunnel | allow A<* | drop NO_VOUCH
from_workload A>N udp 1>53 | no-hold | drop NO_VOUCH
from_workload A>R udp 1>53 | allow A>R; lease R -1 | hold
from_workload A>R udp 1>53 | allow A>R; lease R -1; no-hold | drop LEASE_EXPIRED
to_workload R>A udp 1>53 mark=tunnel | allow A<R; lease R -1 | drop LEASE_EXPIRED
from_workload A>R udp 1>53 | allow A>R; lease R 30; no-hold; wait 28 | pass
from_workload A>R udp 1>53 | allow A>R; lease R 30; no-hold; wait 32 | drop LEASE_EXPIRED
from_workload A>R udp 1>53 | allow A>R; lease R 30; no-hold; from_workload A>R udp 1>53; wait 20; from_workload A>R udp 1>53; wait 12 | drop LEASE_EXPIRED
to_workload R>A tcp 80>1 A mark=tunnel | allow A>R; lease R 30; from_workload A>R tcp 1>80 A; wait 32 | drop LEASE_EXPIRED
to_workload R>A tcp 80>1 A mark=tunnel | allow A>R; lease R 30; from_workload A>R tcp 1>80 A; lease R 1000; wait 32 | pass
from_workload A>R udp 1>53 | allow A>R; forget R; no-hold | drop NO_VOUCH
to_workload R>A udp 53>1 mark=tunnel | allow A>R; from_workload A>R udp 1>53; forget R; bump | drop NO_VOUCH
from_workload A>R udp 1>53 | allow A>R; owner R kind=nobody node=0; no-hold | drop NO_VOUCH
to_workload R>A udp 53>1 mark=tunnel | allow A>R; from_workload A>R udp 1>53; owner R identity=B; bump | drop POLICY_DENIED
`);
