// One side of a conversation that goes on whoever has the addresses: sends its name, and the round it believes in, a thousand times
// a second, and counts what it hears. Arguments: name, file with the number of the round, file with the number of the round in which
// it got its addresses, addresses to send to (commas), port to send to, port to listen on. Each time its counts changed it prints
// {heard: {NAME: datagrams}, late, last}: late ones were sent before that round, the last one of all rounds in round `last`.
import { createSocket } from 'node:dgram';
import { readFileSync } from 'node:fs';

const [name = '', roundFile = '', sinceFile = '', addresses = '', sendPort = '', listenPort = ''] =
  process.argv.slice(2);
const numberIn = (file: string): number => Number(readFileSync(file, 'utf8'));
const heard: Record<string, number> = {};
let late = 0;
let last = 0;
let told = '';

const listener = createSocket({ type: 'udp6', ipv6Only: false, recvBufferSize: 4 << 20 });
listener.on('message', (datagram) => {
  const [from = '', sentIn] = datagram.toString('latin1').split(' ');
  heard[from] = (heard[from] ?? 0) + 1;
  if (Number(sentIn) < numberIn(sinceFile)) late++;
  last = Math.max(last, Number(sentIn));
});
const tell = (): void => {
  const now = JSON.stringify({ heard, late, last });
  if (now !== told) console.log(now);
  told = now;
};
setInterval(tell, 20);

// While it has no interface there is no route, and every send fails at once: that is no matter.
const targets = addresses
  .split(',')
  .map((address) => ({ address, socket: createSocket(address.includes(':') ? 'udp6' : 'udp4') }));
setInterval(() => {
  const datagram = `${name} ${numberIn(roundFile)}`;
  for (const { address, socket } of targets) socket.send(datagram, Number(sendPort), address, () => {});
}, 1);
listener.bind(Number(listenPort), '::', () => console.log('listening'));
