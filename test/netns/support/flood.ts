// Sends UDP to every target and port without a pause, and counts what arrives, by "sender's address port". Argument: {to, ports}.
import { createSocket } from 'node:dgram';

const { to, ports } = JSON.parse(process.argv[2] ?? '{}') as { to: string[]; ports: number[] };
let counts: Record<string, number> = {};

for (const port of ports) {
  const socket = createSocket('udp4', (_, from) => {
    const what = `${from.address} ${port}`;
    counts[what] = (counts[what] ?? 0) + 1;
  });
  await new Promise<void>((resolve) => socket.bind(port, () => resolve()));
}
const sender = createSocket('udp4');
// A refusal by ICMP, or no route for a moment, is nothing to a flood.
sender.on('error', () => {});
setInterval(() => {
  for (const address of to) for (const port of ports) sender.send('x', port, address, () => {});
}, 1);
process.on('message', () => {
  process.send!(counts);
  counts = {};
});
process.on('disconnect', () => process.exit());
process.send!('ready');
