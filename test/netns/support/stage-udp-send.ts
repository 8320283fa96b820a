// Sends datagrams from an address, whoever it belongs to. Arguments: source address, destination address, port, how many.
import { createSocket } from 'node:dgram';

const [source = '', destination = '', port = '', many = ''] = process.argv.slice(2);
const socket = createSocket('udp4');
await new Promise<void>((resolve) => socket.bind({ address: source }, resolve));
for (let i = 0; i < Number(many); i++) {
  await new Promise<void>((resolve) => {
    socket.send('a datagram that nobody should see', Number(port), destination, () => resolve());
  });
}
socket.close();
