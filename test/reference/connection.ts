/** What a packet does to its flow's state, and how long the flow may be idle in it: named and timed as Linux' connection
 *  tracking has them (nf_conntrack_proto_tcp.c, nf_conntrack_proto_sctp.c, and the defaults of its timeouts). */
import { type Packet, PROTOCOL, SCTP, TCP } from './packet.ts';

/** Seconds. */
const TIMEOUTS: Readonly<Record<string, number>> = {
  'tcp SYN_SENT': 120,
  'tcp SYN_RECV': 60,
  'tcp ESTABLISHED': 432000,
  'tcp FIN_WAIT': 120,
  'tcp CLOSE_WAIT': 60,
  'tcp LAST_ACK': 30,
  'tcp TIME_WAIT': 120,
  'tcp CLOSE': 10,
  'udp UNREPLIED': 30,
  'udp REPLIED': 120,
  echo: 30,
  'sctp COOKIE_WAIT': 3,
  'sctp COOKIE_ECHOED': 3,
  'sctp ESTABLISHED': 210,
  'sctp SHUTDOWN_SENT': 3,
  'sctp SHUTDOWN_RECD': 3,
  'sctp SHUTDOWN_ACK_SENT': 3,
  'sctp CLOSED': 10,
  'sctp HEARTBEAT_SENT': 30,
};

export const idleLimit = (state: string): number => TIMEOUTS[state]!;

/** What opens finds such a flow over, and begins another. */
export const isOver = (state: string): boolean => ['tcp TIME_WAIT', 'tcp CLOSE', 'sctp CLOSED'].includes(state);

/** A row is what came, a column the state it met, a cell the state after: - is a stray, = stays. */
function matrix(family: string, states: readonly string[], text: string): ReadonlyMap<string, string> {
  const cells = new Map<string, string>();
  const full = (short: string) => `${family} ${states.find((s) => s.startsWith(`${short}:`))!.split(':')[1]}`;
  for (const line of text.trim().split('\n')) {
    const [event, ...row] = line.trim().split(/\s+/);
    row.forEach((cell, i) => {
      const from = i === 0 ? 'nothing' : `${family} ${states[i - 1]!.split(':')[1]}`;
      if (cell !== '-') cells.set(`${event} ${from}`, cell === '=' ? from : full(cell));
    });
  }
  return cells;
}

const TCP_STATES = [
  'SS:SYN_SENT',
  'SR:SYN_RECV',
  'ES:ESTABLISHED',
  'FW:FIN_WAIT',
  'CW:CLOSE_WAIT',
  'LA:LAST_ACK',
  'TW:TIME_WAIT',
  'CL:CLOSE',
];

// A SYN in a living flow is late, or its sender forgot the flow: the other side's answer tells which. SYN-ACKs of both
// sides: a simultaneous open (RFC 9293, section 3.5). An ACK or FIN of nothing is of a flow that was lost.
//         none SS SR ES FW CW LA TW CL
const TCP_FORWARD = matrix(
  'tcp',
  TCP_STATES,
  `syn     SS   =  =  =  =  =  =  -  -
   syn-ack -    -  =  =  =  =  =  =  =
   ack     ES   -  ES =  CW =  TW =  =
   fin     FW   -  FW FW LA LA =  =  =
   rst     -    CL CL CL CL CL CL CL CL`,
);
const TCP_REPLY = matrix(
  'tcp',
  TCP_STATES,
  `syn-ack -    SR =  =  =  =  =  =  =
   ack     -    =  =  =  CW =  TW =  =
   fin     -    -  FW FW LA LA =  =  =
   rst     -    CL CL CL CL CL CL CL CL`,
);

const SCTP_STATES = [
  'CW:COOKIE_WAIT',
  'CE:COOKIE_ECHOED',
  'ES:ESTABLISHED',
  'SS:SHUTDOWN_SENT',
  'SR:SHUTDOWN_RECD',
  'SA:SHUTDOWN_ACK_SENT',
  'CL:CLOSED',
  'HS:HEARTBEAT_SENT',
];

//                       none CW CE ES SS SR SA CL HS
const SCTP_FORWARD = matrix(
  'sctp',
  SCTP_STATES,
  `init              CW   =  =  =  =  =  =  -  CW
   init-ack          -    =  =  =  -  -  -  -  -
   cookie-echo       CE   CE =  =  -  -  =  -  -
   cookie-ack        -    -  ES =  -  -  -  -  -
   data              ES   -  =  =  =  =  =  -  ES
   heartbeat         HS   -  =  =  =  =  =  -  =
   heartbeat-ack     -    -  =  =  =  =  =  -  =
   shutdown          -    -  -  SS =  =  =  -  -
   shutdown-ack      -    -  -  =  SA SA =  =  -
   shutdown-complete -    -  -  -  -  -  CL =  -
   abort             -    CL CL CL CL CL CL CL CL
   other             -    -  =  =  =  =  =  -  -`,
);
const SCTP_REPLY = matrix(
  'sctp',
  SCTP_STATES,
  `init-ack          -    =  =  =  -  -  -  -  -
   cookie-echo       -    CE =  =  -  -  =  -  -
   cookie-ack        -    -  ES =  -  -  -  -  -
   data              -    -  =  =  =  =  =  -  ES
   heartbeat         -    -  =  =  =  =  =  -  =
   heartbeat-ack     -    -  =  =  =  =  =  -  ES
   shutdown          -    -  -  SR =  =  =  -  -
   shutdown-ack      -    -  -  =  SA SA =  =  -
   shutdown-complete -    -  -  -  -  -  CL =  -
   abort             -    CL CL CL CL CL CL CL CL
   other             -    =  =  =  =  =  =  -  -`,
);

function tcpEvent(flags: number): string {
  if (flags & TCP.rst) return 'rst';
  if (flags & TCP.syn) return flags & TCP.ack ? 'syn-ack' : 'syn';
  return flags & TCP.fin ? 'fin' : 'ack';
}

const CHUNKS = new Map<number, string>([
  [SCTP.init, 'init'],
  [SCTP.initAck, 'init-ack'],
  [SCTP.cookieEcho, 'cookie-echo'],
  [SCTP.cookieAck, 'cookie-ack'],
  [SCTP.data, 'data'],
  [SCTP.sack, 'data'],
  [SCTP.iData, 'data'],
  [SCTP.heartbeat, 'heartbeat'],
  [SCTP.heartbeatAck, 'heartbeat-ack'],
  [SCTP.shutdown, 'shutdown'],
  [SCTP.shutdownAck, 'shutdown-ack'],
  [SCTP.shutdownComplete, 'shutdown-complete'],
  [SCTP.abort, 'abort'],
]);

/** @param forward in the flow's own direction. @returns undefined: does not belong to a flow in that state. */
export function advance(state: string | undefined, packet: Packet, forward: boolean): string | undefined {
  const from = state ?? 'nothing';
  switch (packet.protocol) {
    case PROTOCOL.tcp:
      return (forward ? TCP_FORWARD : TCP_REPLY).get(`${tcpEvent(packet.tcpFlags!)} ${from}`);
    case PROTOCOL.sctp:
      return (forward ? SCTP_FORWARD : SCTP_REPLY).get(`${CHUNKS.get(packet.sctpChunk!) ?? 'other'} ${from}`);
    case PROTOCOL.udp:
      return forward ? (state ?? 'udp UNREPLIED') : 'udp REPLIED';
    default:
      // Only the other side answers.
      return forward === (packet.role === 'opens') ? 'echo' : undefined;
  }
}
