// Takes numbered datagrams (udp-sender.ts) and counts them. Arguments: port.
// SIGTERM: when none has come for a while, prints {distinct, foreign, gaps} and ends. foreign: datagrams that are not
// numbered ones; gaps: [first, last] number of each run that is missing before the highest one seen.
import { createSocket } from 'node:dgram';

const QUIET_MS = 300;
const socket = createSocket({ type: 'udp6', ipv6Only: false, recvBufferSize: 4 << 20 });
const seen = new Set<number>();
let foreign = 0;
let lastMs = 0;
socket.on('message', (datagram) => {
  lastMs = performance.now();
  if (datagram.length === 64) seen.add(datagram.readUInt32BE(0));
  else foreign++;
});

function gaps(): [number, number][] {
  const found: [number, number][] = [];
  const highest = Math.max(-1, ...seen);
  for (let i = 0; i < highest; i++) {
    if (seen.has(i)) continue;
    const open = found.at(-1);
    if (open !== undefined && open[1] === i - 1) open[1] = i;
    else found.push([i, i]);
  }
  return found;
}

process.on('SIGTERM', () => {
  lastMs = Math.max(lastMs, performance.now());
  setInterval(() => {
    if (performance.now() - lastMs < QUIET_MS) return;
    console.log(JSON.stringify({ distinct: seen.size, foreign, gaps: gaps() }));
    process.exit(0);
  }, 20);
});
socket.bind(Number(process.argv[2]), '::', () => console.log('listening'));
