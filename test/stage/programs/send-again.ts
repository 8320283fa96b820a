// Sends datagrams once more that were held back on their way. Arguments: file with a JSON array of them (base64), address, port.
import { createSocket } from 'node:dgram';
import { readFileSync } from 'node:fs';

const [file = '', address = '', port = ''] = process.argv.slice(2);
const datagrams = (JSON.parse(readFileSync(file, 'utf8')) as string[]).map((text) => Buffer.from(text, 'base64'));
const socket = createSocket('udp4');
for (const datagram of datagrams) {
  await new Promise<void>((resolve, reject) =>
    socket.send(datagram, Number(port), address, (error) => (error === null ? resolve() : reject(error))),
  );
}
socket.close();
