// Takes datagrams so that no ICMP errors come back. Arguments: uid, port. Captures count them, not this.
import { createSocket } from 'node:dgram';
import { dropTo } from './drop-to.ts';

const [uid, port] = process.argv.slice(2).map(Number) as [number, number];
const socket = createSocket({ type: 'udp6', ipv6Only: false, recvBufferSize: 1 << 20 });
socket.bind(port, '::', () => {
  dropTo(uid);
  console.log('listening');
});
