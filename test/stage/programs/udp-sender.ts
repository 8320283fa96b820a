// Sends numbered datagrams at a steady rate until it is told to stop (SIGTERM), then prints how many it sent.
// Arguments: uid, address, port, packets per second.
import { createSocket } from 'node:dgram';
import { dropTo } from './drop-to.ts';

const [uid = '', address = '', port = '', rate = ''] = process.argv.slice(2);
const socket = createSocket('udp4');
dropTo(Number(uid));
const perMs = Number(rate) / 1000;
const started = performance.now();
let sent = 0;
let failed = 0;
const timer = setInterval(() => {
  const due = Math.floor((performance.now() - started) * perMs);
  // After a stall only a little faster: the steady rate is the point, and queues on the way hold some hundred packets.
  for (let i = 0; sent < due && i < perMs * 4; i++) {
    const datagram = Buffer.alloc(64);
    datagram.writeUInt32BE(sent++, 0);
    socket.send(datagram, Number(port), address, (error) => {
      if (error) failed++;
    });
  }
}, 1);
process.on('SIGTERM', () => {
  clearInterval(timer);
  console.log(JSON.stringify({ sent, failed }));
  process.exit(0);
});
console.log('sending');
