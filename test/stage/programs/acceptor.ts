// Accepts TCP connections and closes them. Arguments: port.
import { createServer } from 'node:net';

const server = createServer((socket) => {
  socket.on('error', () => {});
  socket.end();
});
server.listen(Number(process.argv[2]), '::', () => console.log('listening'));
