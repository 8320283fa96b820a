// Sends numbered UDP to every target and port without a pause, and counts what arrives and what is missing in between, by "sender's
// address port". Argument: {to, ports}.
import { createSocket } from 'node:dgram';

const { to, ports } = JSON.parse(process.argv[2] ?? '{}') as { to: string[]; ports: number[] };
interface Seen {
  count: number;
  readonly first: number;
  last: number;
}
let seen: Record<string, Seen> = {};

for (const port of ports) {
  const socket = createSocket({ type: 'udp4', recvBufferSize: 4 << 20 }, (data, from) => {
    const number = data.readUInt32LE(0);
    const what = `${from.address} ${port}`;
    const known = seen[what] ?? { count: 0, first: number, last: number };
    seen[what] = known;
    known.count++;
    known.last = number;
  });
  await new Promise<void>((resolve) => socket.bind(port, () => resolve()));
}
const sender = createSocket('udp4');
// A refusal by ICMP, or no route for a moment, is nothing to a flood.
sender.on('error', () => {});
let number = 0;
setInterval(() => {
  const data = Buffer.alloc(4);
  data.writeUInt32LE(number++);
  for (const address of to) for (const port of ports) sender.send(data, port, address, () => {});
}, 1);
process.on('message', () => {
  process.send!(seen);
  seen = {};
});
process.on('disconnect', () => process.exit());
process.send!('ready');
