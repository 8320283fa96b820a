/** All rows of the table, by what they are about. */
import { auth } from './auth.ts';
import { eachFlow } from './each-flow.ts';
import { fragments } from './fragments.ts';
import { frames } from './frames.ts';
import { holding } from './holding.ts';
import { host } from './host.ts';
import { icmp } from './icmp.ts';
import { ipv4 } from './ipv4.ts';
import { ipv6 } from './ipv6.ts';
import { leases } from './leases.ts';
import { neighbours } from './neighbours.ts';
import { observing } from './observing.ts';
import { paths } from './paths.ts';
import { policy } from './policy.ts';
import { sctp } from './sctp.ts';
import { tcp } from './tcp.ts';
import { udp } from './udp.ts';

export const groups = {
  frames,
  neighbours,
  ipv4,
  ipv6,
  fragments,
  tcp,
  udp,
  sctp,
  icmp,
  policy,
  auth,
  eachFlow,
  leases,
  holding,
  host,
  paths,
  observing,
};
