/** UDP: flows by time. */
import { rows } from './rows.ts';

export const udp = rows(`
# policy
from_workload A>R udp 40000>53 | | drop POLICY_DENIED
from_workload A>R udp 40000>53 | allow A>R udp/53 | pass
from_workload A>R udp 40000>54 | allow A>R udp/53 | drop POLICY_DENIED
from_workload A>R udp 53>40000 | allow A>R udp/53 | drop POLICY_DENIED
from_workload A>R udp 40000>53 | allow A>R tcp/53 | drop POLICY_DENIED
from_workload A>R udp 40000>53 size=0 | allow A>R udp/53 | pass
from_workload A>R udp 40000>53 size=1400 | allow A>R udp/53 | pass
to_workload R>A udp 40000>53 mark=tunnel | allow A<R udp/53 | pass
to_workload R>A udp 40000>53 mark=tunnel | allow A>R udp/53 | drop POLICY_DENIED

# replies
to_workload R>A udp 53>40000 mark=tunnel | allow A>R udp/53 | drop POLICY_DENIED
to_workload R>A udp 53>40000 mark=tunnel | allow A>R udp/53; from_workload A>R udp 40000>53 | pass
to_workload R>A udp 54>40000 mark=tunnel | allow A>R udp/53; from_workload A>R udp 40000>53 | drop POLICY_DENIED
to_workload R>A udp 53>40001 mark=tunnel | allow A>R udp/53; from_workload A>R udp 40000>53 | drop POLICY_DENIED
to_workload B>A udp 53>40000 mark=stamp:B | allow A>R udp/53; from_workload A>R udp 40000>53 | drop POLICY_DENIED
from_workload A>R udp 53>40000 | allow A<R udp/53; to_workload R>A udp 40000>53 mark=tunnel | pass

# time: 30 s, 120 s once there was a reply
to_workload R>A udp 53>40000 mark=tunnel | allow A>R udp/53; from_workload A>R udp 40000>53; wait 28 | pass
to_workload R>A udp 53>40000 mark=tunnel | allow A>R udp/53; from_workload A>R udp 40000>53; wait 32 | drop POLICY_DENIED
to_workload R>A udp 53>40000 mark=tunnel | allow A>R udp/53; from_workload A>R udp 40000>53; to_workload R>A udp 53>40000 mark=tunnel; wait 118 | pass
to_workload R>A udp 53>40000 mark=tunnel | allow A>R udp/53; from_workload A>R udp 40000>53; to_workload R>A udp 53>40000 mark=tunnel; wait 122 | drop POLICY_DENIED
to_workload R>A udp 53>40000 mark=tunnel | allow A>R udp/53; from_workload A>R udp 40000>53; wait 20; from_workload A>R udp 40000>53; wait 20 | pass

# lengths (RFC 768)
from_workload A>R udp 1>2 udplen=7 | allow A>R | drop INVALID_PACKET
from_workload A>R udp 1>2 udplen=0 | allow A>R | drop INVALID_PACKET
from_workload A>R udp 1>2 udplen=8 | allow A>R | pass
from_workload A>R udp 1>2 udplen=+1 | allow A>R | drop INVALID_PACKET
from_workload A>R udp 1>2 udplen=+1 pad=8 | allow A>R | drop INVALID_PACKET
from_workload A>R udp 1>2 udplen=65535 | allow A>R | drop INVALID_PACKET

# ports at the edges
from_workload A>R udp 0>0 | allow A>R udp | pass
from_workload A>R udp 0>0 | allow A>R udp/0 | pass
from_workload A>R udp 0>0 | allow A>R udp/1 | drop POLICY_DENIED
from_workload A>R udp 65535>65535 | allow A>R udp/65535 | pass
`);
