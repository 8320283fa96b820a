/** SCTP: the first chunk says what a packet does to its association. */
import { rows } from './rows.ts';

export const sctp = rows(`
# policy
from_workload A>R sctp 5000>80 init | | drop POLICY_DENIED
from_workload A>R sctp 5000>80 init | allow A>R | pass
from_workload A>R sctp 5000>80 init | allow A>R sctp/80 | pass
from_workload A>R sctp 5000>81 init | allow A>R sctp/80 | drop POLICY_DENIED
from_workload A>R sctp 5000>80 init | allow A>R tcp/80 | drop POLICY_DENIED
to_workload R>A sctp 5000>80 init mark=tunnel | allow A<R sctp/80 | pass

# an association begins
to_workload R>A sctp 80>5000 init-ack mark=tunnel | allow A>R; from_workload A>R sctp 5000>80 init | pass
from_workload A>R sctp 5000>80 cookie-echo | allow A>R; from_workload A>R sctp 5000>80 init; to_workload R>A sctp 80>5000 init-ack mark=tunnel | pass
to_workload R>A sctp 80>5000 cookie-ack mark=tunnel | allow A>R; from_workload A>R sctp 5000>80 init; from_workload A>R sctp 5000>80 cookie-echo | pass
to_workload R>A sctp 80>5000 data mark=tunnel | allow A>R; from_workload A>R sctp 5000>80 init; from_workload A>R sctp 5000>80 cookie-echo; to_workload R>A sctp 80>5000 cookie-ack mark=tunnel | pass
to_workload R>A sctp 80>5000 init mark=tunnel | allow A>R; from_workload A>R sctp 5000>80 init | drop POLICY_DENIED

# what belongs to none
from_workload A>R sctp 5000>80 init-ack | allow A>R | drop STRAY
from_workload A>R sctp 5000>80 cookie-ack | allow A>R | drop STRAY
from_workload A>R sctp 5000>80 abort | allow A>R | drop STRAY
from_workload A>R sctp 5000>80 shutdown | allow A>R | drop STRAY
from_workload A>R sctp 5000>80 shutdown-ack | allow A>R | drop STRAY
from_workload A>R sctp 5000>80 shutdown-complete | allow A>R | drop STRAY
from_workload A>R sctp 5000>80 heartbeat-ack | allow A>R | drop STRAY
from_workload A>R sctp 5000>80 error | allow A>R | drop STRAY
from_workload A>R sctp 5000>80 77 | allow A>R | drop STRAY
to_workload R>A sctp 80>5000 init-ack mark=tunnel | allow A>R; allow A<R | drop STRAY
to_workload R>A sctp 80>5000 data mark=tunnel | allow A>R; from_workload A>R sctp 5000>80 init | drop STRAY

# one whose beginning nobody saw is picked up
from_workload A>R sctp 5000>80 data | allow A>R sctp/80 | pass
from_workload A>R sctp 5000>80 sack | allow A>R sctp/80 | pass
from_workload A>R sctp 5000>80 i-data | allow A>R sctp/80 | pass
from_workload A>R sctp 5000>80 heartbeat | allow A>R sctp/80 | pass
from_workload A>R sctp 5000>80 cookie-echo | allow A>R sctp/80 | pass
from_workload A>R sctp 5000>80 data | | drop POLICY_DENIED
to_workload R>A sctp 80>5000 heartbeat-ack mark=tunnel | allow A>R; from_workload A>R sctp 5000>80 heartbeat | pass

# it ends
to_workload R>A sctp 80>5000 shutdown-ack mark=tunnel | allow A>R; from_workload A>R sctp 5000>80 data; from_workload A>R sctp 5000>80 shutdown | pass
from_workload A>R sctp 5000>80 shutdown-complete | allow A>R; from_workload A>R sctp 5000>80 data; from_workload A>R sctp 5000>80 shutdown; to_workload R>A sctp 80>5000 shutdown-ack mark=tunnel | pass
from_workload A>R sctp 5000>80 data | allow A>R; from_workload A>R sctp 5000>80 data; to_workload R>A sctp 80>5000 abort mark=tunnel | drop STRAY
from_workload A>R sctp 5000>80 init | allow A>R; from_workload A>R sctp 5000>80 data; to_workload R>A sctp 80>5000 abort mark=tunnel | pass
to_workload R>A sctp 80>5000 data mark=tunnel | allow A>R; from_workload A>R sctp 5000>80 data; wait 208 | pass
to_workload R>A sctp 80>5000 data mark=tunnel | allow A>R; from_workload A>R sctp 5000>80 data; wait 212 | drop POLICY_DENIED
to_workload R>A sctp 80>5000 init-ack mark=tunnel | allow A>R; from_workload A>R sctp 5000>80 init; wait 2 | pass
to_workload R>A sctp 80>5000 init-ack mark=tunnel | allow A>R; from_workload A>R sctp 5000>80 init; wait 5 | drop STRAY

# chunks that contradict their packet (RFC 9260, sections 3.2, 6.10, 8.5.1)
from_workload A>R sctp 5000>80 init tag=1 | allow A>R | drop SCTP_CHUNK
from_workload A>R sctp 5000>80 data tag=0 | allow A>R | drop SCTP_CHUNK
from_workload A>R sctp 5000>80 abort tag=0 | allow A>R | drop SCTP_CHUNK
from_workload A>R sctp 5000>80 data chunklen=3 | allow A>R | drop SCTP_CHUNK
from_workload A>R sctp 5000>80 data chunklen=0 | allow A>R | drop SCTP_CHUNK
from_workload A>R sctp 5000>80 data chunklen=+1 | allow A>R | drop SCTP_CHUNK
from_workload A>R sctp 5000>80 data chunklen=4 | allow A>R | pass
from_workload A>R sctp 5000>80 init chunklen=16 | allow A>R | drop SCTP_CHUNK
from_workload A>R sctp 5000>80 init-ack chunklen=16 | allow A>R | drop SCTP_CHUNK
from_workload A>R sctp 5000>80 init chunklen=17 | allow A>R | pass
from_workload A>R sctp 5000>80 init size=0 | allow A>R | pass
`);
